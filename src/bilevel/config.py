"""config.yaml as typed settings: its structure here, without torch; tasks' and methods' own settings with `check`."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from bilevel import plain_yaml
from bilevel.registry import all_method_names, method_names, own_method_names, task_names, teacher_names
from bilevel.settings import DECK, NAME, Count, SettingsError, explain

MAX_SEED = 2**31 - 1
MAX_SEEDS = 100_000
_LONGEST_FOLDER = 200  # characters; file systems allow 255, and a log or a temporary file adds to it
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def _portable(name: str) -> str:
    if _RESERVED.fullmatch(name):
        raise ValueError("a folder of this name cannot be copied to every system; choose another name")
    return name


Name = Annotated[str, Field(pattern=NAME, max_length=80), AfterValidator(_portable)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


def _one_of(value: str, known: tuple[str, ...], what: str) -> str:
    if value not in known:
        raise ValueError(f"unknown {what}; there are {', '.join(known)}")
    return value


def _known_data_set(value: str) -> str:
    from bilevel import data

    return _one_of(value, data.names(), "data set")


DataName = Annotated[str, AfterValidator(_known_data_set)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Data(_Strict):
    """Where data sets are looked for.

    directories: folders that hold data sets, searched in this order before anything else.
    download: whether an official address may be used for what is found nowhere else.
    """

    directories: list[str] = []
    download: bool = False


class Compute(_Strict):
    """On what runs compute; recorded with every result.

    device: `auto` is CUDA where there is one. threads: of one run, whatever the number of cores.
    """

    device: Literal["auto", "cpu", "cuda"] = "cpu"
    threads: Count = 1


class Method(BaseModel):
    """A hypergradient method, or one of the task's own; every other key is a setting of its own.

    task: settings of the task that this entry has otherwise than the study, on the same draws.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    method: str
    task: dict[str, Any] = {}

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        return _one_of(value, all_method_names(), "method")

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings as written."""
        return dict(self.model_extra or {})


class Teacher(_Strict):
    """A model that students are distilled from, trained once for every seed that a study asks for.

    teacher: its kind. data: name of a data set, for kinds that use one.
    shared: whether one teacher, that of seed 0, serves all seeds, for experiments whose samples are always the same.
    settings: of the kind; what is not given has its default.
    """

    teacher: str
    data: DataName | None = None
    shared: bool = False
    settings: dict[str, Any] = {}

    @field_validator("teacher")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        return _one_of(value, teacher_names(), "kind of teacher")


class Study(_Strict):
    """One task with several methods on the same draws.

    data: name of a data set, for tasks that use one.
    teacher: name of a teacher, for tasks that distill one; each seed has its own unless the teacher is shared.
    seeds: how many (0, 1, …), or which. seeds_per_job: how many of them one job runs together.
    settings: of the task; what is not given has the task's default.
    methods: a name for each, used in files, tables and claims.
    """

    deck: Annotated[str, Field(pattern=DECK)]
    task: str
    data: DataName | None = None
    teacher: Name | None = None
    seeds: Count | Annotated[list[Seed], Field(min_length=1)] = Field(union_mode="left_to_right")
    seeds_per_job: Count = 1
    settings: dict[str, Any] = {}
    methods: Annotated[dict[Name, Method], Field(min_length=1)]

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        return _one_of(value, task_names(), "task")

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        seeds = value if isinstance(value, list) else [value]
        least = 0 if isinstance(value, list) else 1
        if not seeds or any(type(seed) is not int or not least <= seed <= MAX_SEED for seed in seeds):
            raise ValueError(f"expected a number of seeds from 1, or a list of seeds from 0 to {MAX_SEED}")
        if len(set(seeds)) < len(seeds):
            raise ValueError("every seed may be given once only")
        if len(seeds) > MAX_SEEDS or (isinstance(value, int) and value > MAX_SEEDS):
            raise ValueError(f"expected {MAX_SEEDS} seeds at most")
        return value

    @model_validator(mode="after")
    def _folders_have_names(self) -> Study:
        longest = max((seeds_name(job) for job in self.jobs()), key=len)
        if len(longest) > _LONGEST_FOLDER:
            raise ValueError(
                f"seeds_per_job: the seeds of a job are the name of its folder, and {longest[:20]}… is too long for "
                f"one: expected {_LONGEST_FOLDER} characters at most, found {len(longest)}; use fewer seeds per job"
            )
        return self

    @property
    def seed_list(self) -> list[int]:
        """All seeds, in order."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    def jobs(self) -> list[list[int]]:
        """Seeds of each job."""
        seeds, size = self.seed_list, self.seeds_per_job
        return [seeds[start : start + size] for start in range(0, len(seeds), size)]


class Run(NamedTuple):
    """One job: seeds of one (study, method), and the folder of its files under `results/runs`."""

    study: str
    method: str
    seeds: list[int]

    @property
    def folder(self) -> str:
        """`<study>/<method>/<first seed>[-<last seed>]`."""
        return f"{self.study}/{self.method}/{seeds_name(self.seeds)}"


class Config(_Strict):
    """The whole of config.yaml, with the presets laid over it."""

    data: Data = Data()
    compute: Compute = Compute()
    teachers: dict[Name, Teacher] = {}
    studies: Annotated[dict[Name, Study], Field(min_length=1)]

    @field_validator("studies")
    @classmethod
    def _no_study_is_called_teachers(cls, value: dict[str, Study]) -> dict[str, Study]:
        if "teachers" in value:
            raise ValueError("teachers: the files of teachers are called so; choose another name for the study")
        return value

    def runs(self) -> Iterator[Run]:
        """Every job that the configuration asks for."""
        for name, study in self.studies.items():
            for method in study.methods:
                for seeds in study.jobs():
                    yield Run(name, method, seeds)

    def teachers_of(self, run: Run) -> list[str]:
        """`<teacher>/<seed>` of those that the run's students learn from: one for each seed, or the one they share."""
        name = self.studies[run.study].teacher
        if name is None:
            return []
        return [f"{name}/{seed}" for seed in ([0] if self.teachers[name].shared else run.seeds)]

    def spec(self, study: str, method: str) -> str:
        """What one run depends on, as the JSON text that `bilevel run` takes."""
        chosen = self.studies[study]
        entry = chosen.methods[method]
        return json.dumps(
            {
                "deck": chosen.deck,
                "task": chosen.task,
                "settings": {**chosen.settings, **entry.task},
                "method": entry.method,
                "method_settings": entry.settings,
                **({} if chosen.teacher is None else {"teacher": chosen.teacher}),
                "device": self.compute.device,
                "threads": self.compute.threads,
            },
            sort_keys=True,
        )

    def teacher_spec(self, name: str) -> str:
        """What one teacher depends on, as the JSON text that `bilevel teacher` takes."""
        chosen = self.teachers[name]
        return json.dumps(
            {
                "teacher": chosen.teacher,
                "settings": chosen.settings,
                "device": self.compute.device,
                "threads": self.compute.threads,
            },
            sort_keys=True,
        )


def seeds_name(seeds: list[int]) -> str:
    """Seeds as a part of a path: `3`, `0-4`, or `1,5,7` where they do not follow one another."""
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))


def read(values: Mapping[str, Any], source: str = "config.yaml") -> Config:
    """The configuration from what YAML gave; SettingsError with a line for each thing that is wrong."""
    try:
        config = Config.model_validate(dict(values))
    except ValidationError as error:
        raise SettingsError(f"{source} cannot be used:\n{_indented(explain(error))}") from None
    if unknown := _unknown_teachers(config):
        raise SettingsError(f"{source} cannot be used:\n{_indented(unknown)}")
    return config


def check_files(paths: Iterable[Path]) -> None:
    """SettingsError where a file of the configuration is more than plain YAML.

    Snakemake keeps the last of two equal keys without a word, and carries out Python in files that say
    `__use_yte__`; neither is taken here.
    """
    for path in paths:
        _values(path)


def layered(paths: Iterable[Path]) -> dict[str, Any]:
    """What YAML files say, each laid over those before it, as Snakemake does it; SettingsError as `check_files`."""
    result: dict[str, Any] = {}
    for path in paths:
        values = _values(path)
        if not isinstance(values, Mapping | None):
            raise SettingsError(f"{path} cannot be used:\n  expected keys and values, found {type(values).__name__}")
        result = _laid_over(result, values or {})
    return result


def _laid_over(below: Any, above: Any) -> Any:
    if not isinstance(above, Mapping):
        return above
    kept = below if isinstance(below, Mapping) else {}
    return {**kept, **{key: _laid_over(kept.get(key), value) for key, value in above.items()}}


def _values(path: Path) -> Any:
    """What a YAML file of plain values says."""
    try:
        values = plain_yaml.parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be used:\n{_indented(str(error))}") from None
    if isinstance(values, dict) and "__use_yte__" in values:
        raise SettingsError(f"{path} cannot be used:\n  __use_yte__: code in a configuration is not allowed")
    return values


def _unknown_teachers(config: Config) -> str:
    known = ", ".join(config.teachers) or "none"
    return "\n".join(
        f"studies.{name}.teacher: {study.teacher!r} is not under teachers; there are {known}"
        for name, study in config.studies.items()
        if study.teacher is not None and study.teacher not in config.teachers
    )


def check(config: Config, source: str = "config.yaml") -> None:
    """Check also what tasks and methods say of their own settings, and that data directories are there.

    Imports torch. Raises SettingsError.
    """
    from bilevel import data
    from bilevel.tasks import create_method, task_class

    found = [
        f"data.directories.{number}: no such directory: {path}"
        for number, path in enumerate(config.data.directories)
        if not Path(path).expanduser().is_dir()
    ]
    for name, chosen in config.teachers.items():
        found += _checked_teacher(chosen, f"teachers.{name}")
    for name, study in config.studies.items():
        counts = {} if study.data is None else data.counts(study.data)
        in_settings = _checked_task(study, {}, counts, f"studies.{name}", "settings")
        found += in_settings
        found += _checked_need_of_teacher(config, study, f"studies.{name}.teacher", settings_fit=not in_settings)
        for label, method in study.methods.items():
            in_task = in_settings
            if method.task and not in_settings:
                in_task = _checked_task(study, method.task, counts, f"studies.{name}", f"methods.{label}.task")
                found += in_task
            try:
                created = create_method(study.task, method.method, method.settings)
                if not in_task:
                    task = task_class(study.task)
                    task.check_method(task.read_settings({**study.settings, **method.task}), created)
            except SettingsError as error:
                found += _prefixed(f"studies.{name}.methods.{label}", error)
    if found:
        lines = "\n".join(found)
        raise SettingsError(f"{source} cannot be used:\n{_indented(lines)}")


def check_name(name: str) -> str:
    """A name as those of studies are: that of a folder; SettingsError where it is none."""
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise SettingsError(explain(error, "name")) from None


def check_writable(folder: str) -> None:
    """SettingsError where results cannot be written to `folder`."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")
    except OSError as error:
        raise SettingsError(f"{path.absolute()}: results cannot be written there: {error.strerror}") from None


def schema() -> dict[str, Any]:
    """JSON schema of config.yaml with every task's and method's settings spelled out. Imports torch."""
    from bilevel.tasks import method_schema, task_class

    result = Config.model_json_schema()
    own = [(task, name) for task in task_names() for name in own_method_names(task) if name not in method_names()]
    result["$defs"]["Method"]["oneOf"] = [
        *(method_schema(None, name) for name in method_names()),
        *(method_schema(task, name) for task, name in own),
    ]
    result["$defs"]["Study"]["allOf"] = [
        {
            "if": {"properties": {"task": {"const": name}}},
            "then": {"properties": {"settings": task_class(name).settings_class.model_json_schema()}},
        }
        for name in task_names()
    ]
    return result


def _checked_task(
    study: Study, other: Mapping[str, Any], counts: Mapping[str, int], prefix: str, place: str
) -> list[str]:
    """What is wrong with the task's settings, which stand at that place of a study."""
    from bilevel.tasks import task_class

    task = task_class(study.task)
    try:
        check_kind(study.data, task.data_kind)
        task.check_data(task.read_settings({**study.settings, **other}), study.data, counts)
    except SettingsError as error:
        return _prefixed_on_data(prefix, place, error)
    return []


def check_kind(name: str | None, wanted: str) -> None:
    """SettingsError where a data set is not made of images, or of text, as is wanted."""
    from bilevel import data

    if name is not None and (found := data.kind(name)) != wanted:
        raise SettingsError(f"data: a data set of {wanted} is needed, and {name} is one of {found}")


def _checked_teacher(chosen: Teacher, prefix: str) -> list[str]:
    from bilevel import data
    from bilevel.teachers import teacher_class

    kind = teacher_class(chosen.teacher)
    counts = {} if chosen.data is None else data.counts(chosen.data)
    try:
        check_kind(chosen.data, kind.data_kind)
        kind.check_data(kind.read_settings(chosen.settings), chosen.data, counts)
    except SettingsError as error:
        return _prefixed_on_data(prefix, "settings", error)
    return []


def _checked_need_of_teacher(config: Config, study: Study, prefix: str, *, settings_fit: bool) -> list[str]:
    from bilevel.tasks import task_class
    from bilevel.teachers import teacher_class

    task = task_class(study.task)
    if task.teacher_kind is None:
        extra = f"{prefix}: {study.task} distills no teacher, got {study.teacher!r}; leave it out"
        return [] if study.teacher is None else [extra]
    if study.teacher is None:
        return [f"{prefix}: {study.task} needs a teacher; name one that is under teachers"]
    teacher = config.teachers[study.teacher]
    if teacher.teacher != task.teacher_kind:
        return [
            f"{prefix}: {study.task} distills teachers of the kind {task.teacher_kind!r}, and {study.teacher} is of "
            f"the kind {teacher.teacher!r}; name another one"
        ]
    if teacher.data != study.data:
        return [
            f"{prefix}: {study.teacher} is trained on {teacher.data}, and the study's data is {study.data}; name a "
            "teacher of the same data"
        ]
    try:
        if settings_fit:
            chosen = teacher_class(teacher.teacher).read_settings(teacher.settings)
            task.check_teacher(task.read_settings(study.settings), chosen)
    except SettingsError as error:
        lines = (line.removeprefix("teacher: ") for line in str(error).splitlines())
        return [f"{prefix}: {study.teacher}: {line}" for line in lines]
    return []


def _prefixed_on_data(prefix: str, place: str, error: SettingsError) -> list[str]:
    """What is said of `data` is no setting of the task: the key stands beside `settings`."""
    lines = _prefixed(f"{prefix}.{place}", error)
    return [line.replace(f"{prefix}.{place}.data: ", f"{prefix}.data: ", 1) for line in lines]


def _prefixed(prefix: str, error: SettingsError) -> list[str]:
    # what is wrong with settings together has no key of its own
    return [prefix + line if line.startswith(":") else f"{prefix}.{line}" for line in str(error).splitlines()]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
