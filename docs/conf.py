"""The documentation site: `python -m sphinx -W docs build/site`, which needs `internvl[docs]`.

Sphinx reads the Markdown of this folder (MyST), so that every page can be read in a clone as well.
Nothing that the site shows comes from another host: system fonts, equations as MathML, and a search
that runs on the page.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "scripts"))

project = "InternVL 2.5"
author = "The contributors"
release = metadata.version("internvl")

extensions = ["myst_parser", "outside_pages", "api_reference", "mathml"]
root_doc = "index"
source_suffix = {".md": "markdown"}
exclude_patterns = ["scripts", "static"]

myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 4
myst_dmath_allow_space = False
myst_dmath_allow_digits = False

python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_function_parentheses = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/icon.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
pygments_dark_style = "github-dark"
