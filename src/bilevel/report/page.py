"""The template, filled in."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bilevel.report.decks import Decks
from bilevel.report.source import Source
from bilevel.report.view import page

FOLDER = Path(__file__).parent


def html(decks: Decks, source: Source) -> str:
    """The page as text; everything that comes from a table or the decks file is escaped."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    inline = {name: Markup(_read(f"{name}.{kind}")) for name, kind in (("style", "css"), ("script", "js"))}
    return environment.get_template("page.html").render(page=page(decks, source), **inline)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
