"""Benchmarks; their numbers are printed, never asserted."""
