"""The documentation site: its packages are not among the pins of `make` yet (Sphinx 9, MyST, furo,
griffelib, latex2mathml, pyspellchecker); without them these tests are left out."""

from __future__ import annotations

import importlib.util

NEEDED = ("sphinx", "myst_parser", "furo", "griffe", "latex2mathml", "spellchecker")
if not all(importlib.util.find_spec(name) for name in NEEDED):
    collect_ignore_glob = ["test_*.py"]
