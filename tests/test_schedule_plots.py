"""Learned settings against the inner step, from small tables of points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import pytest

from bilevel.columns import COLUMNS
from bilevel.plots.look import FAMILIES, Look
from bilevel.plots.schedules import schedules
from bilevel.plots.sheet import Panel
from bilevel.report.decks import Method, Study

LOOK = Look(
    {"layer": Method(name="By layer", family="drmad")},
    {"rmad": Study(name="Schedules", methods=("step", "layer")), "t": Study(name="Another", methods=("layer",))},
)
GROUPS = ("weight1", "bias1", "weight2", "bias2")
STEPS = range(4)


def rate(group: int, step: int, seed: int) -> float:
    return float(10.0 ** (-group + step / 2) * 4.0**seed)


def momentum(group: int, step: int, seed: int) -> float:
    return 0.5 + group / 16 + step / 64 + seed / 128


SETTINGS = {"learning_rate": rate, "momentum": momentum}


def table(
    settings: Mapping[str, Callable[[int, int, int], float]] = SETTINGS,
    seeds: Sequence[int] = (0, 1),
    method: str = "layer",
    study: str = "rmad",
    groups: Sequence[str] = GROUPS,
) -> pd.DataFrame:
    rows = [
        (study, method, seed, f"{name}:{group}", float(step), float(number), value(number, step, seed))
        for name, value in settings.items()
        for seed in seeds
        for step in STEPS
        for number, group in enumerate(groups, start=1)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS["points"]])


def panels(frame: pd.DataFrame) -> list[Panel]:
    return list(schedules(frame, ["rmad"], LOOK, methods=("layer",)).groups[0].panels)


def lines(panel: Panel) -> list[np.ndarray]:
    axes = panel.figure.axes[0]
    found = [np.asarray(line.get_xydata()) for line in axes.lines if line.get_transform() == axes.transData]
    return [places for places in found if len(places) > 1]


def test_each_group_is_a_line_through_means_over_seeds() -> None:
    rates, momenta = panels(table())
    for number, (of_rate, of_momentum) in enumerate(zip(lines(rates), lines(momenta), strict=True), start=1):
        # the geometric mean of 1 and 4 is 2, and the axis has logarithms
        np.testing.assert_allclose(of_rate, [(t, math.log10(2 * rate(number, t, 0))) for t in STEPS])
        np.testing.assert_allclose(of_momentum, [(t, momentum(number, t, 0) + 1 / 256) for t in STEPS])
    assert len(lines(rates)) == len(GROUPS)


def test_panels_say_what_they_have() -> None:
    rates, momenta = panels(table())
    assert [panel.title for panel in (rates, momenta)] == ["Learning rate: By layer", "Momentum: By layer"]
    axes = rates.figure.axes[0]
    assert [axes.get_title(loc="left"), axes.get_xlabel()] == ["Learning rate", "Inner step"]
    assert "Geometric mean over 2 seeds" in {text.get_text() for text in axes.texts}
    assert "Mean over 2 seeds" in {text.get_text() for text in momenta.figure.axes[0].texts}
    assert rates.description.startswith(
        "Geometric mean over 2 seeds, from inner step 0 to 3: Weights 1 0.2 to 6.3, Biases 1 0.02 to 0.63,"
    )
    assert not axes.collections  # no bands


def test_learning_rates_are_on_a_logarithmic_axis_and_momenta_are_not() -> None:
    rates, momenta = (panel.figure.axes[0] for panel in panels(table()))
    ticks = {label.get_text(): place for place, label in zip(rates.get_yticks(), rates.get_yticklabels(), strict=True)}
    assert ticks["10⁰"] == 0.0
    assert ticks["10⁻²"] == -2.0
    low, high = momenta.get_ylim()
    assert 0.4 < low < high < 0.9


def test_groups_of_a_layer_share_a_color_and_differ_in_their_lines() -> None:
    for panel in panels(table()):
        axes = panel.figure.axes[0]
        found = [line for line in axes.lines if line.get_transform() == axes.transData]
        drawn = [line for line in found if len(line.get_xdata()) > 1]  # type: ignore[arg-type]
        colors = [FAMILIES["aggregated"]] * 2 + [FAMILIES["drmad"]] * 2
        assert [line.get_color() for line in drawn] == colors
        assert [line.get_linestyle() for line in drawn] == ["-", "--", "-", "--"]
        names = {text.get_text() for text in axes.texts}
        assert {"Weights 1", "Biases 1", "Weights 2", "Biases 2"} <= names


def test_many_layers_differ_in_color_or_line() -> None:
    groups = [f"{kind}{layer}" for layer in range(1, 11) for kind in ("weight", "bias")]
    axes = panels(table(groups=groups))[1].figure.axes[0]
    drawn = [line for line in axes.lines if line.get_transform() == axes.transData and line.get_marker() == "None"]
    looks = {(line.get_color(), str(line._dash_pattern)) for line in drawn}  # type: ignore[attr-defined]
    assert len(drawn) == len(looks) == 20


def test_groups_of_other_names_keep_them_and_their_order() -> None:
    frame = table(groups=("scale", "weight10", "weight2"), seeds=(3,))
    rates, _ = panels(frame)
    assert rates.description == (
        "One seed, from inner step 0 to 3: scale 6.4 to 2e+02, Weights 10 0.64 to 20, Weights 2 0.064 to 2."
    )


def test_seeds_that_diverged_are_left_out() -> None:
    frame = table()
    frame.loc[(frame["seed"] == 1) & (frame["x"] == 2), "value"] = math.nan
    rates, _ = panels(frame)
    assert lines(rates)[0][:, 1] == pytest.approx(
        [math.log10(value) for value in (0.2, 0.2 * 10**0.5, 1.0, 20**0.5 * 2**0.5)]
    )


def test_other_quantities_studies_and_methods_are_not_drawn() -> None:
    extra = table({"learning_rates": rate, "momentum2": momentum}).assign(value=1e9)
    others = [table(method="layer_unrolled").assign(value=0.99), table(study="t").assign(value=0.98)]
    frame = pd.concat([table(), extra, *others]).sample(frac=1, random_state=0)
    alone = schedules(table(), ["rmad"], LOOK, methods=("layer",)).svg("p")
    assert schedules(frame, ["rmad"], LOOK, methods=("layer",)).svg("p") == alone


def test_what_was_not_run_is_a_gap() -> None:
    for methods, titles in ((("layer",), ["layer"]), (None, ["step", "layer"])):
        (group,) = schedules(table()[:0], ["rmad"], LOOK, methods=methods).groups
        names = [LOOK.method(title) for title in titles]
        assert [panel.description for panel in group.panels] == [f"{name}: not run." for name in names]
    (group,) = schedules(table()[:0], ["unlisted"], LOOK).groups
    assert [panel.description for panel in group.panels] == ["unlisted: not run."]
    _, momenta = panels(table({"learning_rate": rate}))
    assert "not run" in momenta.description


def test_several_studies_are_rows() -> None:
    sheet = schedules(pd.concat([table(), table(study="t")]), ["rmad", "t"], LOOK)
    assert [group.heading for group in sheet.groups] == ["Schedules: By layer", "Schedules", "Another: By layer"]
