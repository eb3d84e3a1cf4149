from importlib.metadata import version as installed_version

project = "lightning_gradguard"
author = "the lightning_gradguard authors"
release = version = installed_version("lightning_gradguard")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"

autodoc_typehints = "description"
autodoc_member_order = "bysource"
myst_heading_anchors = 3
