"""Curves by domain: structural weights of operations, and metrics that every domain has of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from bilevel.plots.curves import curves
from bilevel.plots.frames import methods as methods_of
from bilevel.plots.look import Look
from bilevel.plots.operations import OPERATIONS
from bilevel.plots.sheet import Group, Panel, Sheet, empty
from bilevel.report.decks import Method, Study

GAP_WIDTH, GAP_HEIGHT = 4.35, 0.8


class Row(NamedTuple):
    """A row of panels: heading, and the key that each of them has in place of a study."""

    heading: str
    panels: list[str]


def weights_by_domain(
    trace: pd.DataFrame,
    studies: Sequence[str],
    look: Look,
    *,
    domains: Mapping[str, str],
    x_label: str,
    methods: Sequence[str] | None = None,
    label: str = "Mean weight over the edges",
) -> Sheet:
    """Mean weight of each operation over the edges: a row a method, a panel a domain, a line an operation.

    The metrics are `weight_<operation>_<domain>`.

    domains: those there may be, in the order of their panels -> titles.
    methods: those drawn; None: all.
    label: of the vertical axis.
    """
    table = _by_domain(trace[trace["metric"].str.startswith("weight_")], domains)
    table = table.assign(operation=table["metric"].str.removeprefix("weight_"))
    rows, gaps, parts = [], [], []
    names: dict[str, Study] = {}
    for study in studies:
        ordered = look.order(study, methods_of(table, study))
        drawn, missing = ([key for key in part if methods is None or key in methods] for part in ordered)
        name = look.study(study) if len(studies) > 1 else ""
        for method in drawn:
            own = table[(table["study"] == study) & (table["method"] == method)]
            keys = {f"{study} {method} {domain}": domain for domain in domains if domain in set(own["domain"])}
            names |= {
                key: Study(name=domains[domain], methods=_in_order(own["operation"])) for key, domain in keys.items()
            }
            parts += [own[own["domain"] == domain].assign(study=key) for key, domain in keys.items()]
            rows.append(Row(": ".join(filter(None, (name, look.method(method)))), list(keys)))
        titles = [look.method(key) for key in missing] if drawn or missing else [look.study(study)]
        if titles:
            gaps.append(Group(name, tuple(empty(GAP_WIDTH, GAP_HEIGHT, title) for title in titles)))
    lines = pd.concat([table[:0], *parts])
    lines = lines.assign(method=lines["operation"], metric="weight")
    found = _in_order(lines["operation"])
    shown = Look({key: OPERATIONS.get(key, Method(name=key)) for key in found}, names)
    sheet = curves(lines, [*names], shown, y="weight", x_label=x_label, y_label=label)
    groups = [*_regrouped(sheet, rows), *gaps]
    return Sheet(f"{label}, against: {x_label}", "One row a method, one panel a domain.", tuple(groups), columns=2)


def metric_by_domain(
    trace: pd.DataFrame,
    studies: Sequence[str],
    look: Look,
    *,
    metric: str,
    domains: Mapping[str, str],
    x_label: str,
    y_label: str,
    methods: Sequence[str] | None = None,
) -> Sheet:
    """A metric that each domain has of its own, `<metric>_<domain>`: a row a study, a panel a domain, a line a method.

    domains: in the order of their panels -> titles.
    methods: those drawn; None: all.
    """
    table = _by_domain(trace[trace["metric"].str.startswith(f"{metric}_")], domains)
    table = table[table["metric"] == metric]
    if methods is not None:
        table = table[table["method"].isin(list(methods))]
    names: dict[str, Study] = {}
    rows, parts = [], []
    for study in studies:
        keys = {f"{study} {domain}": domain for domain in domains}
        ordered = look.order(study, methods_of(table, study))
        found, missing = ([key for key in part if methods is None or key in methods] for part in ordered)
        for key, domain in keys.items():
            own = table[(table["study"] == study) & (table["domain"] == domain)]
            there = set(own["method"]) | set(missing)  # a method may be of another domain alone
            names[key] = Study(
                name=domains[domain], methods=tuple(name for name in [*found, *missing] if name in there)
            )
            parts.append(own.assign(study=key))
        rows.append(Row(look.study(study) if len(studies) > 1 else "", list(keys)))
    lines = pd.concat([table[:0], *parts])
    sheet = curves(lines, [*names], Look(look.methods, names), y=metric, x_label=x_label, y_label=y_label)
    groups = tuple(_regrouped(sheet, rows))
    return Sheet(f"{y_label}, against: {x_label}", "One panel a domain.", groups, columns=2)


def _by_domain(rows: pd.DataFrame, domains: Mapping[str, str]) -> pd.DataFrame:
    """Rows whose metric ends in a domain, which is taken from its name into a column of its own."""
    parts = [rows[:0].assign(domain="")]
    for domain in domains:
        own = rows[rows["metric"].str.endswith(f"_{domain}")]
        parts.append(own.assign(domain=domain, metric=own["metric"].str.removesuffix(f"_{domain}")))
    return pd.concat(parts)


def _in_order(operations: Iterable[str]) -> tuple[str, ...]:
    """Operations in their order in `OPERATIONS`; unknown ones last."""
    found = set(operations)
    return (*(key for key in OPERATIONS if key in found), *sorted(found - set(OPERATIONS)))


def _regrouped(sheet: Sheet, rows: Sequence[Row]) -> Iterator[Group]:
    """The panels of a sheet, which are in the order of all rows, in those rows."""
    panels = iter(sheet.groups[0].panels)
    for row in rows:
        yield Group(row.heading, tuple(_under(row.heading, next(panels)) for _ in row.panels))


def _under(heading: str, panel: Panel) -> Panel:
    return replace(panel, title=f"{panel.title}, {heading}") if heading else panel
