"""Curves by domain, from small tables."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pytest

from bilevel.columns import COLUMNS
from bilevel.plots.domains import metric_by_domain, weights_by_domain
from bilevel.plots.look import Look
from bilevel.plots.sheet import Panel, Sheet
from bilevel.report.decks import Method, Study

LOOK = Look(
    {"a": Method(name="First", family="aggregated"), "b": Method(name="Second", family="drmad")},
    {"s": Study(name="The study", methods=("a", "b"))},
)
ROTATIONS = {"0": "0°", "180": "180°", "90": "90°"}
LANGUAGES = {"en": "English", "de": "German"}

Values = dict[tuple[str, str], dict[int, list[float]]]

WEIGHTS: Values = {
    ("a", "weight_sep_conv_3_0"): {0: [0.2, 0.2], 10: [0.5, 0.7]},
    ("a", "weight_max_pool_3_0"): {0: [0.2, 0.2], 10: [0.1, 0.3]},
    ("a", "weight_sep_conv_3_180"): {0: [0.3, 0.3], 10: [0.9, 0.8]},
    ("b", "weight_sep_conv_3_0"): {0: [0.2, 0.2], 10: [0.4, 0.4]},
    ("a", "other_0"): {0: [7.0, 7.0]},
}
PERPLEXITY: Values = {
    ("a", "perplexity_en"): {0: [90.0, 110.0], 5: [50.0, 54.0]},
    ("b", "perplexity_en"): {0: [80.0, 80.0], 5: [60.0, 60.0]},
    ("b", "perplexity_de"): {0: [95.0, 95.0], 5: [70.0, 70.0]},
    ("b", "perplexity_other_de"): {0: [1e6, 1e6]},
}


def table(values: Values, study: str = "s") -> pd.DataFrame:
    rows = [
        (study, method, seed, step, metric, value)
        for (method, metric), steps in values.items()
        for step, sample in steps.items()
        for seed, value in enumerate(sample)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS["trace"]])


def lines(panel: Panel) -> list[list[tuple[float, float]]]:
    axes = panel.figure.axes[0]
    found = [line for line in axes.lines if line.get_transform() == axes.transData and len(line.get_xydata()) > 1]  # type: ignore[arg-type]
    return [[(float(x), pytest.approx(float(y))) for x, y in line.get_xydata()] for line in found]  # type: ignore[misc]


def names(panel: Panel) -> list[str]:
    """Names beside the lines; the first text is the label of the axis."""
    return [text.get_text() for text in panel.figure.axes[0].texts[1:]]


def weights(frame: pd.DataFrame, **options: object) -> Sheet:
    given = {"domains": ROTATIONS, "x_label": "Outer steps"}
    return weights_by_domain(frame, ["s"], LOOK, **(given | options))  # type: ignore[arg-type]


def metric(frame: pd.DataFrame, methods: Sequence[str] | None = None) -> Sheet:
    labels = {"x_label": "Outer steps", "y_label": "Perplexity"}
    return metric_by_domain(frame, ["s"], LOOK, metric="perplexity", domains=LANGUAGES, methods=methods, **labels)


def test_weights_have_a_row_a_method_a_panel_a_domain_and_a_line_an_operation() -> None:
    first, second = weights(table(WEIGHTS)).groups
    assert (first.heading, second.heading) == ("First", "Second")
    assert [panel.title for panel in first.panels] == [
        "Mean weight over the edges: 0°, First",
        "Mean weight over the edges: 180°, First",
    ]
    assert lines(first.panels[0]) == [[(0, 0.2), (10, 0.2)], [(0, 0.2), (10, 0.6)]]
    assert names(first.panels[0]) == ["max", "sep 3"]
    assert lines(first.panels[1]) == [[(0, 0.3), (10, 0.85)]]
    assert lines(second.panels[0]) == [[(0, 0.2), (10, 0.4)]]


def test_rows_of_weights_share_their_axes() -> None:
    first, second = weights(table(WEIGHTS)).groups
    assert first.panels[0].figure.axes[0].get_ylim() == second.panels[0].figure.axes[0].get_ylim()


def test_an_operation_without_a_name_has_its_key_and_comes_last() -> None:
    extra: Values = {("a", "weight_an_operation_0"): {0: [0.1, 0.1], 10: [0.2, 0.2]}}
    first = weights(table(WEIGHTS | extra)).groups[0]
    assert names(first.panels[0]) == ["max", "sep 3", "an_operation"]


def test_only_chosen_methods_and_gaps_for_what_was_not_run() -> None:
    assert [group.heading for group in weights(table(WEIGHTS), methods=["b"]).groups] == ["Second"]
    only = {key: value for key, value in WEIGHTS.items() if key[0] == "a"}
    last = weights(table(only)).groups[-1]
    assert [panel.description for panel in last.panels] == ["Second: not run."]
    nothing = weights(table({}))
    assert [panel.description for group in nothing.groups for panel in group.panels] == [
        "First: not run.",
        "Second: not run.",
    ]


def test_a_metric_has_a_panel_a_domain_and_a_line_a_method() -> None:
    (group,) = metric(table(PERPLEXITY)).groups
    assert [panel.title for panel in group.panels] == ["Perplexity: English", "Perplexity: German"]
    assert lines(group.panels[0]) == [[(0, 100), (5, 52)], [(0, 80), (5, 60)]]
    assert lines(group.panels[1]) == [[(0, 95), (5, 70)]]
    assert names(group.panels[1]) == ["Second"]


def test_a_method_of_one_domain_alone_is_not_missing_in_the_other() -> None:
    (group,) = metric(table(PERPLEXITY)).groups
    assert "not run" not in group.panels[1].description
    without = {key: value for key, value in PERPLEXITY.items() if key[0] == "b"}
    (group,) = metric(table(without)).groups
    assert all("First not run" in panel.description for panel in group.panels)


def test_a_metric_of_chosen_methods_alone_has_neither_lines_nor_gaps_nor_room_for_others() -> None:
    (group,) = metric(table(PERPLEXITY), methods=["b"]).groups
    assert lines(group.panels[0]) == [[(0, 80), (5, 60)]]
    assert names(group.panels[0]) == ["Second"]
    assert all("First" not in panel.description for panel in group.panels)
    only = {key: value for key, value in PERPLEXITY.items() if key[0] == "b"}
    assert metric(table(PERPLEXITY), methods=["b"]).svg("p") == metric(table(only), methods=["b"]).svg("p")
    (group,) = metric(table(only), methods=["a"]).groups
    assert [panel.description for panel in group.panels] == ["English: not run.", "German: not run."]


def test_domains_may_be_numbers_with_signs() -> None:
    values: Values = {
        ("a", "accuracy_-3"): {0: [0.5], 10: [0.25]},
        ("a", "accuracy_3"): {0: [0.75], 10: [0.5]},
        ("a", "accuracy_mean"): {0: [9.0], 10: [9.0]},
    }
    labels = {"x_label": "Pruned", "y_label": "Accuracy"}
    domains = {"-3": "λ = 10⁻³", "3": "λ = 1000"}
    (group,) = metric_by_domain(table(values), ["s"], LOOK, metric="accuracy", domains=domains, **labels).groups
    assert [lines(panel) for panel in group.panels] == [[[(0, 0.5), (10, 0.25)]], [[(0, 0.75), (10, 0.5)]]]


def test_without_rows_every_domain_is_a_gap() -> None:
    (group,) = metric(table({})).groups
    assert [panel.description for panel in group.panels] == ["English: not run.", "German: not run."]


def test_the_same_table_gives_the_same_bytes() -> None:
    frame = table(WEIGHTS)
    assert weights(frame).svg("p") == weights(frame.sample(frac=1, random_state=1)).svg("p")
