"""Paths in the checkout that tests use."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
ROLES = ROOT / "roles"
PLUGINS = ROOT / "plugins"
FIXTURES = ROOT / "tests" / "unit" / "fixtures"
GOLDEN = ROOT / "tests" / "unit" / "golden"
