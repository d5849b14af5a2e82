"""Claims as data, and the verdicts that follow from paired statistics over seeds.

`claims.yaml` states each claim: two sides, a metric, a direction, the slide's figures. A verdict is computed
for every study that a claim names; none is typed in by hand.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bilevel import plain_yaml
from bilevel.errors import UserError
from bilevel.files import write_together
from bilevel.statistics import (
    Paired,
    holm,
    paired_difference,
    paired_equivalence,
    seeds_to_decide,
    seeds_to_decide_equivalence,
)
from bilevel.tables import csv_text, read_table

LEVEL = 0.05
"""An adjusted p below this decides a difference or an equivalence."""

COLUMNS = (
    "deck",
    "source",
    "id",
    "study",
    "statement",
    "metric",
    "better",
    "published",
    "effect",
    "low",
    "high",
    "n",
    "p",
    "p_adjusted",
    "verdict",
    "seeds_to_decide",
    "note",
)

Verdict = Literal["supported", "contradicted", "undecided", "not run"]
Text = Annotated[str, Field(min_length=1)]


class ClaimsError(UserError, ValueError):
    """A claims file that cannot be used: a line for each mistake, with entry, key and what is allowed."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Side(_Strict):
    """One side of a comparison: a method by its name in every study, or by study where the names differ."""

    method: str | dict[str, str]

    @field_validator("method", mode="before")
    @classmethod
    def _name_or_names(cls, value: object) -> object:
        names = list(value.values()) if isinstance(value, dict) else [value]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("should be the name of a method, or a mapping from studies to names")
        return value

    def in_study(self, study: str) -> str:
        """Name of the method in this study."""
        return self.method if isinstance(self.method, str) else self.method[study]


class Published(_Strict):
    """The slide's figures, in the slide's unit (which need not be the metric's)."""

    left: float
    right: float
    unit: str = ""

    def __str__(self) -> str:
        """For people: `73.5 vs 69.8 %`."""
        return f"{self.left:g} vs {self.right:g} {self.unit}".rstrip()


class Claim(_Strict):
    """What every kind of claim states: something of the method `left` and a metric, in each of some studies.

    `source` is `deck` for what a slide says, and `project` for what was asked here in addition.
    """

    id: Annotated[str, Field(pattern=r"^\d{3}-[a-z0-9]+(-[a-z0-9]+)*$")]
    deck: Annotated[str, Field(pattern=r"^\d{3}$")]
    source: Literal["deck", "project"]
    statement: Text
    metric: Text
    better: Literal["higher", "lower"]
    left: Side
    studies: Annotated[list[Text], Field(min_length=1)]
    note: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> "Claim":
        if not self.id.startswith(f"{self.deck}-"):
            raise ValueError(f"id should begin with its deck, {self.deck}-")
        if len(set(self.studies)) != len(self.studies):
            raise ValueError("studies should be different from one another")
        _check_side("left", self.left, self.studies)
        return self


class Comparison(Claim):
    """Left is better than right."""

    right: Side
    published: Published | None = None

    @model_validator(mode="after")
    def _two_sides(self) -> "Comparison":
        if self.source == "project" and self.published is not None:
            raise ValueError("published is for what a slide says; leave it out where source is project")
        _check_side("right", self.right, self.studies)
        for study in self.studies:
            if self.left.in_study(study) == self.right.in_study(study):
                raise ValueError(f"left and right are the same method in {study}")
        return self


def _check_side(name: str, side: Side, studies: list[str]) -> None:
    if isinstance(side.method, dict) and set(side.method) != set(studies):
        raise ValueError(f"{name}.method should name a method for each of: {', '.join(studies)}")


class Difference(Comparison):
    """Left is better than right by a paired two-sided t-test over seeds."""

    kind: Literal["difference"]


class Equivalence(Comparison):
    """Left is as good as right: by a paired test (TOST) their mean difference is within `margin`, in the metric's unit.

    There is no better side: `better` is `equal` and need not be given.
    """

    kind: Literal["equivalence"]
    better: Literal["equal"] = "equal"  # type: ignore[assignment]  # the one kind without a direction
    margin: Annotated[float, Field(gt=0)]


class Count(Comparison):
    """Left is not worse than right in any seed: for quantities without spread, such as products counted."""

    kind: Literal["count"]


class Bound(Claim):
    """Left is not worse than a fixed number in any seed: at most `limit` where lower is better, else at least."""

    kind: Literal["bound"]
    limit: float


_KINDS: dict[str, type[Claim]] = {
    "difference": Difference,
    "equivalence": Equivalence,
    "count": Count,
    "bound": Bound,
}


def load(path: Path) -> list[Claim]:
    """Read a claims file.

    Raises:
        ClaimsError: the file is missing, is not YAML, or entries are wrong: all of them are named.
    """
    try:
        entries = plain_yaml.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClaimsError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClaimsError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(entries, list):
        raise ClaimsError(f"{path}: should be a list of claims, each with the keys {_allowed(Difference)}")
    claims: list[Claim] = []
    wrong: list[str] = []
    for number, entry in enumerate(entries, start=1):
        parsed = _parse(entry)
        if isinstance(parsed, Claim):
            claims.append(parsed)
        else:
            wrong.extend(f"{path}: {_entry_name(number, entry)}: {line}" for line in parsed)
    wrong.extend(f"{path}: id {name} is used more than once" for name in _repeated(claims))
    if wrong:
        raise ClaimsError("\n".join(wrong))
    return claims


def evaluate(claims: Sequence[Claim], scalars: pd.DataFrame) -> pd.DataFrame:
    """A verdict for each claim in each of its studies, in the order of the claims.

    Values are paired on the seed; seeds that diverged or are missing on either side are left out, and named
    in `note`. `effect` is the mean of left minus right in the metric's own unit, `low` and `high` bound its
    95 % t-interval (not adjusted for the number of tests).

    A `difference` is *supported* or *contradicted* where the p of the paired two-sided t-test, adjusted by
    Holm's procedure, is below `LEVEL`; otherwise *undecided*, and `seeds_to_decide` is the number of seeds
    with which a test at `LEVEL` / m has 80 % power if effect and spread are truly those observed. Here m
    is the number of tests in the family, and `LEVEL` / m the level that decides whatever becomes of the
    others. A family is all differences and equivalences of one deck and one source, over all studies, so that
    questions asked here in addition do not cost the deck's own claims their power.

    An `equivalence` is *supported* where the larger p of two one-sided paired t-tests against its `margin`, adjusted
    in the same family, is below `LEVEL`, *contradicted* where the 95 % t-interval lies outside the margin altogether,
    otherwise *undecided*; `seeds_to_decide` is then the number of seeds with which, if effect and spread are truly
    those observed, the test at `LEVEL` / m has 80 % power, or, for an effect outside the margin, the interval lies
    outside with that probability. Without any spread the limit of the test decides (`paired_equivalence`). The margin
    is named in `note`.

    A `count` is *supported* where left is not worse than right in any seed, *contradicted* where it is worse
    in every seed, otherwise *undecided*; it has no interval and no p. A `bound` is a count against its `limit`, and
    its `effect` the mean of left minus the limit.

    Where a study or a method has no runs, or the metric was not measured, the verdict is *not run*.

    Args:
        claims: from `load`.
        scalars: columns study, method, seed, status, metric, value, as `tables.read_table` reads them.

    Returns:
        One row for each (claim, study), with the columns `COLUMNS`.
    """
    runs = _index(scalars)
    cases = [_case(claim, study, runs) for claim in claims for study in claim.studies]
    tests = _adjust(cases)
    rows = [_row(case, test) for case, test in zip(cases, tests, strict=True)]
    return pd.DataFrame(rows, columns=[*COLUMNS]).astype({"n": "int64", "seeds_to_decide": "Int64"})


def write(claims_file: Path, scalars_file: Path, output: Path) -> None:
    """Judge the claims of a file by the runs of `scalars.csv`, and write the verdicts to the file `output`.

    Raises:
        ClaimsError: see `load`.
        TableError: see `tables.read_table`.
        FileError: the output cannot be written.
    """
    verdicts = evaluate(load(claims_file), read_table(scalars_file, "scalars"))
    write_together(output.parent, {output.name: csv_text(verdicts)})


def _parse(entry: object) -> Claim | list[str]:
    """The claim, or what is wrong with it."""
    if not isinstance(entry, dict):
        return [f"should be a mapping with the keys {_allowed(Difference)}, got {entry!r}"]
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        return [f"kind: should be one of {', '.join(_KINDS)}, got {kind!r}"]
    try:
        return _KINDS[kind].model_validate(entry)
    except ValidationError as error:
        return [_explain(dict(item), _KINDS[kind]) for item in error.errors()]


def _explain(item: Mapping[str, Any], model: type[Claim]) -> str:
    where = ".".join(map(str, item["loc"]))
    prefix = f"{where}: " if where else ""
    if item["type"] == "extra_forbidden":
        parts: dict[object, type[BaseModel]] = {"left": Side, "right": Side, "published": Published}
        return f"{prefix}unknown key; allowed: {_allowed(parts.get(item['loc'][0], model))}"
    if item["type"] == "missing":
        return f"{prefix}this key is required"
    if not where:
        return str(item["ctx"]["error"])
    told = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"]
    return f"{prefix}{told[0].lower()}{told[1:]}, got {item['input']!r}"


def _allowed(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)


def _entry_name(number: int, entry: object) -> str:
    name = entry.get("id") if isinstance(entry, dict) else None
    return f"entry {number} ({name})" if name else f"entry {number}"


def _repeated(claims: Iterable[Claim]) -> list[str]:
    names = [claim.id for claim in claims]
    return sorted({name for name in names if names.count(name) > 1})


@dataclass
class _Method:
    """What the runs of one (study, method) say: seed -> status, and metric -> seed -> value."""

    status: dict[int, str] = field(default_factory=dict)
    values: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))

    def lacks(self, seed: int, metric: str) -> str:
        """Why there is no value for this seed; empty where there is one."""
        if self.status.get(seed) == "diverged":
            return "diverged"
        if seed not in self.status:
            return "missing"
        return "" if seed in self.values.get(metric, {}) else "without a value"


_Runs = Mapping[str, Mapping[str, _Method]]


@dataclass(frozen=True)
class _Case:
    """One claim in one study: values of the same seeds on both sides, and what there is to say about them."""

    claim: Claim
    study: str
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    ran: bool
    remark: str


@dataclass(frozen=True)
class _Test:
    """The paired comparison of a case; NaN and 0 where a test takes no part in a family."""

    paired: Paired
    p_adjusted: float = math.nan
    family: int = 0


def _index(scalars: pd.DataFrame) -> _Runs:
    runs: dict[str, dict[str, _Method]] = defaultdict(lambda: defaultdict(_Method))
    columns = ["study", "method", "seed", "status", "metric", "value"]
    for study, method, seed, status, metric, value in scalars[columns].itertuples(index=False, name=None):
        found = runs[study][method]
        found.status[seed] = status
        if math.isfinite(value):
            found.values[metric][seed] = value
    return runs


def _case(claim: Claim, study: str, runs: _Runs) -> _Case:
    nothing = np.empty(0)
    names = [side.in_study(study) for side in _sides(claim)]
    absent = _absent(claim.metric, study, names, runs)
    if absent:
        return _Case(claim, study, nothing, nothing, ran=False, remark=absent)
    sides = [runs[study][name] for name in names]
    pairs: list[list[float]] = []
    left_out: list[str] = []
    for seed in sorted({seed for side in sides for seed in side.status}):
        lacks = [(name, side.lacks(seed, claim.metric)) for name, side in zip(names, sides, strict=True)]
        reasons = [f"{name} {why}" for name, why in lacks if why]
        if reasons:
            left_out.append(f"{seed} ({', '.join(reasons)})")
        else:
            pairs.append([side.values[claim.metric][seed] for side in sides])
    remark = f"Seeds left out: {', '.join(left_out)}." if left_out else ""
    values = np.array(pairs, dtype=np.float64).reshape(-1, len(sides))
    right = np.full(len(values), claim.limit) if isinstance(claim, Bound) else values[:, 1]
    return _Case(claim, study, values[:, 0], right, ran=True, remark=remark)


def _sides(claim: Claim) -> list[Side]:
    return [claim.left, claim.right] if isinstance(claim, Comparison) else [claim.left]


def _absent(metric: str, study: str, methods: Iterable[str], runs: _Runs) -> str:
    """Why there is nothing to compare; empty where there is something."""
    if study not in runs:
        return f"Study {study} has no runs."
    for name in methods:
        if name not in runs[study]:
            return f"Method {name} has no runs in study {study}."
        found = runs[study][name]
        if metric not in found.values and "ok" in found.status.values():
            return f"Metric {metric} was not measured for method {name} in study {study}."
    return ""


def _adjust(cases: Sequence[_Case]) -> list[_Test]:
    tests = [_Test(_paired(case)) for case in cases]
    families: dict[tuple[str, str], list[int]] = defaultdict(list)
    for position, case in enumerate(cases):
        if isinstance(case.claim, Difference | Equivalence):
            families[case.claim.deck, case.claim.source].append(position)
    for positions in families.values():
        raw = [tests[position].paired.p for position in positions]
        size = len(raw) - sum(map(math.isnan, raw))
        for position, adjusted in zip(positions, holm(raw), strict=True):
            tests[position] = _Test(tests[position].paired, float(adjusted), size)
    return tests


def _paired(case: _Case) -> Paired:
    if isinstance(case.claim, Equivalence):
        return paired_equivalence(case.left, case.right, case.claim.margin)
    return paired_difference(case.left, case.right)


def _row(case: _Case, test: _Test) -> dict[str, Any]:
    claim, paired = case.claim, test.paired
    verdict, seeds, remark = _judge(case, test)
    row = {
        "deck": claim.deck,
        "source": claim.source,
        "id": claim.id,
        "study": case.study,
        "statement": claim.statement,
        "metric": claim.metric,
        "better": claim.better,
        "published": _published(claim),
        "effect": paired.effect,
        "n": paired.n,
        "verdict": verdict,
        "seeds_to_decide": seeds,
        "note": " ".join(filter(None, (claim.note.strip(), _margin(claim), case.remark, remark))),
    }
    if isinstance(claim, Difference | Equivalence):
        row |= {"low": paired.low, "high": paired.high, "p": paired.p, "p_adjusted": test.p_adjusted}
    return row


def _margin(claim: Claim) -> str:
    return f"Margin: ±{claim.margin:g}." if isinstance(claim, Equivalence) else ""


def _published(claim: Claim) -> str:
    if isinstance(claim, Bound):
        return f"tested as {'at most' if claim.better == 'lower' else 'at least'} {_figure(claim.limit)}"
    return str(claim.published or "") if isinstance(claim, Comparison) else ""


def _figure(value: float) -> str:
    """0.000001 as 10⁻⁶."""
    exponent = math.log10(value) if value > 0 else 0.0
    if abs(exponent) < 4 or exponent != round(exponent):
        return f"{value:g}"
    return "10" + f"{exponent:.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _judge(case: _Case, test: _Test) -> tuple[Verdict, int | None, str]:
    """Verdict, number of seeds that would decide, and a remark on why there is no decision."""
    if not case.ran:
        return "not run", None, ""
    if isinstance(case.claim, Difference):
        return _judge_difference(case.claim, test)
    if isinstance(case.claim, Equivalence):
        return _judge_equivalence(case.claim, test)
    return _judge_count(case)


def _judge_difference(claim: Claim, test: _Test) -> tuple[Verdict, int | None, str]:
    paired = test.paired
    if math.isnan(paired.p):
        few = f"A t-test needs at least two seeds, {paired.n} can be compared."
        return "undecided", None, few if paired.n < 2 else "All differences are equal: no t-test is defined."
    if test.p_adjusted >= LEVEL:
        return "undecided", seeds_to_decide(paired.effect, paired.sd, alpha=LEVEL / test.family), ""
    better = (paired.effect > 0) == (claim.better == "higher")
    return ("supported" if better else "contradicted"), None, ""


def _judge_equivalence(claim: Equivalence, test: _Test) -> tuple[Verdict, int | None, str]:
    paired, margin = test.paired, claim.margin
    if math.isnan(paired.p):
        return "undecided", None, f"A t-test needs at least two seeds, {paired.n} can be compared."
    remark = "All differences are equal." if paired.sd == 0 else ""
    if test.p_adjusted < LEVEL:
        return "supported", None, remark
    if paired.low > margin or paired.high < -margin:
        return "contradicted", None, remark
    if abs(paired.effect) < margin:
        level = LEVEL / test.family
        return "undecided", seeds_to_decide_equivalence(paired.effect, paired.sd, margin, alpha=level), remark
    return "undecided", seeds_to_decide(abs(paired.effect) - margin, paired.sd, alpha=LEVEL), remark


def _judge_count(case: _Case) -> tuple[Verdict, int | None, str]:
    if len(case.left) == 0:
        return "undecided", None, "No seed can be compared."
    left, right = (case.left, case.right) if case.claim.better == "higher" else (-case.left, -case.right)
    if np.all(left >= right):
        return "supported", None, ""
    if np.all(left < right):
        return "contradicted", None, ""
    return "undecided", None, "Worse in some seeds, not in others."
