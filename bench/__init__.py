"""Benchmarks. They print numbers and assert nothing."""
