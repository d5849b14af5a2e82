"""English and German lines of Home Assistant's user interface, from the translations in its wheel."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bilevel.data.readers import read_content
from bilevel.data.spec import Decoded, Wheel, decoded_text
from bilevel.errors import DataError

_ENGLISH = re.compile(r"(homeassistant/components/[^/]+/translations/(?:\w+\.)?)en\.json")


def read_home_assistant(wheel: Wheel, paths: Mapping[str, Path]) -> dict[str, Decoded]:
    """Read the one split, `all`, from the wheel in `paths`, file name -> path.

    A pair is two strings under the same keys of the catalogues `translations/en.json` and `translations/de.json` of a
    component, or of `translations/<platform>.en.json` and `.de.json`. Pairs are in the order of the catalogues'
    names and, within one, of the keys.

    A line is a string as published, with whatever is in it (placeholders such as {name}, Markdown, addresses,
    upper case), except that each run of whitespace, line breaks among them, is one space, and that there is none at
    its ends. Dropped, case aside: pairs that are the same in both languages, and pairs of which either line occurred
    before, so that no line stands twice in its language and none gets into two parts of a split at random.

    Raises:
        DataError: the file is not the wheel that is known, or cannot be read.
    """
    (path,) = paths.values()
    content = read_content(path)
    if (found := hashlib.sha256(content).hexdigest()) != wheel.sha256:
        raise DataError(
            f"{path}: expected the wheel of {wheel.requirement} with sha256 {wheel.sha256}, found {len(content)} bytes "
            f"with sha256 {found}; delete it, then run `{wheel.advice}`"
        )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pairs = list(_distinct(_pairs(archive)))
    return {"all": decoded_text([en for en, _ in pairs], [de for _, de in pairs], path, path)}


def _pairs(archive: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    names = set(archive.namelist())
    for name in sorted(names):
        match = _ENGLISH.fullmatch(name)
        if match is None or (other := f"{match[1]}de.json") not in names:
            continue
        english, german = (dict(_strings(json.loads(archive.read(file)))) for file in (name, other))
        for keys in sorted(english.keys() & german.keys()):
            yield _line(english[keys]), _line(german[keys])


def _strings(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every string in nested dictionaries under the keys that lead to it."""
    if isinstance(tree, dict):
        for key, part in tree.items():
            yield from _strings(part, (*keys, key))
    elif isinstance(tree, str):
        yield keys, tree


def _line(text: str) -> str:
    return " ".join(text.split())


def _distinct(pairs: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    seen_en: set[str] = set()
    seen_de: set[str] = set()
    for pair in pairs:
        en, de = pair[0].lower(), pair[1].lower()
        if not en or not de or en == de or en in seen_en or de in seen_de:
            continue
        seen_en.add(en)
        seen_de.add(de)
        yield pair
