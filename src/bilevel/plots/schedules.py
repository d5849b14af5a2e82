"""Settings of an optimizer against the inner step: a row a method, a panel a setting, a line a group of parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bilevel.plots.curves import curves
from bilevel.plots.frames import methods as methods_of
from bilevel.plots.look import Look
from bilevel.plots.sheet import Group, Panel, Sheet, empty
from bilevel.report.decks import Method, Study

GAP_WIDTH, GAP_HEIGHT = 4.35, 0.8

COLORS = ("aggregated", "drmad", "implicit", "truncated", "other", "exact", "none")
"""Families whose colors layers have, the first layer the first one. Groups of a layer differ in their lines."""
KINDS = {"weight": "Weights", "bias": "Biases"}

_LAYER = re.compile(r"(\D+)(\d+)")


@dataclass(frozen=True)
class Setting:
    """A setting of an optimizer.

    prefix: what its quantities begin with, followed by a colon and the name of the group.
    log: whether its axis is logarithmic, and its mean geometric.
    """

    prefix: str
    title: str
    log: bool


SETTINGS = (Setting("learning_rate", "Learning rate", log=True), Setting("momentum", "Momentum", log=False))
"""In the order of their panels."""


def schedules(
    points: pd.DataFrame, studies: Sequence[str], look: Look, *, methods: Sequence[str] | None = None
) -> Sheet:
    """Learning rates and momenta of each group of parameters along an optimization, means over seeds.

    The mean of learning rates, which have a logarithmic axis, is geometric. There are no bands: those of all groups
    would cover one another.

    points: of quantities `<setting>:<group>` with settings as in `SETTINGS` and groups such as `weight1`; x is the
        inner step, y the number of the group, `value` the setting.
    methods: those drawn; None: all.

    Source: Maclaurin, Duvenaud and Adams 2015, who learn schedules of every layer.
    """
    table = _by_group(points)
    groups = []
    for study in studies:
        ordered = look.order(study, methods_of(table, study))
        drawn, missing = ([key for key in part if methods is None or key in methods] for part in ordered)
        name = look.study(study) if len(studies) > 1 else ""
        for method in drawn:
            own = table[(table["study"] == study) & (table["method"] == method)]
            heading = ": ".join(filter(None, (name, look.method(method))))
            groups.append(Group(heading, tuple(_panels(own, heading))))
        titles = [look.method(key) for key in missing] if drawn or missing else [look.study(study)]
        if titles:
            groups.append(Group(name, tuple(empty(GAP_WIDTH, GAP_HEIGHT, title) for title in titles)))
    words = "One row a method, one panel a setting, one line a group of parameters."
    return Sheet("Learned settings, against: inner step", words, tuple(groups), columns=2)


def _by_group(points: pd.DataFrame) -> pd.DataFrame:
    """Rows of the settings, of which `prefix` and `group` have columns of their own; finite, and above zero on an axis
    that is logarithmic."""
    parts = [points[:0].assign(prefix="", group="")]
    for setting in SETTINGS:
        own = points[points["quantity"].str.startswith(f"{setting.prefix}:")]
        shown = np.isfinite(own["value"].to_numpy(float)) & ((own["value"] > 0) | (not setting.log))
        groups = own["quantity"].str.removeprefix(f"{setting.prefix}:")
        parts.append(own.assign(prefix=setting.prefix, group=groups)[shown])
    return pd.concat(parts)


def _panels(rows: pd.DataFrame, heading: str) -> Iterator[Panel]:
    for setting in SETTINGS:
        own = rows[rows["prefix"] == setting.prefix]
        kind, seeds = "geometric mean" if setting.log else "mean", own["seed"].nunique()
        label = f"{kind} over {seeds} seeds".capitalize() if seeds > 1 else "One seed"
        means = _means(own, setting)
        groups = list(dict.fromkeys(own.sort_values("y")["group"]))
        shown = Look(_lines(groups), {setting.prefix: Study(name=setting.title, methods=tuple(groups))})
        table = pd.DataFrame(
            [
                (setting.prefix, group, 0, step, "value", mean)
                for group, along in means.items()
                for step, mean in along.items()
            ],
            columns=["study", "method", "seed", "step", "metric", "value"],
        )
        sheet = curves(
            table, [setting.prefix], shown, y="value", x_label="Inner step", y_label=label, y_log=setting.log
        )
        (panel,) = sheet.groups[0].panels
        words = _words(means, label, shown) if means else panel.description
        yield replace(panel, title=f"{setting.title}: {heading}", description=words)


def _means(rows: pd.DataFrame, setting: Setting) -> dict[str, dict[int, float]]:
    """Group -> inner step -> mean over seeds."""
    found: dict[str, dict[int, float]] = {}
    for number in sorted(rows["y"].unique()):
        own = rows[rows["y"] == number]
        values = own["value"].astype(float)
        mean = (np.log(values) if setting.log else values).groupby(own["x"].astype(int)).mean()
        along = np.exp(mean) if setting.log else mean
        found[str(own["group"].iloc[0])] = {int(str(step)): float(value) for step, value in along.items()}
    return found


def _lines(groups: Sequence[str]) -> dict[str, Method]:
    """Names of groups, and colors: those of a layer share one."""
    layers = list(dict.fromkeys(_parts(group)[1] for group in groups))
    colors = {layer: COLORS[place % len(COLORS)] for place, layer in enumerate(layers)}
    return {group: Method(name=_name(group), family=colors[_parts(group)[1]]) for group in groups}


def _parts(group: str) -> tuple[str, str]:
    """What a group is of its layer, and the layer: `weight1` is (weight, 1); of another name, both are the name."""
    match = _LAYER.fullmatch(group)
    return (match[1], match[2]) if match else (group, group)


def _name(group: str) -> str:
    kind, layer = _parts(group)
    return f"{KINDS[kind]} {layer}" if kind in KINDS else group


def _words(means: Mapping[str, Mapping[int, float]], label: str, shown: Look) -> str:
    """Where every line begins and ends, in words."""
    ends = []
    for group, along in means.items():
        first, last = along[min(along)], along[max(along)]
        ends.append(f"{shown.method(group)} {first:.2g} to {last:.2g}")
    steps = [step for along in means.values() for step in along]
    return f"{label}, from inner step {min(steps)} to {max(steps)}: " + ", ".join(ends) + "."
