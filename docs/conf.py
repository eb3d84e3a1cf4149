from configparser import ConfigParser
from pathlib import Path

# Read rather than imported, so that the documentation also builds from a checkout that is not installed.
configuration = ConfigParser(interpolation=None)
configuration.read(Path(__file__).parents[1] / "setup.cfg")

project = "lightning_gradguard"
author = "the lightning_gradguard authors"
release = version = configuration["metadata"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "benchmark", "compatibility"]  # tables that a page includes
html_theme = "furo"

autodoc_typehints = "description"
autodoc_member_order = "bysource"
myst_heading_anchors = 3
