"""The documents as a site: `sphinx-build -W -b html docs build/docs`."""

import secateurs

project = "secateurs"
author = copyright = "the secateurs authors"
release = version = secateurs.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository, which tests follow

default_role = "code"  # docstrings name code as Markdown does
autodoc_typehints = "signature"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = "secateurs"
html_static_path = ["_static"]
html_css_files = ["site.css"]
