"""Sphinx: the pages of this folder, and a reference of the package from its docstrings.

`make docs` builds it into `docs/_build`; every warning is an error. Nothing in the pages is loaded from anywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

import bilevel  # noqa: E402
from bilevel.docstrings import items  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# Sphinx would import modules as a type checker reads them, with names that pydantic does not look for there
for _module in pkgutil.walk_packages(bilevel.__path__, "bilevel."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)

project = "bilevel"
version = release = bilevel.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.apidoc", "myst_parser"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Hypergradients, and published experiments run again", "page_width": "1100px"}
html_show_copyright = False
html_show_sourcelink = False

apidoc_modules = [
    {
        "path": str(ROOT / "src" / "bilevel"),
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        "exclude_patterns": ["**/__main__.py"],
        "automodule_options": {"members", "show-inheritance"},
    }
]
autodoc_default_options = {"ignore-module-all": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# links that lead out of this folder, to files of the repository; classes of one name in signatures
suppress_warnings = ["myst.xref_missing", "ref.python"]


def to_rst(text: str) -> str:
    """A docstring of this package, plain text with names in backquotes, as reStructuredText."""
    blocks = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        if paragraph.startswith(">>>"):
            blocks.append(paragraph)
        elif all(line.startswith("    ") for line in lines):
            blocks.append("::\n\n" + paragraph)
        else:
            blocks.append(_paragraph(lines))
    return "\n\n".join(blocks)


def _paragraph(lines: list[str]) -> str:
    """A paragraph, or a list where there is more than one item."""
    found = [_inline(item.removesuffix("::") + (":" if item.endswith("::") else "")) for item in items(lines)]
    if len(found) == 1 and not re.match(r"(- |\d+\. )", lines[0]):
        return found[0]
    return "\n".join(f"* {re.sub(r'^(- |[0-9]+[.] )', '', item)}" for item in found)


def _inline(text: str) -> str:
    """Backquotes become literals; what else means something to Sphinx does not."""
    parts = re.split(r"`+([^`]+)`+", " ".join(text.split()))
    return "".join(
        f"``{part}``" if number % 2 else re.sub(r"([\\*_|])", r"\\\1", part) for number, part in enumerate(parts)
    )


def _convert(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_rst("\n".join(lines)).splitlines()


def setup(app: Sphinx) -> None:
    """Have Sphinx read docstrings as this package writes them."""
    app.connect("autodoc-process-docstring", _convert)
