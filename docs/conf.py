"""The documentation as a site: every README and page of the repository. `make docs`."""

project = "Krabby"
author = "the Krabby authors"
copyright = "the Krabby authors"

extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "**/README.md"]
exclude_patterns = ["build", "runs", ".*", "**/tests/**"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "Krabby"
