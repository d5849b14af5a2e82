"""The example of the README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bilevel.hypergradients import names

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_examples_run() -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["estimate"].hypergradient.shape == (100,)
    assert scope["estimate"].hypergradient.abs().sum() > 0
    assert scope["estimate"].cost.jvps == 99


def test_table_names_every_method() -> None:
    assert set(re.findall(r"^\| `([a-z_]+)", README, flags=re.MULTILINE)) == set(names())
