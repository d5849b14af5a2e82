"""Names and code hashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bilevel import registry


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Texts to be appended to files of the package, by their path in it, without touching the files."""
    changes: dict[str, str] = {}
    read_text = Path.read_text

    def reading(self: Path, *args: object, **settings: object) -> str:
        text = read_text(self, encoding="utf-8")
        name = str(self.relative_to(registry.PACKAGE)) if self.is_relative_to(registry.PACKAGE) else ""
        return text + changes.get(name, "")

    monkeypatch.setattr(Path, "read_text", reading)
    return changes


TASKS = ("cleaning_corrected", "cleaning_published")


def hashes() -> dict[tuple[str, str], str]:
    registry._imports.cache_clear()
    registry._canonical.cache_clear()
    return {
        (task, method): registry.run_code_hash(task, method) for task in TASKS for method in registry.method_names()
    }


@pytest.mark.parametrize(
    ("path", "changed"),
    [
        ("hypergradients/unrolled.py", {("cleaning_corrected", "unrolled"), ("cleaning_published", "unrolled")}),
        ("tasks/cleaning_published/drmad.py", {("cleaning_published", "drmad")}),
        ("hypergradients/drmad.py", {("cleaning_corrected", "drmad"), ("cleaning_published", "drmad")}),
        ("tasks/cleaning_corrected.py", {("cleaning_corrected", m) for m in registry.method_names()}),
        ("derivatives.py", {(t, m) for t in TASKS for m in registry.method_names()}),
        ("report/view.py", set()),
        ("statistics.py", set()),
    ],
)
def test_an_edit_changes_the_hash_of_what_uses_the_file(
    edited: dict[str, str], path: str, changed: set[tuple[str, str]]
) -> None:
    before = hashes()
    edited[path] = "\nx = 1\n"
    after = hashes()
    assert {key for key in before if before[key] != after[key]} == changed


def test_comments_and_docstrings_do_not_count(edited: dict[str, str]) -> None:
    before = hashes()
    edited["derivatives.py"] = "\n\n# a comment\n"
    assert hashes() == before


def test_names_are_found_in_the_tree() -> None:
    assert "unrolled" in registry.method_names()
    assert "reverse" not in registry.method_names()
    assert set(registry.task_names()) >= {"cleaning_corrected", "cleaning_published"}
