"""Small multiples of histograms: a quantity of every layer of a network, one panel a layer, one outline a method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bilevel.plots.frames import methods as found_in
from bilevel.plots.frames import outline
from bilevel.plots.look import Look
from bilevel.plots.sheet import Group, Panel, Sheet, canvas, empty, style

WIDTH, HEIGHT = 2.05, 1.7
KEY_ROW = 0.2

Outline = tuple[np.ndarray, np.ndarray]
"""Share of the values in each bin, in percent, and the edges of the bins."""

Found = tuple[dict[str, Outline], dict[str, list[float]]]
"""Outlines by method; and, of methods with one value for all of a layer, the middle of its bin for each seed."""


def layers_histogram(
    histograms: pd.DataFrame,
    studies: Sequence[str],
    look: Look,
    *,
    quantity: str,
    label: str,
    methods: Sequence[str] | None = None,
) -> Sheet:
    """Share of each layer's values in bins of the quantity, all seeds together; layers in the order of the table.

    Where all of a layer has one value in every seed, that is no distribution: there is an upright line a seed.

    methods: those to draw; None: all that have rows.
    """
    rows = histograms[histograms["quantity"] == quantity]
    groups = []
    for study in studies:
        drawn, missing = look.order(study, found_in(rows, study))
        wanted = [key for key in drawn if methods is None or key in methods]
        gaps = [key for key in missing if methods is not None and key in methods]
        groups.append(Group(look.study(study), _panels(rows, study, wanted, gaps, look, label)))
    title = f"{label}, by layer"
    return Sheet(title, "One panel a layer, one outline a method.", tuple(groups), columns=4)


def _panels(
    rows: pd.DataFrame, study: str, drawn: Sequence[str], missing: Sequence[str], look: Look, label: str
) -> tuple[Panel, ...]:
    gaps = tuple(empty(WIDTH, HEIGHT, look.method(key)) for key in missing)
    chosen = rows[(rows["study"] == study) & rows["method"].isin(list(drawn))]
    if not chosen["count"].any():
        return gaps or (empty(WIDTH, HEIGHT, look.study(study)),)
    layers = list(dict.fromkeys(chosen["group"]))
    found = {layer: _found(chosen[chosen["group"] == layer], drawn) for layer in layers}
    occupied = [
        edges[place] for outlines, _ in found.values() for share, edges in outlines.values() for place in _ends(share)
    ]
    occupied += [place for _, single in found.values() for places in single.values() for place in places]
    across = (min(occupied) - 0.1, max(occupied) + 0.1)
    panels = [_panel(layer, each, across, look, label) for layer, each in found.items()]
    return (*panels, _key(drawn, look), *gaps)


def _found(rows: pd.DataFrame, drawn: Sequence[str]) -> Found:
    held = rows[rows["count"] > 0]
    bins = held.groupby(["method", "seed"]).size().groupby("method").max()
    singles = [method for method in drawn if bins.get(method, 0) == 1]
    middles = (held["left"] + held["right"]) / 2
    single = {method: sorted(middles[held["method"] == method]) for method in singles}
    return _outlines(rows, [method for method in drawn if method not in singles]), single


def _outlines(rows: pd.DataFrame, drawn: Sequence[str]) -> dict[str, Outline]:
    found = {method: outline(rows[rows["method"] == method]) for method in drawn}
    return {method: share for method, share in found.items() if share is not None}


def _ends(share: np.ndarray) -> tuple[int, int]:
    """First and last edge of the bins that hold anything."""
    held = np.flatnonzero(share)
    return int(held[0]), int(held[-1]) + 1


def _panel(layer: str, found: Found, across: tuple[float, float], look: Look, label: str) -> Panel:
    outlines, single = found
    if not outlines and not single:
        return empty(WIDTH, HEIGHT, layer)
    figure = canvas(WIDTH, HEIGHT)
    with style():
        axes = figure.add_axes((0.17, 0.28, 0.79, 0.58))
        for method, (share, edges) in outlines.items():
            axes.stairs(
                share, edges, baseline=None, color=look.color(method), linestyle=look.dash(method), linewidth=1.3
            )
        for method, places in single.items():
            for place in places:
                axes.axvline(place, color=look.color(method), linestyle=look.dash(method), linewidth=1.3)
        axes.set_title(layer, loc="left", fontsize=8.5, fontweight="bold", pad=4)
        axes.set_xlabel(label, fontsize=7.5, labelpad=2)
        axes.set_xlim(*across)
        axes.set_ylim(0, 1.06 * max((float(share.max()) for share, _ in outlines.values()), default=100.0))
        axes.locator_params(axis="x", nbins=5)
        axes.locator_params(axis="y", nbins=3)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%" if value else "0")
        axes.tick_params(labelsize=7.5, length=2, width=0.6, pad=2)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
    return Panel(figure, f"{label}: {layer}", _words(outlines, single, look))


def _key(drawn: Sequence[str], look: Look) -> Panel:
    """Which outline is which."""
    height = KEY_ROW * len(drawn) + 0.1
    figure = canvas(WIDTH, height)
    with style():
        axes = figure.add_axes((0.04, 0, 0.96, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, WIDTH), ylim=(0, height))
        for row, method in enumerate(drawn):
            place = height - 0.05 - (row + 0.5) * KEY_ROW
            axes.plot([0, 0.3], [place] * 2, color=look.color(method), linestyle=look.dash(method), linewidth=1.5)
            axes.text(0.38, place, look.method(method), va="center_baseline", fontsize=8.5)
    return Panel(figure, "Key", ", ".join(look.method(method) for method in drawn) + ".")


def _words(outlines: dict[str, Outline], single: dict[str, list[float]], look: Look) -> str:
    """The bin with the median of each method, and single values."""
    texts = [
        f"{look.method(method)}: one value a seed, about {', '.join(f'{place:g}' for place in places)}"
        for method, places in single.items()
    ]
    for method, (share, edges) in outlines.items():
        middle = int(np.searchsorted(share.cumsum(), 50))
        texts.append(f"{look.method(method)}: median between {edges[middle]:g} and {edges[middle + 1]:g}")
    return "; ".join(texts) + "."
