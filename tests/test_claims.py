"""Claims: files that cannot be used are refused by name, and verdicts are those the numbers give."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel.claims import (
    COLUMNS,
    LEVEL,
    Bound,
    Claim,
    ClaimsError,
    Comparison,
    Count,
    Difference,
    Equivalence,
    evaluate,
    load,
    write,
)
from bilevel.errors import UserError
from bilevel.statistics import (
    holm,
    paired_difference,
    paired_equivalence,
    seeds_to_decide,
    seeds_to_decide_equivalence,
)
from bilevel.tables import TableError, csv_text

REPORT = Path(__file__).parents[1] / "report" / "claims.yaml"

ENTRY: dict[str, Any] = {
    "id": "000-new-beats-old",
    "deck": "000",
    "source": "deck",
    "statement": "New is better than old.",
    "kind": "difference",
    "metric": "accuracy",
    "better": "higher",
    "left": {"method": "new"},
    "right": {"method": "old"},
    "studies": ["s"],
}


def claim(**changes: Any) -> Claim:
    entry = ENTRY | changes
    return {"difference": Difference, "count": Count, "bound": Bound}[entry["kind"]].model_validate(entry)


def table(runs: dict[str, Sequence[float]], study: str = "s", metric: str = "accuracy") -> pd.DataFrame:
    """One method a key, values of seeds 0, 1, …; NaN is a seed that diverged."""
    rows = [
        (study, method, seed, "diverged" if math.isnan(value) else "ok", metric, value)
        for method, found in runs.items()
        for seed, value in enumerate(found)
    ]
    return pd.DataFrame(rows, columns=["study", "method", "seed", "status", "metric", "value"])


def only(claim: Claim, scalars: pd.DataFrame) -> dict[str, Any]:
    found = evaluate([claim], scalars)
    assert list(found.columns) == list(COLUMNS)
    assert len(found) == 1
    return dict(found.iloc[0])


# --- the file


def written(tmp_path: Path, *entries: object) -> Path:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(list(entries), allow_unicode=True), encoding="utf-8")
    return path


def test_a_file_is_read_with_its_kinds(tmp_path: Path) -> None:
    full = ENTRY | {
        "id": "000-costs-less",
        "kind": "count",
        "right": {"method": {"s": "old", "t": "older"}},
        "studies": ["s", "t"],
        "published": {"left": 50, "right": 99.5, "unit": "%"},
        "note": "As told.",
    }
    first, second = load(written(tmp_path, ENTRY, full))
    assert isinstance(first, Difference)
    assert isinstance(second, Count)
    assert [second.right.in_study(study) for study in second.studies] == ["old", "older"]
    assert str(second.published) == "50 vs 99.5 %"
    assert load(written(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"better": "up"}, "better: input should be 'higher' or 'lower', got 'up'"),
        ({"kind": "ratio"}, "kind: should be one of difference, equivalence, count, bound, got 'ratio'"),
        ({"kind": None}, "kind: should be one of difference, equivalence, count, bound, got None"),
        ({"colour": "red"}, "colour: unknown key; allowed: id, deck, source, statement, .*kind"),
        ({"left": {"method": "new", "seed": 1}}, "left.seed: unknown key; allowed: method"),
        (
            {"published": {"left": 1, "right": 2, "units": "%"}},
            "published.units: unknown key; allowed: left, right, unit",
        ),
        (
            {"published": {"left": "73.5", "right": 2}},
            "published.left: input should be a valid number, got '73.5'",
        ),
        ({"left": {"method": 7}}, "left.method: should be the name of a method, or a mapping .*, got 7"),
        ({"left": {"method": {"s": 7}}}, "left.method: should be the name of a method, or a mapping"),
        ({"left": {"method": {"t": "new"}}}, "left.method should name a method for each of: s"),
        ({"right": {"method": {"s": "old", "t": "x"}}}, "right.method should name a method for each of: s"),
        ({"right": {"method": "new"}}, "left and right are the same method in s"),
        ({"deck": 0}, "deck: input should be a valid string, got 0"),
        ({"deck": "001"}, "id should begin with its deck, 001-"),
        ({"id": "000 New"}, "id: string should match pattern"),
        ({"source": "slide"}, "source: input should be 'deck' or 'project', got 'slide'"),
        ({"source": "project", "published": {"left": 1, "right": 2}}, "leave it out where source is project"),
        ({"studies": []}, "studies: list should have at least 1 item"),
        ({"studies": ["s", "s"]}, "studies should be different from one another"),
        ({"statement": ""}, "statement: string should have at least 1 character"),
    ],
)
def test_a_wrong_entry_is_named_with_what_is_allowed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    good = ENTRY | {"id": "000-good"}
    path = written(tmp_path, good, ENTRY | changes)
    with pytest.raises(ClaimsError, match=message) as caught:
        load(path)
    assert f"{path}: entry 2 ({changes.get('id', ENTRY['id'])}): " in str(caught.value)
    assert "entry 1" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("key", [key for key in ENTRY if key != "kind"])
def test_every_key_is_required(tmp_path: Path, key: str) -> None:
    with pytest.raises(ClaimsError, match=f"{key}: this key is required"):
        load(written(tmp_path, {name: value for name, value in ENTRY.items() if name != key}))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ClaimsError) as caught:
        load(written(tmp_path, "prose", ENTRY | {"better": "up", "metric": 3}, ENTRY, ENTRY))
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "entry 1: should be a mapping with the keys id, deck" in lines[0]
    assert lines[3].endswith("id 000-new-beats-old is used more than once")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "should be a list of claims"),
        ("id: 000-x", "should be a list of claims"),
        ("- id: [", "is not valid YAML"),
        ("- id: a\n  metric: x\n  id: b", "the key 'id' is there twice"),
        ("- !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_list_of_claims_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ClaimsError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClaimsError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load(tmp_path / "nowhere.yaml")


# --- differences

NEW = [0.81, 0.83, 0.80, 0.84, 0.82]
OLD = [0.71, 0.74, 0.70, 0.73, 0.73]


def test_a_difference_in_the_claimed_direction_is_supported() -> None:
    row = only(claim(published={"left": 82, "right": 72, "unit": "%"}), table({"new": NEW, "old": OLD}))
    expected = paired_difference(NEW, OLD)
    assert row["verdict"] == "supported"
    assert [row[key] for key in ("n", "effect", "low", "high", "p", "p_adjusted")] == [
        5, expected.effect, expected.low, expected.high, expected.p, expected.p,
    ]  # fmt: skip
    assert row["effect"] == pytest.approx(0.098)
    assert row["published"] == "82 vs 72 %"
    assert row["seeds_to_decide"] is pd.NA
    assert row["note"] == ""


@pytest.mark.parametrize(
    ("better", "left", "right", "verdict"),
    [
        ("higher", NEW, OLD, "supported"),
        ("higher", OLD, NEW, "contradicted"),
        ("lower", NEW, OLD, "contradicted"),
        ("lower", OLD, NEW, "supported"),
        ("higher", [0.7, 0.8, 0.9], [0.8, 0.7, 0.85], "undecided"),
    ],
)
def test_direction_decides_the_verdict(better: str, left: list[float], right: list[float], verdict: str) -> None:
    assert only(claim(better=better), table({"new": left, "old": right}))["verdict"] == verdict


def test_values_are_paired_on_the_seed_whatever_their_order() -> None:
    scalars = table({"new": NEW, "old": OLD})
    shuffled = scalars.sample(frac=1, random_state=0)
    assert only(claim(), shuffled) == only(claim(), scalars)
    unpaired = scalars.assign(seed=[0, 1, 2, 3, 4, 4, 3, 2, 1, 0])
    assert only(claim(), unpaired)["p"] > only(claim(), scalars)["p"]


def test_other_metrics_and_studies_stay_out() -> None:
    other = [table({"new": OLD, "old": NEW}, study="t"), table({"new": OLD, "old": NEW}, metric="loss")]
    assert only(claim(), pd.concat([*other, table({"new": NEW, "old": OLD})]))["verdict"] == "supported"


def test_undecided_says_how_many_seeds_would_decide() -> None:
    left, right = [0.7, 0.8, 0.9], [0.69, 0.81, 0.84]
    row = only(claim(), table({"new": left, "old": right}))
    paired = paired_difference(left, right)
    assert row["verdict"] == "undecided"
    assert row["seeds_to_decide"] == seeds_to_decide(paired.effect, paired.sd)


@given(st.lists(st.lists(st.integers(-9, 10), min_size=2, max_size=6), min_size=1, max_size=5))
def test_more_seeds_than_there_are_would_decide(differences: list[list[int]]) -> None:
    claims = [claim(id=f"000-claim-{i}", metric=f"m{i}") for i in range(len(differences))]
    tables = [table({"new": d, "old": [0] * len(d)}, metric=f"m{i}") for i, d in enumerate(differences)]
    found = evaluate(claims, pd.concat(tables))
    for row in found.itertuples():
        decided = row.verdict in ("supported", "contradicted")
        assert decided == (row.p_adjusted < LEVEL)
        assert row.seeds_to_decide is pd.NA or (not decided and row.seeds_to_decide > row.n)


def test_seeds_to_decide_takes_the_other_tests_into_account() -> None:
    scalars = table({"new": [0.7, 0.8, 0.9], "old": [0.69, 0.81, 0.84]})
    alone = only(claim(), scalars)["seeds_to_decide"]
    among = evaluate([claim(), claim(id="000-mirrored", better="lower")], scalars)["seeds_to_decide"]
    assert list(among) == [among[0]] * 2
    assert among[0] > alone


def test_holm_runs_over_a_deck_and_a_source() -> None:
    studies = ["s", "t"]
    claims = [
        claim(id="000-first", studies=studies),
        claim(id="000-second", studies=studies, metric="loss", better="lower"),
        claim(id="000-costs", kind="count", metric="loss"),
        claim(id="000-own", source="project", metric="loss"),
        claim(id="001-other", deck="001"),
    ]
    draw = np.random.default_rng(0)
    parts = [
        table({"new": draw.normal(0.9, 1, 6), "old": draw.normal(size=6)}, study, metric)
        for study in studies
        for metric in ("accuracy", "loss")
    ]
    found = evaluate(claims, pd.concat(parts)).set_index(["id", "study"])
    assert list(found.index) == [(c.id, study) for c in claims for study in c.studies]
    deck = found.loc[["000-first", "000-second"]]
    np.testing.assert_array_equal(deck["p_adjusted"], holm(deck["p"]))
    assert (deck["p_adjusted"] > deck["p"]).any()
    for alone in ("000-own", "001-other"):
        assert found.loc[(alone, "s"), "p_adjusted"] == found.loc[(alone, "s"), "p"]
    assert math.isnan(found.loc[("000-costs", "s"), "p"])


def test_what_was_not_tested_does_not_count_in_the_family() -> None:
    scalars = pd.concat([table({"new": NEW, "old": OLD}), table({"new": [1, 1], "old": [0, 0]}, metric="flat")])
    claims = [
        claim(),
        claim(id="000-flat", metric="flat"),
        claim(id="000-not-run", studies=["nowhere"]),
    ]
    found = evaluate(claims, scalars)
    assert found["p_adjusted"][0] == found["p"][0]
    assert found["p_adjusted"][1:].isna().all()
    undecided = table({"new": [0.7, 0.8, 0.9], "old": [0.69, 0.81, 0.84]})
    among = evaluate(claims, undecided)["seeds_to_decide"]
    assert among[0] == only(claim(), undecided)["seeds_to_decide"]


# --- equivalences

ALIKE: dict[str, Any] = {key: value for key, value in ENTRY.items() if key != "better"} | {
    "id": "000-new-is-as-good",
    "kind": "equivalence",
    "margin": 0.02,
}


def alike(**changes: Any) -> Equivalence:
    return Equivalence.model_validate(ALIKE | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": 0}, "margin: input should be greater than 0, got 0"),
        ({"margin": "2 %"}, "margin: input should be a valid number, got '2 %'"),
        ({"better": "higher"}, "better: input should be 'equal', got 'higher'"),
        ({"kind": "difference", "better": "higher"}, "margin: unknown key"),
        ({"right": {"method": "new"}}, "left and right are the same method in s"),
    ],
)
def test_a_wrong_equivalence_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ClaimsError, match=message):
        load(written(tmp_path, ALIKE | changes))


def test_an_equivalence_needs_a_margin(tmp_path: Path) -> None:
    (found,) = load(written(tmp_path, ALIKE | {"better": "equal", "published": {"left": 82.5, "right": 82.5}}))
    assert isinstance(found, Equivalence)
    with pytest.raises(ClaimsError, match="margin: this key is required"):
        load(written(tmp_path, {key: value for key, value in ALIKE.items() if key != "margin"}))


BASE = [0.80, 0.81, 0.79, 0.82, 0.80]


@pytest.mark.parametrize(
    ("shifts", "verdict"),
    [
        ([0.001, -0.002, 0.0, 0.002, 0.001], "supported"),
        ([0.011, 0.009, 0.010, 0.012, 0.008], "supported"),
        ([-0.011, -0.009, -0.010, -0.012, -0.008], "supported"),
        ([0.031, 0.029, 0.030, 0.032, 0.028], "contradicted"),
        ([-0.031, -0.029, -0.030, -0.032, -0.028], "contradicted"),
        ([0.04, -0.03, 0.02, -0.02, 0.01], "undecided"),
        ([0.04, 0.03, 0.02, 0.00, 0.05], "undecided"),
        ([0.0, 0.0, 0.0, 0.0, 0.0], "supported"),
        ([0.019, 0.019, 0.019, 0.019, 0.019], "supported"),
        ([0.02, 0.02, 0.02, 0.02, 0.02], "undecided"),
        ([0.021, 0.021, 0.021, 0.021, 0.021], "contradicted"),
    ],
)
def test_the_margin_decides_an_equivalence(shifts: list[float], verdict: str) -> None:
    left = [base + shift for base, shift in zip(BASE, shifts, strict=True)]
    row, test = only(alike(), table({"new": left, "old": BASE})), paired_equivalence(left, BASE, 0.02)
    assert row["verdict"] == verdict
    assert [row[key] for key in ("n", "effect", "low", "high", "p", "p_adjusted", "better")] == [
        5, test.effect, test.low, test.high, test.p, test.p, "equal",
    ]  # fmt: skip
    equal = " All differences are equal." if test.sd == 0 else ""
    assert row["note"] == f"Margin: ±0.02.{equal}"
    if verdict != "undecided":
        assert row["seeds_to_decide"] is pd.NA


def test_an_undecided_equivalence_says_how_many_seeds_would_decide() -> None:
    scalars = table({"new": [0.84, 0.78, 0.81, 0.80, 0.81], "old": BASE})
    row = only(alike(), scalars)
    paired = paired_equivalence([0.84, 0.78, 0.81, 0.80, 0.81], BASE, 0.02)
    assert abs(paired.effect) < 0.02
    assert row["seeds_to_decide"] == seeds_to_decide_equivalence(paired.effect, paired.sd, 0.02)
    among = evaluate([alike(), alike(id="000-again")], scalars)["seeds_to_decide"]
    assert among[0] == seeds_to_decide_equivalence(paired.effect, paired.sd, 0.02, alpha=LEVEL / 2)
    outside = only(alike(margin=0.001), scalars)
    assert outside["verdict"] == "undecided"
    assert outside["seeds_to_decide"] == seeds_to_decide(abs(paired.effect) - 0.001, paired.sd)
    edge = only(alike(margin=0.25), table({"new": [1.0, 1.0], "old": [0.75, 0.75]}))
    assert (edge["verdict"], edge["seeds_to_decide"]) == ("undecided", pd.NA)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=8), st.sampled_from([0.5, 1.0, 3.0]))
def test_more_seeds_than_there_are_would_decide_an_equivalence(differences: list[int], margin: float) -> None:
    scalars = table({"new": differences, "old": [0] * len(differences)})
    row = only(alike(margin=margin), scalars)
    seeds = row["seeds_to_decide"]
    assert seeds is pd.NA or (row["verdict"] == "undecided" and seeds > row["n"])
    swapped = table({"old": differences, "new": [0] * len(differences)})
    assert only(alike(margin=margin), swapped)["verdict"] == row["verdict"]


def test_equivalences_and_differences_of_a_deck_share_the_correction() -> None:
    scalars = table({"new": NEW, "old": OLD, "near": [0.80, 0.84, 0.81, 0.83, 0.82]})
    claims = [claim(), alike(right={"method": "near"}), alike(id="000-own", source="project", right={"method": "near"})]
    found = evaluate(claims, scalars)
    np.testing.assert_array_equal(found["p_adjusted"][:2], holm(found["p"][:2]))
    assert found["p_adjusted"][0] == 2 * found["p"][0]
    assert found["p_adjusted"][2] == found["p"][2]
    assert list(found["verdict"]) == ["supported"] * 3


def test_an_equivalence_without_a_test() -> None:
    row = only(alike(), table({"new": [0.8], "old": [0.8]}))
    assert (row["verdict"], row["note"]) == (
        "undecided",
        "Margin: ±0.02. A t-test needs at least two seeds, 1 can be compared.",
    )
    assert only(alike(studies=["t"]), table({"new": [0.8], "old": [0.8]}))["verdict"] == "not run"


# --- seeds, methods and studies that are not there


def test_seeds_that_diverged_or_are_missing_are_left_out_and_named() -> None:
    scalars = table({"new": [0.8, math.nan, 0.9, 0.7, 0.75], "old": [0.6, 0.5, 0.65, 0.55]})
    scalars.loc[(scalars["method"] == "old") & (scalars["seed"] == 3), "value"] = math.nan
    row = only(claim(note="As told."), scalars)
    assert row["n"] == 2
    assert row["effect"] == pytest.approx(0.225)
    assert row["note"] == "As told. Seeds left out: 1 (new diverged), 3 (old without a value), 4 (old missing)."


def test_a_value_of_a_diverged_seed_does_not_count() -> None:
    scalars = table({"new": [0.8, 0.9, 0.7], "old": [0.6, 0.5, 0.65]})
    scalars.loc[scalars["seed"] == 2, "status"] = "diverged"
    assert only(claim(), scalars)["n"] == 2
    assert "2 (new diverged, old diverged)" in only(claim(), scalars)["note"]


@pytest.mark.parametrize(
    ("left", "right", "n", "note"),
    [
        ([0.9, 0.8], [0.7, 0.6], 2, "All differences are equal: no t-test is defined."),
        ([0.9], [0.7], 1, "A t-test needs at least two seeds, 1 can be compared."),
        (
            [math.nan],
            [0.7],
            0,
            "Seeds left out: 0 (new diverged). A t-test needs at least two seeds, 0 can be compared.",
        ),
    ],
)
def test_without_a_test_there_is_no_decision(left: list[float], right: list[float], n: int, note: str) -> None:
    row = only(claim(), table({"new": left, "old": right}))
    assert (row["verdict"], row["n"], row["note"]) == ("undecided", n, note)
    assert math.isnan(row["p_adjusted"])
    assert row["seeds_to_decide"] is pd.NA


@pytest.mark.parametrize(
    ("better", "limit", "verdict"),
    [
        ("lower", 3.0, "supported"),
        ("lower", 0.5, "contradicted"),
        ("lower", 2.0, "undecided"),
        ("higher", 1.0, "supported"),
        ("higher", 3.5, "contradicted"),
    ],
)
def test_a_bound_holds_in_every_seed(better: str, limit: float, verdict: str) -> None:
    entry = {key: value for key, value in ENTRY.items() if key != "right"}
    stated = Bound.model_validate(entry | {"kind": "bound", "better": better, "limit": limit})
    row = only(stated, table({"new": [1.0, 2.0, 3.0]}))
    assert row["verdict"] == verdict
    assert (row["n"], row["effect"]) == (3, pytest.approx(2.0 - limit))
    assert row["published"] == f"tested as {'at most' if better == 'lower' else 'at least'} {limit:g}"
    assert only(stated, table({"old": [1.0]}))["verdict"] == "not run"


@pytest.mark.parametrize("kind", ["difference", "count"])
@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"studies": ["t"]}, "Study t has no runs."),
        ({"right": {"method": "older"}}, "Method older has no runs in study s."),
        ({"metric": "loss"}, "Metric loss was not measured for method new in study s."),
    ],
)
def test_what_was_not_run_has_no_verdict(kind: str, changes: dict[str, Any], note: str) -> None:
    row = only(claim(kind=kind, **changes), table({"new": NEW, "old": OLD}))
    assert (row["verdict"], row["n"], row["note"]) == ("not run", 0, note)
    assert all(math.isnan(row[key]) for key in ("effect", "low", "high", "p", "p_adjusted"))


def test_no_runs_at_all() -> None:
    assert list(evaluate([claim()], table({}))["verdict"]) == ["not run"]
    assert list(evaluate([], table({"new": NEW})).columns) == list(COLUMNS)


# --- counts


@pytest.mark.parametrize(
    ("better", "left", "right", "verdict"),
    [
        ("lower", [50, 50], [99, 99], "supported"),
        ("lower", [50, 50], [50, 50], "supported"),
        ("lower", [50, 50], [50, 99], "supported"),
        ("lower", [99, 99], [50, 50], "contradicted"),
        ("lower", [50, 99], [99, 50], "undecided"),
        ("lower", [50, 99], [50, 50], "undecided"),
        ("higher", [99, 50], [50, 50], "supported"),
        ("higher", [50, 50], [99, 99], "contradicted"),
        ("lower", [50], [math.nan], "undecided"),
    ],
)
def test_a_count_holds_in_every_seed(better: str, left: list[float], right: list[float], verdict: str) -> None:
    row = only(claim(kind="count", better=better), table({"new": left, "old": right}))
    assert row["verdict"] == verdict
    assert all(math.isnan(row[key]) for key in ("low", "high", "p", "p_adjusted"))
    assert row["seeds_to_decide"] is pd.NA


def test_the_effect_of_a_count_is_left_minus_right() -> None:
    assert only(claim(kind="count", better="lower"), table({"new": [50, 50], "old": [99, 99]}))["effect"] == -49


# --- from file to file


def test_write_leaves_a_table_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    claims = written(tmp_path, ENTRY, ENTRY | {"id": "000-not-run", "studies": ["t"], "note": 'said "so", he'})
    scalars = tmp_path / "scalars.csv"
    scalars.write_text(csv_text(table({"new": NEW, "old": OLD})), encoding="utf-8")
    output = tmp_path / "tables" / "claims.csv"
    write(claims, scalars, output)
    first = output.read_bytes()
    write(claims, scalars, output)
    assert output.read_bytes() == first
    found = pd.read_csv(output)
    assert list(found.columns) == list(COLUMNS)
    assert list(found["verdict"]) == ["supported", "not run"]
    assert found["p"][0] == paired_difference(NEW, OLD).p
    assert found["note"][1] == 'said "so", he Study t has no runs.'
    assert ",not run,," in first.decode()
    scalars.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(TableError, match=r"cannot be read|columns are a, b"):
        write(claims, scalars, output)
    assert output.read_bytes() == first


# --- the project's own claims


def test_the_claims_of_deck_000_are_those_of_its_slide() -> None:
    claims = [found for found in load(REPORT) if found.deck == "000" and isinstance(found, Comparison)]
    slide = {  # Valid. Acc., #JVPs
        "luketina": (72.5, 1),
        "drmad": (69.8, 99),
        "ift_9_5": (70.3, 50),
        "ift_4_10": (70.7, 50),
    }
    told = {(c.metric, c.right.in_study("cleaning_published")): c for c in claims if c.source == "deck"}
    assert set(told) == {("test_accuracy_max", name) for name in slide} | {
        ("jvps", name) for name in slide if name != "luketina"
    }
    for (metric, name), found in told.items():
        accuracy, jvps = slide[name]
        figures = (73.5, accuracy) if metric == "test_accuracy_max" else (50, jvps)
        assert found.published is not None
        assert (found.published.left, found.published.right) == figures
        assert (found.kind, found.better) == (
            ("difference", "higher") if metric == "test_accuracy_max" else ("count", "lower")
        )


def test_the_claims_of_deck_000_name_the_methods_of_both_studies() -> None:
    methods = {
        "cleaning_published": {"gamma_0.99", "gamma_0.9", "luketina", "drmad", "ift_9_5", "ift_4_10"},
        "cleaning_corrected": {
            "none", "t1_t2", "gamma_0.9", "gamma_0.99", "gamma_1", "drmad", "ift_9_5", "ift_4_10", "exact",
        },
    }  # fmt: skip
    claims = [found for found in load(REPORT) if found.deck == "000" and isinstance(found, Comparison)]
    for found in claims:
        assert found.studies == list(methods)
        for study in found.studies:
            assert found.left.in_study(study) == "gamma_0.99"
            assert found.right.in_study(study) in methods[study]
    own = [found for found in claims if found.source == "project"]
    assert {(found.metric, found.right.in_study("cleaning_corrected")) for found in own} == {
        (metric, name)
        for metric in ("test_accuracy_final", "noise_auc")
        for name in ("t1_t2", "drmad", "ift_9_5", "ift_4_10")
    }


def test_the_documented_columns_and_example_are_the_real_ones(tmp_path: Path) -> None:
    page = (REPORT.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert f"| `claims.csv` | {', '.join(COLUMNS)} |" in page
    start = page.index("    - id: 000-")
    example = yaml.safe_load(page[start : page.index("\n\n", start)])
    assert load(written(tmp_path, *example))[0].id == "000-gamma-beats-drmad"
