"""Small multiples of histograms: learned weights of clean and of corrupted samples, a row of panels a study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bilevel.plots.frames import methods, outline
from bilevel.plots.look import GROUPS, Look
from bilevel.plots.sheet import Group, Panel, Sheet, canvas, empty, style

WIDTH, HEIGHT = 1.72, 1.34
ALL = 99.9  # percent
QUANTITY = "sample_weight"

DASHES = {"clean": "solid", "corrupted": (0, (3, 1))}

Shares = dict[str, tuple[np.ndarray, np.ndarray]]
"""Group of samples -> (share of its samples in each bin in percent, edges of the bins)."""


def weights_histogram(histograms: pd.DataFrame, studies: Sequence[str], look: Look) -> Sheet:
    """Share of the clean and of the corrupted samples in each bin of the learned weight, all seeds together."""
    rows = histograms[histograms["quantity"] == QUANTITY]
    shares: dict[str, dict[str, Shares]] = {}
    missing: dict[str, list[str]] = {}
    for study in studies:
        drawn, missing[study] = look.order(study, methods(rows, study))
        shares[study] = {method: _shares(rows, study, method) for method in drawn}
    top = _top([found for group in shares.values() for found in group.values()])
    groups = [_row(study, shares[study], missing[study], look, top) for study in studies]
    title = "Learned weights of clean and of corrupted samples"
    return Sheet(title, "One row of panels a study, one panel a method.", (Group("", (_key(),)), *groups), columns=5)


def _row(study: str, shares: dict[str, Shares], missing: Sequence[str], look: Look, top: float) -> Group:
    drawn = [_panel(look.method(method), found, top) for method, found in shares.items()]
    gaps = [empty(WIDTH, HEIGHT, look.method(method)) for method in missing]
    name = look.study(study)
    return Group(name, tuple(drawn + gaps) or (empty(WIDTH, HEIGHT, name),))


def _top(panels: Sequence[Shares]) -> float:
    """Height that panels share; one whose weights never moved, all in one bin, is left out of it."""
    heights = [max(float(share.max()) for share, _ in shares.values()) for shares in panels if shares]
    return 1.05 * max([height for height in heights if height < ALL], default=ALL)


def _shares(rows: pd.DataFrame, study: str, method: str) -> Shares:
    chosen = rows[(rows["study"] == study) & (rows["method"] == method)]
    found = {group: outline(chosen[chosen["group"] == group]) for group in GROUPS}
    return {group: share for group, share in found.items() if share is not None}


def _panel(title: str, shares: Shares, top: float) -> Panel:
    if not shares:
        return empty(WIDTH, HEIGHT, title)
    figure = canvas(WIDTH, HEIGHT)
    with style():
        axes = figure.add_axes((0.2, 0.19, 0.76, 0.64))
        for group, (share, edges) in shares.items():
            axes.stairs(share, edges, color=GROUPS[group], fill=True, alpha=0.22, linewidth=0)
            axes.stairs(share, edges, color=GROUPS[group], linewidth=1.3, linestyle=DASHES[group])
        tallest = max(float(share.max()) for share, _ in shares.values())
        axes.set_ylim(0, top if tallest <= top else 1.05 * tallest)
        _frame(axes, title)
    return Panel(figure, f"Learned weights: {title}", _words(shares))


def _key() -> Panel:
    """Which outline is which."""
    width, height = 2.3, 0.3
    figure = canvas(width, height)
    with style():
        axes = figure.add_axes((0.02, 0, 0.98, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, width), ylim=(0, height))
        for left, (group, color) in zip((0.0, 0.95), GROUPS.items(), strict=True):
            edges = [left, left + 0.28]
            axes.stairs([0.22], edges, baseline=0.06, color=color, fill=True, alpha=0.22, linewidth=0)
            axes.plot(edges, [0.22, 0.22], color=color, linewidth=1.3, linestyle=DASHES[group])
            axes.text(left + 0.36, 0.14, group, va="center_baseline", fontsize=8.5)
    return Panel(figure, "Key", "Solid blue: clean samples. Dashed orange: corrupted samples.")


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=8.5, fontweight="bold", pad=4)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    axes.locator_params(axis="y", nbins=3)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%" if value else "0")
    axes.tick_params(labelsize=7.5, length=2, width=0.6, pad=2)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)


def _words(shares: Shares) -> str:
    """Share of each group above one half, the weight that everything starts from."""
    texts = [
        f"{share[edges[:-1] >= 0.5].sum():.0f} % of the {group} samples have a weight of one half or more"
        for group, (share, edges) in shares.items()
    ]
    return "; ".join(texts) + "."
