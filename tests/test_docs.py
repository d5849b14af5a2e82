"""The pages of docs/: docstrings as Sphinx has to read them, and one place for the version."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import bilevel

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_conf", ROOT / "docs" / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two\nlines of |w|² and w*_t.", r"Two lines of \|w\|² and w\*\_t."),
        ("See `step_` and ``init``.", "See ``step_`` and ``init``."),
        (
            "first: of it,\n    and more. second: too.\nthird: a `b`.",
            "* first: of it, and more. second: too.\n* third: a ``b``.",
        ),
        ("- one\n- two", "* one\n* two"),
        ("1. one\n   more", "* one more"),
        ("Like this::\n\n    a = b_c * d\n    e", "Like this:\n\n::\n\n    a = b_c * d\n    e"),
        (">>> create()\n1", ">>> create()\n1"),
    ],
)
def test_docstrings_become_restructured_text(conf: ModuleType, text: str, expected: str) -> None:
    assert conf.to_rst(text) == expected


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "bilevel.__version__"}
    for path in ("pyproject.toml", "CITATION.cff", "README.md", "docs/conf.py"):
        assert bilevel.__version__ not in (ROOT / path).read_text(encoding="utf-8")


def test_the_citation_file_has_what_it_must_have() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert all(citation[key] for key in ("message", "title", "authors"))
