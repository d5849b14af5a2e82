"""YAML of plain values: no constructors of objects, and no key twice."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys without a word; something stated twice is a mistake."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # before `<<` is carried out, by which a key may well be there twice
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                text = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            seen.add(name)
        return node


def parse(text: str) -> Any:
    """What a YAML text says.

    Raises yaml.YAMLError: the text is not YAML, asks for an object of Python (`!!python/...`), or has a key twice.
    """
    return yaml.load(text, Loader=_Loader)
