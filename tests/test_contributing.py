"""CONTRIBUTING.md, followed literally: its files are written into a copy of the tree, its commands are run there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tree import ROOT, copy_to, run_in

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.pipeline

INSTRUCTION = re.compile(
    r"(?P<verb>Write|Append to|In) `(?P<file>[^`]+)`"
    r"(?:, (?P<how>before|after) the line `(?P<place>[^`]+)`)?:\Z"
    r"|(?P<run>Run):\Z"
)
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    """What a section says to do, in order: to write something, or to run it."""

    verb: str
    file: str
    how: str | None
    place: str
    content: str


def steps(section: str) -> Iterator[Step]:
    """Every block with the instruction before it."""
    end = 0
    for fence in FENCE.finditer(section):
        said = " ".join(section[end : fence.start()].split())
        sentence = re.split(r"(?<=[.]) ", said)[-1]
        while not (found := INSTRUCTION.search(sentence)):
            # a sentence may end within what it quotes
            said = said.removesuffix(sentence).rstrip()
            assert said, f"no instruction before the block {fence[3][:60]!r}"
            sentence = re.split(r"(?<=[.]) ", said)[-1] + " " + sentence
        indent = len(fence[1])
        content = "".join(line[indent:] if line.strip() else "\n" for line in fence[3].splitlines(keepends=True))
        yield Step(found["run"] or found["verb"], found["file"] or "", found["how"], found["place"] or "", content)
        end = fence.end()


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)
    return {title: body for title, body in zip(parts[1::2], parts[2::2], strict=True) if "```" in body}


class Copy:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        copy_to(folder, "pyproject.toml", "tests")

    def follow(self, step: Step) -> str:
        if step.verb == "Run":
            return self.run(step.content)
        path = self.folder / step.file
        if step.verb == "Write":
            assert not path.exists(), f"{step.file} is there already"
            path.parent.mkdir(exist_ok=True)
            path.write_text(step.content, encoding="utf-8")
            return ""
        text = path.read_text(encoding="utf-8")
        if step.verb == "Append to":
            path.write_text(text + step.content, encoding="utf-8")
            return ""
        lines = text.splitlines(keepends=True)
        assert [line.strip() for line in lines].count(step.place) == 1, f"{step.file}: not one line {step.place!r}"
        number = [line.strip() for line in lines].index(step.place)
        lines.insert(number + (step.how == "after"), step.content)
        path.write_text("".join(lines), encoding="utf-8")
        return ""

    def run(self, commands: str) -> str:
        answer = run_in(self.folder, ["bash", "-euo", "pipefail", "-c", commands])
        assert answer.returncode == 0, answer.stdout
        return answer.stdout


def test_there_are_templates_for_a_method_a_task_and_a_data_set() -> None:
    assert list(sections()) == ["Add a method", "Add a task", "Add a data set"]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("Add a method", ["passed", "averaged: hypergradient method", "Memory:"]),
        ("Add a task", ["passed", "ridge: task", "record.json"]),
        ("Add a data set", ["images_sha256='b7abe449", "1 passed", "stripes: data set"]),
    ],
)
def test_following_a_section_works(section: str, expected: list[str], tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    said = "".join(copy.follow(step) for step in steps(sections()[section]))
    for words in expected:
        assert words in said
    assert "failed" not in said
    written = [step.file for step in steps(sections()[section]) if step.file.endswith(".py")]
    style = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *written], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert style.returncode == 0, style.stdout
    kept = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", *written],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert kept.returncode == 0, kept.stdout
