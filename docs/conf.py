"""Sphinx: the documentation, built offline from the repository's own pages, notebooks and docstrings by `make docs`."""

import json
import tomllib
from pathlib import Path

import t2v_kit

ROOT = Path(__file__).parents[1]

project = "t2v-kit"
author = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["name"]
release = t2v_kit.__version__
root_doc = "docs/index"

# The source is the repository itself, so that links between pages work on a forge as they do here.
include_patterns = ["docs/*.md", "notebooks/*.ipynb", "notebooks/solutions/*.ipynb", "training/README.md"]
include_patterns += ["t2v_kit/pocket/README.md", "CHANGELOG.md", "CONTRIBUTING.md"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
extensions += ["sphinx-mathjax-offline"]  # formulas without a network
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the stored outputs are shown
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_rtype = False
suppress_warnings = [
    "myst.xref_missing",  # links to folders and scripts, which lead somewhere on a forge; a test checks that they exist
    "myst.header",  # a notebook's cells are headed for readers, not for an outline
    "mystnb.unknown_mime_type",  # ipywidgets; a picture is stored beside them
]

html_theme = "sphinx_book_theme"
html_title = "t2v-kit"
html_theme_options = {"show_toc_level": 2, "use_download_button": False}
html_show_sourcelink = False


def fold_answers(app, name: str, source: list[str]) -> None:
    """Cells of answers are folded: a reader opens them one by one."""
    if name.startswith("notebooks/solutions/"):
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "hide-cell"]
        source[0] = json.dumps(notebook)


def setup(app) -> None:
    app.connect("source-read", fold_answers)
