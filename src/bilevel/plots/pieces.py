"""A piecewise function of one number: value, number of the piece and derivative below one another, gaps at jumps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bilevel.plots import frames
from bilevel.plots.lines import WIDTH
from bilevel.plots.look import Look
from bilevel.plots.sheet import Group, Panel, Sheet, canvas, empty, style
from bilevel.plots.svg import INK

HEIGHT = 4.2
ROWS = (("value", "Value"), ("branch", "Exit taken, c(x)"), ("derivative", "Derivative of the piece"))


def algorithms_pieces(trace: pd.DataFrame, studies: Sequence[str], look: Look) -> Sheet:
    """One panel an algorithm; what is drawn are the numbers of the first seed, nothing being random."""
    panels = []
    for study in studies:
        drawn, missing = look.order(study, frames.methods(trace, study))
        panels += [_panel(trace, study, method, look) for method in drawn]
        panels += [empty(WIDTH, HEIGHT, look.method(method)) for method in missing]
        if not drawn and not missing:
            panels.append(empty(WIDTH, HEIGHT, look.study(study)))
    title = "Value, exit and derivative of algorithms, against their input"
    return Sheet(title, "One panel an algorithm.", (Group("", tuple(panels)),), columns=2)


def _panel(trace: pd.DataFrame, study: str, method: str, look: Look) -> Panel:
    rows = trace[(trace["study"] == study) & (trace["method"] == method)]
    table = rows[rows["seed"] == rows["seed"].min()].pivot(index="step", columns="metric", values="value")
    inputs, branch = table["x"].to_numpy(float), table["branch"].to_numpy(float)
    ends = np.flatnonzero(np.diff(branch)) + 1
    figure = canvas(WIDTH, HEIGHT)
    with style():
        for place, (metric, label) in enumerate(ROWS):
            axes = figure.add_axes((0.105, 0.7 - 0.29 * place, 0.87, 0.18))
            # from one piece to the next the line is broken
            axes.plot(
                np.insert(inputs, ends, np.nan),
                np.insert(table[metric].to_numpy(float), ends, np.nan),
                color=look.color(method),
            )
            for end in ends:
                axes.axvline((inputs[end - 1] + inputs[end]) / 2, color=INK, linewidth=0.5, alpha=0.25)
            axes.text(0, 1.1, label, fontsize=8.5, alpha=0.75, transform=axes.transAxes)
            axes.set_xlim(inputs[0], inputs[-1])
            axes.margins(y=0.12)
            axes.locator_params(axis="y", nbins=4)
            axes.grid(axis="y")
            axes.tick_params(length=0, axis="y")
            axes.spines["left"].set_visible(False)
            if place < len(ROWS) - 1:
                axes.tick_params(axis="x", labelbottom=False)
        axes.set_xlabel("x")
        figure.text(0.105, 0.985, look.method(method), fontweight="bold", fontsize=10, va="top")
    span = f"{len(ends) + 1} pieces for x from {inputs[0]:g} to {inputs[-1]:g}"
    words = f"{look.method(method)}: {span}; lines are broken where one piece ends and the next begins."
    return Panel(figure, f"Pieces: {look.method(method)}", words)
