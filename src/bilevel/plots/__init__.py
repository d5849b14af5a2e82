"""Figures of the report: one file a figure family, each a function from tables to a `Sheet` of panels.

`FIGURES` says which figures a deck has; `draw` writes one of them, `draw_all` all of a deck. Importing this package
loads neither pandas nor matplotlib, so that a workflow may list the figures at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilevel.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from bilevel.columns import TableName
    from bilevel.plots.look import Look
    from bilevel.plots.sheet import Sheet

__all__ = ["FIGURES", "Drawing", "draw", "draw_all"]


@dataclass(frozen=True)
class Drawing:
    """A function of a figure family, the table it reads, and the studies that it is given, one panel or row each."""

    module: str
    function: str
    table: TableName
    studies: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, frame: pd.DataFrame, look: Look) -> Sheet:
        """Lay the figure out from its table."""
        family = getattr(import_module(f"bilevel.plots.{self.module}"), self.function)
        sheet: Sheet = family(frame, self.studies, look, **self.settings)
        return sheet


_CLEANING = ("cleaning_published", "cleaning_corrected")
_BIAS = ("bias_quadratic", "bias_logistic", "bias_rescaled")
_NUMERIC = ("numeric_quadratic", "numeric_network")
_DISTILLATION = ("distillation_published", "distillation_corrected")
_IMAGES = ("distillation_images", "distillation_cifar10")
_ACCURACY = {
    "y": "test_accuracy",
    "x_label": "Iteration",
    "y_label": "Test accuracy",
    "skipped": 0.1,
    "own_axes": True,
}
_PREDICTED = {"marked": "predicted", "marked_label": "predicted"}
_LONGER = tuple(f"linear_e{e}_n2" for e in (10, 100, 500, 1000, 2000))
_MOVED = {"methods": ("optimized", *_LONGER[:1], *_LONGER[2:], "linear_e10_n10"), "own_axes": True, **_PREDICTED}
_CHAINS = ("chains_network", "chains_quadratic")
_RESPONSES = ("hypernetwork_local", "hypernetwork_global")
_PRUNED = {
    "metric": "accuracy",
    "domains": {"-3": "λ = 10⁻³", "0": "λ = 1", "2": "λ = 100"},
    "x_label": "Weights pruned, %",
    "y_label": "Test accuracy",
}
_LEARNED = ("learned_optimizer_quadratic", "learned_optimizer_network")
_SELF_REFERENTIAL = ("self_referential", "self_referential_binary")
_DOMAINS = ("rotated_mnist_2", "rotated_mnist_3", "rotated_mnist_4")
_ROTATIONS = {"union": "All rotations", "0": "0°", "180": "180°", "90": "90°", "270": "270°"}
_LANGUAGES = {"en": "English", "de": "German"}
_BETAS = (
    ("struct_0.1", "struct_1", "struct"),
    ("contr_0.00001", "contr_0.001", "contr_0.01", "contr"),
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
            "paired",
            "differences",
            "trace",
            ("lenet_l2", "lenet_l2_published"),
            {
                "y": "cross_entropy",
                "x_label": "Updates of the coefficients",
                "y_label": "Test cross-entropy less that without a penalty",
                "baseline": "no_penalty",
                "methods": ("shared", "individual", "individual_t1_t2", "individual_gamma_0.99"),
                "own_axes": True,
            },
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
    "002": {
        "hypernetwork_responses": Drawing("responses", "response_curves", "points", _RESPONSES),
        "hypernetwork_candidates": Drawing("responses", "predicted_against_true", "points", ("hypernetwork_scatter",)),
        "hypernetwork_level": Drawing(
            "curves",
            "curves",
            "trace",
            ("hypernetwork_local",),
            {"y": "level", "x_label": "Updates of λ", "y_label": "λ"},
        ),
        "hypernetwork_found": Drawing(
            "curves",
            "curves",
            "trace",
            ("hypernetwork_scatter",),
            {"y": "excess", "x_label": "Evaluations", "y_label": "Loss above the best", "x_log": True},
        ),
        "complexity_base": Drawing(
            "domains",
            "metric_by_domain",
            "trace",
            ("complexity_control",),
            {**_PRUNED, "methods": ("base", "base_linear", "base_piecewise")},
        ),
        "complexity_var": Drawing(
            "domains",
            "metric_by_domain",
            "trace",
            ("complexity_control",),
            {**_PRUNED, "methods": ("var", "var_linear", "var_piecewise")},
        ),
        "search_projections": Drawing(
            "projections",
            "projections",
            "points",
            ("search_function",),
            {"methods": ("grid_middles", "random", "sobol")},
        ),
        "search_dimension": Drawing(
            "curves",
            "curves",
            "trace",
            ("search_function", "search_function_all"),
            {
                "y": "regret",
                "x_label": "Dimension",
                "y_label": "Value above the minimum",
                "x_log": True,
                "y_log": True,
            },
        ),
        "search_network_validation": Drawing(
            "curves",
            "curves",
            "trace",
            ("search_network",),
            {
                "y": "validation_loss_equal_cost",
                "x_label": "Hyperparameters",
                "y_label": "Validation cross-entropy",
                "x_log": True,
            },
        ),
        "search_network_test": Drawing(
            "curves",
            "curves",
            "trace",
            ("search_network",),
            {
                "y": "test_loss_equal_cost",
                "x_label": "Hyperparameters",
                "y_label": "Test cross-entropy",
                "x_log": True,
            },
        ),
        "search_network_trainings": Drawing(
            "curves",
            "curves",
            "trace",
            ("search_network",),
            {
                "y": "best_3322",
                "x_label": "Trainings",
                "y_label": "Best validation cross-entropy",
                "methods": ("random", "unrolled", "unrolled_middle", "conjugate_gradient"),
            },
        ),
        "rmad_validation": Drawing(
            "curves",
            "curves",
            "trace",
            ("rmad",),
            {
                "y": "validation_loss",
                "x_label": "Outer steps",
                "y_label": "Validation loss",
                "methods": ("constant", "step", "layer"),
            },
        ),
        "rmad_inner": Drawing(
            "curves",
            "curves",
            "trace",
            ("rmad",),
            {
                "y": "inner_validation_loss",
                "x_label": "Inner step",
                "y_label": "Validation loss",
                "y_log": True,
                "methods": ("constant_grid", "constant", "step", "layer"),
            },
        ),
        "rmad_schedules": Drawing("schedules", "schedules", "points", ("rmad",), {"methods": ("layer",)}),
        "learned_optimizer_loss": Drawing(
            "curves",
            "curves",
            "trace",
            _LEARNED,
            {"y": "loss", "x_label": "Step", "y_label": "Loss of new problems", "y_log": True, "own_axes": True},
        ),
        "learned_optimizer_other": Drawing(
            "curves",
            "curves",
            "trace",
            _LEARNED,
            {"y": "other_loss", "x_label": "Step", "y_label": "Loss, other sizes", "y_log": True, "own_axes": True},
        ),
        "learned_optimizer_training": Drawing(
            "curves",
            "curves",
            "trace",
            _LEARNED,
            {
                "y": "validation_loss",
                "x_label": "Updates of the optimizer",
                "y_label": "Validation loss",
                "methods": ("lstm",),
                "own_axes": True,
            },
        ),
        "self_referential_training": Drawing(
            "curves",
            "curves",
            "trace",
            _SELF_REFERENTIAL,
            {
                "y": "test_loss",
                "x_label": "Updates",
                "y_label": "Test loss",
                "reference": "least_loss",
                "reference_label": "least",
            },
        ),
        "self_referential_place": Drawing(
            "curves",
            "curves",
            "trace",
            _SELF_REFERENTIAL,
            {
                "y": "place_loss",
                "x_label": "Place in the sequence",
                "y_label": "Test loss",
                "reference": "place_least",
                "reference_label": "nothing forgotten",
            },
        ),
        "activations_validation": Drawing(
            "curves",
            "curves",
            "trace",
            ("activations", "priors"),
            {
                "y": "validation_loss",
                "x_label": "Trainings differentiated",
                "y_label": "Validation loss",
                "methods": (
                    *("mixture", "mixture_truncated", "equal", "tanh", "relu", "identity", "sine"),
                    *("prior_mixture", "prior_l2", "prior_l1"),
                ),
                "own_axes": True,
            },
        ),
        "activations_weights": Drawing(
            "domains",
            "weights_by_domain",
            "trace",
            ("activations",),
            {
                "domains": {"1": "After hidden layer 1", "2": "After hidden layer 2"},
                "x_label": "Trainings differentiated",
                "label": "Share of the mixture",
                "methods": ("mixture", "mixture_truncated"),
            },
        ),
        "priors_weights": Drawing(
            "domains",
            "weights_by_domain",
            "trace",
            ("priors",),
            {
                "domains": {"1": "Layer 1", "2": "Layer 2", "3": "Layer 3"},
                "x_label": "Trainings differentiated",
                "label": "Share of the mixture",
                "methods": ("prior_mixture",),
            },
        ),
    },
    "003": {
        "rotated_mnist_cells": Drawing(
            "cells",
            "cells",
            "structures",
            ("rotated_mnist_4",),
            {"domains": _ROTATIONS, "methods": ("union", "multimodel", "struct", "contr")},
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
            {"domains": _ROTATIONS, "x_label": "Outer steps", "methods": ("multimodel", "struct", "contr")},
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
                "methods": ("union", "multimodel", "struct", "contr"),
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
            {
                "quantities": {"decision_teacher": "Teacher", "decision_student": "Student"},
                "methods": ("optimized",),
                "tests": "test",
            },
        ),
        "distillation_arms": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION,
            {**_ACCURACY, "methods": ("none", "naive", "random", "optimized", "linear_e10_n2", "tpe")},
        ),
        "distillation_longer": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION,
            {**_ACCURACY, "methods": ("optimized", *_LONGER)},
        ),
        "distillation_rarer": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION,
            {**_ACCURACY, "methods": ("optimized", "linear_e10_n2", *(f"linear_e10_n{n}" for n in (3, 5, 10)))},
        ),
        "distillation_slip": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION[:1],
            {**_ACCURACY, "methods": ("optimized", *(f"slip_e10_n{n}" for n in (2, 3, 5, 10)))},
        ),
        "distillation_first": Drawing(
            "curves",
            "curves",
            "trace",
            ("distillation_first",),
            {"y": "temperature", "x_label": "Iteration", "y_label": "Temperature", "own_axes": True, **_PREDICTED},
        ),
        "distillation_beta_distillation": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION,
            {"y": "beta_distillation", "x_label": "Iteration", "y_label": "β of distillation", **_MOVED},
        ),
        "distillation_beta_student": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION,
            {"y": "beta_student", "x_label": "Iteration", "y_label": "β of the labels", **_MOVED},
        ),
        "distillation_temperature": Drawing(
            "curves",
            "curves",
            "trace",
            _DISTILLATION,
            {"y": "temperature", "x_label": "Iteration", "y_label": "Temperature", **_MOVED},
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
                "methods": ("optimized", "linear_e10_n2", "linear_e1000_n2", "linear_e10_n5", "linear_e10_n10"),
                "skipped": 0.1,
                "own_axes": True,
            },
        ),
        "distillation_images": Drawing(
            "curves",
            "curves",
            "trace",
            _IMAGES,
            _ACCURACY,
        ),
        "distillation_images_weight": Drawing(
            "curves",
            "curves",
            "trace",
            _IMAGES,
            {
                "y": "beta_distillation",
                "x_label": "Iteration",
                "y_label": "λ of distillation",
                "methods": ("random", "optimized", "linear_e10_n2", "linear_e100_n2", "linear_e10_n5", "tpe"),
            },
        ),
        "distillation_images_temperature": Drawing(
            "curves",
            "curves",
            "trace",
            _IMAGES,
            {
                "y": "temperature",
                "x_label": "Iteration",
                "y_label": "Temperature",
                "methods": ("random", "optimized", "linear_e10_n2", "linear_e100_n2", "linear_e10_n5", "tpe"),
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
    from bilevel.plots.frames import read
    from bilevel.plots.look import Look

    if figure not in FIGURES.get(deck, {}):
        known = ", ".join(f"{key}/{name}" for key, names in FIGURES.items() for name in names)
        raise UserError(f"no figure {deck}/{figure}; there are: {known}")
    look = Look.read(decks_file) if decks_file else Look()
    drawing = FIGURES[deck][figure]
    drawing(read(tables, drawing.table), look).write(output, prefix=f"f{deck}-{figure}")


def draw_all(deck: str, tables: Path, folder: Path, decks_file: Path) -> None:
    """Draw all figures of a deck as `draw` does, into `<folder>/<figure>.svg`; each table is read once.

    Raises:
        UserError: the deck is unknown.
    """
    from bilevel.plots.frames import read
    from bilevel.plots.look import Look

    if deck not in FIGURES:
        raise UserError(f"no figures of a deck {deck}; there are those of {', '.join(FIGURES)}")
    look = Look.read(decks_file)
    frames = {table: read(tables, table) for table in {drawing.table for drawing in FIGURES[deck].values()}}
    for figure, drawing in FIGURES[deck].items():
        drawing(frames[drawing.table], look).write(folder / f"{figure}.svg", prefix=f"f{deck}-{figure}")
