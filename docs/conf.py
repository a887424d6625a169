"""How Sphinx builds the pages: `sphinx-build -W -c docs . site`, then open `site/docs/index.html`.

The root of the repository is the source, so that a link between two files is right in the
repository and on the pages. Notebooks are shown as they are stored; tests/test_notebooks.py runs
them. Options of commands, and functions and classes, come from the code.
"""

import re
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

project = "evolq"
author = copyright = "The evolq developers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    *("docs/*.md", "notebooks/*.ipynb", "README.md", "CHANGELOG.md", "evolq/bundled/README.md"),
]

myst_heading_anchors = 3
nb_execution_mode = "off"
nb_mime_priority_overrides = [("*", "text/html", None)]  # xarray's cannot be read in the dark
default_role = "literal"  # docstrings have single backticks
highlight_language = "none"  # of blocks without a fence: what is typed, and what is printed

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_description_target = "documented"
napoleon_custom_sections = [("Attributes", "Args")]  # what a dataclass is made of

html_theme = "furo"
html_title = "evolq"


class Options(SphinxDirective):
    """The options of a command, `{options} landscape.scan`, as its `--help` has them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a section."""
        app = import_module(self.arguments[0]).COMMAND.app()
        if "--install-completion" in app:
            del app["--install-completion"]
        parts = app.generate_docs("markdown", heading_level=2).split("`")
        parts[::2] = [re.sub(r"--[a-z-]+", r"`\g<0>`", part) for part in parts[::2]]
        text = "`".join(parts)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def accessible(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], *_: Any) -> None:
    """Give blocks that scroll to the keyboard, and headings of the sidebar a level."""
    for name, plain, better in (
        ("body", "<pre>", '<pre tabindex="0">'),
        ("furo_navigation_tree", 'role="heading"', 'role="heading" aria-level="2"'),
    ):
        if name in context:
            context[name] = context[name].replace(plain, better)


def setup(app: Sphinx) -> None:
    """Add what the pages use."""
    app.add_directive("options", Options)
    app.connect("html-page-context", accessible, priority=900)  # after the theme
