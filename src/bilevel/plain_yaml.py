"""YAML of plain values: no constructors of objects, no key twice, nothing within itself."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys without a word; something stated twice is a mistake."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[str | None] = []  # anchors of the values that are being read

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # so in PyYAML's stubs
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            text = f"*{event.anchor} stands within what it stands for"
            mark: Any = event.start_mark
            raise yaml.composer.ComposerError(None, None, text, mark)
        self._open.append(None if isinstance(event, yaml.AliasEvent) else event.anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        return node

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

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):  # PyYAML takes what looks like a date for one, a 13th month too
            kind = node.tag.rpartition(":")[2]
            text = f"{str(node.value)[:40]!r} cannot be read as {kind}; put text between quotes"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from None


def parse(text: str) -> Any:
    """What a YAML text says.

    Raises yaml.YAMLError: the text is not YAML, asks for an object of Python (`!!python/...`), has a key twice or a
    value that is none of its kind (such as a 13th month), holds itself, or is nested hundreds of times.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("values are nested too deeply") from None
