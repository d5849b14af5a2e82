"""The template, filled in."""

from __future__ import annotations

import base64
import hashlib
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
    style, script = _read("style.css"), _read("script.js")
    return environment.get_template("page.html").render(
        page=page(decks, source), style=Markup(style), script=Markup(script), policy=Markup(_policy(script))
    )


def _policy(script: str) -> str:
    """What the browser may do with the page: run this one script, and ask for nothing."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
