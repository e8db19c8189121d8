"""The scripts of docs/scripts as modules, which no package holds."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "docs_scripts"
FOLDER = ROOT / "docs" / "scripts"

if PACKAGE not in sys.modules:
    _spec = ModuleSpec(PACKAGE, None, is_package=True)
    _spec.submodule_search_locations = [str(FOLDER)]
    sys.modules[PACKAGE] = module_from_spec(_spec)
