"""Figures of the report: one file a figure family, each a function from tables to a `Sheet` of panels.

`FIGURES` says which figures a deck has; `draw` writes one of them. Importing this package loads neither pandas
nor matplotlib, so that a workflow may list the figures at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilevel.errors import UserError

if TYPE_CHECKING:
    from bilevel.columns import TableName
    from bilevel.plots.look import Look
    from bilevel.plots.sheet import Sheet

__all__ = ["FIGURES", "Drawing", "draw"]


@dataclass(frozen=True)
class Drawing:
    """A function of a figure family, the table it reads, and the studies that it is given, one panel or row each."""

    module: str
    function: str
    table: TableName
    studies: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, tables: Path, look: Look) -> Sheet:
        """Read the table and lay the figure out."""
        from bilevel.plots.frames import read

        family = getattr(import_module(f"bilevel.plots.{self.module}"), self.function)
        sheet: Sheet = family(read(tables, self.table), self.studies, look, **self.settings)
        return sheet


_CLEANING = ("cleaning_published", "cleaning_corrected")
_BIAS = ("bias_quadratic", "bias_logistic", "bias_rescaled")
_NUMERIC = ("numeric_quadratic", "numeric_network")
_DISTILLATION = ("distillation_published", "distillation_corrected")
_CHAINS = ("chains_network", "chains_quadratic")
_DOMAINS = ("rotated_mnist_2", "rotated_mnist_3", "rotated_mnist_4")
_ROTATIONS = {"0": "0°", "180": "180°", "90": "90°", "270": "270°"}
_LANGUAGES = {"en": "English", "de": "German"}
_BETAS = (
    ("struct_0.1", "struct_1", "struct", "struct_10", "struct_100"),
    ("contr_0.00001", "contr_0.0001", "contr_0.001", "contr_0.01", "contr", "contr_0.1", "contr_1"),
)

FIGURES: dict[str, dict[str, Drawing]] = {
    "000": {
        "accuracy_by_step": Drawing("by_step", "accuracy_by_step", "trace", _CLEANING),
        "weights_histogram": Drawing("histograms", "weights_histogram", "histograms", _CLEANING),
        "auc_by_step": Drawing("by_step", "auc_by_step", "trace", _CLEANING),
        "accuracy_by_cost": Drawing("by_cost", "accuracy_by_cost", "trace", _CLEANING),
        "bias_inner": Drawing(
            "curves",
            "curves",
            "trace",
            _BIAS,
            {
                "y": "error",
                "x_label": "Inner steps T (logarithmic)",
                "y_label": "Error at fixed λ",
                "x_log": True,
                "y_log": True,
                "reference": "bound",
                "reference_label": "bound",
            },
        ),
        "bias_gamma": Drawing(
            "curves",
            "curves",
            "trace",
            _BIAS[:2],
            {
                "y": "relative_error",
                "x_label": "Inner steps T (logarithmic)",
                "y_label": "Relative error at fixed λ",
                "x_log": True,
                "y_log": True,
                "methods": ("t1_t2", "gamma_0.2", "gamma_0.5", "gamma_0.7", "gamma_0.9"),
            },
        ),
        "bias_outer": Drawing(
            "curves",
            "curves",
            "trace",
            _BIAS,
            {
                "y": "outer_error",
                "x_label": "Outer steps",
                "y_label": "Error along the way",
                "y_log": True,
                "reference": "outer_bound",
                "reference_label": "bound",
            },
        ),
    },
    "001": {
        "numeric_error": Drawing(
            "curves",
            "curves",
            "trace",
            _NUMERIC,
            {
                "y": "relative_error",
                "x": "epsilon",
                "x_label": "Step ε (logarithmic)",
                "y_label": "Relative error",
                "x_log": True,
                "y_log": True,
            },
        ),
        "algorithms_pieces": Drawing("pieces", "algorithms_pieces", "trace", ("algorithms",)),
        "chains_computed": Drawing(
            "curves",
            "curves",
            "trace",
            _CHAINS,
            {
                "y": "rounding",
                "x_label": "Step",
                "y_label": "Relative distance from the chain in float64",
                "y_log": True,
                "methods": ("momentum_float32", "adam_float32", "lbfgs_float32"),
            },
        ),
        "chains_sensitivity": Drawing(
            "curves",
            "curves",
            "trace",
            _CHAINS,
            {
                "y": "sensitivity",
                "x_label": "Step",
                "y_label": "Relative distance",
                "y_log": True,
                "reference": "sensitivity_larger",
                "reference_label": "larger disturbance",
                "methods": ("momentum_float64", "adam_float64", "lbfgs_float64"),
            },
        ),
        "chains_distance": Drawing(
            "chains",
            "chains_distance",
            "trace",
            _CHAINS,
            {
                "optimizers": {
                    "Momentum": ("momentum_float64", "momentum_float32", "momentum_int64"),
                    "Adam": ("adam_float64", "adam_float32", "adam_int64"),
                    "L-BFGS": ("lbfgs_float64", "lbfgs_float32"),
                }
            },
        ),
        "lenet_by_step": Drawing(
            "curves",
            "curves",
            "trace",
            ("lenet_l2", "lenet_l2_published"),
            {"y": "cross_entropy", "x_label": "Updates of the coefficients", "y_label": "Test cross-entropy"},
        ),
        "lenet_coefficients": Drawing(
            "layers",
            "layers_histogram",
            "histograms",
            ("lenet_l2",),
            {
                "quantity": "log_coefficient",
                "label": "Logarithm of the L2 coefficient",
                "methods": ("shared", "individual", "individual_t1_t2", "individual_gamma_0.99"),
            },
        ),
        "kernel_decision": Drawing("plane", "decision", "points", ("kernel_logistic",)),
        "kernel_chosen": Drawing("plane", "kernel", "points", ("kernel_logistic",), {"methods": ("kernel_mixture",)}),
        "memory_states": Drawing(
            "curves",
            "curves",
            "trace",
            ("memory",),
            {
                "y": "held_bytes",
                "x_label": "Inner steps T",
                "y_label": "Bytes held",
                "x_log": True,
                "y_log": True,
            },
        ),
        "memory_bits": Drawing(
            "curves",
            "curves",
            "trace",
            ("memory", "memory_0.99"),
            {
                "y": "bits",
                "x_label": "Inner steps T",
                "y_label": "Bits of side information",
                "x_log": True,
                "y_log": True,
                "methods": ("reversible",),
            },
        ),
        "memory_peak": Drawing(
            "curves",
            "curves",
            "measurements",
            ("memory",),
            {
                "y": "peak_bytes",
                "x_label": "Inner steps T",
                "y_label": "Peak of memory, bytes",
                "x_log": True,
                "y_log": True,
            },
        ),
        "memory_seconds": Drawing(
            "curves",
            "curves",
            "measurements",
            ("memory",),
            {
                "y": "seconds",
                "x_label": "Inner steps T",
                "y_label": "Seconds",
                "x_log": True,
                "y_log": True,
            },
        ),
    },
    "003": {
        "rotated_mnist_cells": Drawing(
            "cells",
            "cells",
            "structures",
            ("rotated_mnist_4",),
            {"domains": _ROTATIONS, "methods": ("union", "none", "struct", "contr")},
        ),
        "rotated_mnist_searched": Drawing(
            "scatter",
            "scatter",
            "scalars",
            ("rotated_mnist_1", *_DOMAINS),
            {
                "x": "parameters_nominal",
                "y": "search_accuracy",
                "x_label": "Parameters, as the slide counts them",
                "y_label": "Test accuracy of the search network, %",
                "y_factor": 100,
                "joined": _BETAS,
            },
        ),
        "rotated_mnist_retrained": Drawing(
            "scatter",
            "scatter",
            "scalars",
            ("rotated_mnist_1", *_DOMAINS),
            {
                "x": "parameters",
                "y": "retrained_accuracy",
                "x_label": "Parameters of the retrained network",
                "y_label": "Test accuracy of the retrained network, %",
                "y_factor": 100,
                "joined": _BETAS,
            },
        ),
        "rotated_mnist_weights": Drawing(
            "domains",
            "weights_by_domain",
            "trace",
            ("rotated_mnist_2",),
            {"domains": _ROTATIONS, "x_label": "Outer steps", "methods": ("none", "struct", "contr")},
        ),
        "rotated_mnist_training": Drawing(
            "curves",
            "curves",
            "trace",
            _DOMAINS,
            {
                "y": "search_accuracy_validation",
                "x_label": "Outer steps",
                "y_label": "Validation accuracy of the search network",
                "methods": ("union", "none", "struct", "contr"),
            },
        ),
        "language_cells": Drawing("cells", "cells", "structures", ("language_model",), {"domains": _LANGUAGES}),
        "language_weights": Drawing(
            "domains",
            "weights_by_domain",
            "trace",
            ("language_model",),
            {"domains": _LANGUAGES, "x_label": "Outer steps", "methods": ("multimodel",)},
        ),
        "language_training": Drawing(
            "domains",
            "metric_by_domain",
            "trace",
            ("language_model",),
            {
                "metric": "search_perplexity_validation",
                "domains": _LANGUAGES,
                "x_label": "Outer steps",
                "y_label": "Validation perplexity of the search network",
            },
        ),
    },
    "004": {
        "distillation_sample": Drawing(
            "plane",
            "decision",
            "points",
            _DISTILLATION,
            {"quantities": {"decision_teacher": "Teacher", "decision_student": "Student"}, "methods": ("optimized",)},
        ),
        "distillation_restarts": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION,
            {
                "y": "test_accuracy",
                "x_label": "Iteration",
                "y_label": "Test accuracy",
                "methods": (
                    "optimized",
                    "linear_e10_n2",
                    "linear_e10_n3",
                    "linear_e10_n5",
                    "linear_e10_n10",
                    "slip_e10_n2",
                    "slip_e10_n3",
                    "slip_e10_n5",
                    "slip_e10_n10",
                ),
            },
        ),
        "distillation_arms": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION,
            {
                "y": "test_accuracy",
                "x_label": "Iteration",
                "y_label": "Test accuracy",
                "methods": ("none", "naive", "random", "optimized", "linear_e10_n2", "linear_e1000_n2", "tpe"),
            },
        ),
        "distillation_beta_distillation": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION,
            {
                "y": "beta_distillation",
                "x_label": "Iteration",
                "y_label": "β of distillation",
                "methods": ("optimized", "linear_e10_n2", "linear_e1000_n2", "linear_e2000_n2", "linear_e10_n10"),
                "marked": "predicted",
                "marked_label": "predicted",
            },
        ),
        "distillation_beta_student": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION,
            {
                "y": "beta_student",
                "x_label": "Iteration",
                "y_label": "β of the labels",
                "methods": ("optimized", "linear_e10_n2", "linear_e1000_n2", "linear_e2000_n2", "linear_e10_n10"),
                "marked": "predicted",
                "marked_label": "predicted",
            },
        ),
        "distillation_temperature": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION,
            {
                "y": "temperature",
                "x_label": "Iteration",
                "y_label": "Temperature",
                "methods": ("optimized", "linear_e10_n2", "linear_e1000_n2", "linear_e2000_n2", "linear_e10_n10"),
                "marked": "predicted",
                "marked_label": "predicted",
            },
        ),
        "distillation_images": Drawing(
            "curves",
            "curves",
            "trace",
            ("distillation_images",),
            {"y": "test_accuracy", "x_label": "Iteration", "y_label": "Test accuracy"},
        ),
        "distillation_by_hypergradients": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION,
            {
                "y": "test_accuracy",
                "x": "hypergradients_total",
                "x_label": "Hypergradients",
                "y_label": "Test accuracy",
                "methods": ("optimized", "linear_e10_n2", "linear_e10_n5", "linear_e10_n10", "linear_e1000_n2"),
            },
        ),
    },
}
"""Deck -> figure -> how it is drawn; the file is `results/figures/<deck>/<figure>.svg`."""


def draw(deck: str, figure: str, tables: Path, output: Path, decks_file: Path | None = None) -> None:
    """Draw one figure from the tables of a finished run.

    Args:
        deck: key of `FIGURES`, such as "000".
        figure: key of `FIGURES[deck]`.
        tables: directory of the tables (`trace.csv`, `histograms.csv`).
        output: SVG file; it appears whole or not at all. The same tables give the same bytes.
        decks_file: `report/decks.yaml`, for the names and families of methods and studies; without it the
            keys stand in their place.

    Raises:
        UserError: the deck or the figure is unknown.
    """
    from bilevel.plots.look import Look

    if figure not in FIGURES.get(deck, {}):
        known = ", ".join(f"{key}/{name}" for key, names in FIGURES.items() for name in names)
        raise UserError(f"no figure {deck}/{figure}; there are: {known}")
    look = Look.read(decks_file) if decks_file else Look()
    FIGURES[deck][figure](tables, look).write(output, prefix=f"f{deck}-{figure}")
