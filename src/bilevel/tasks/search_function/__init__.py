"""Searches and descent on functions of which few coordinates matter, in more and more dimensions.

Deck 002, "Базовые методы оптимизации гиперпараметров": both grid and random search suffer from dimension; random search
may be the better one where the space is degenerate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from bilevel.checkpoint import Checkpoint
from bilevel.data import Dataset
from bilevel.hypergradients.unrolled import Unrolled
from bilevel.optimizers import SGD
from bilevel.outer import Adam
from bilevel.progress import Progress
from bilevel.randomness import generator
from bilevel.results import Point, Result
from bilevel.settings import Count, NotNegative, Settings
from bilevel.tasks.base import Task
from bilevel.tasks.search_function import functions
from bilevel.tasks.search_function.base import Search, best_so_far, check_affordable, run
from bilevel.tasks.search_function.functions import Functions
from bilevel.tasks.search_function.gradient import Gradient
from bilevel.tasks.search_function.random import first_points

GRADIENT = 3
"""Evaluations that a value with its gradient counts for: the way back takes twice the work of the way there."""

PICTURE = 9
CURVE = 101
SIDE = (0.0, 1.0)


class SearchFunctionSettings(Settings):
    """Settings of the experiment.

    dimensions: numbers of coordinates d, rising. effective: how many of them matter; None: all.
    evaluations: values of the function that a search may ask for; a gradient is worth three of them.
    small: what the other coordinates contribute to the value of a random point, to which those that matter give 1.
    ripple: r, height of the waves in each coordinate; above 0.04 there are minima that are not the least one.
    """

    dimensions: list[Count] = Field(default=[1, 2, 3, 5, 10, 50], min_length=1)
    effective: Count | None = 1
    evaluations: Annotated[int, Field(ge=GRADIENT)] = 32
    small: NotNegative = 0.05
    ripple: NotNegative = 0.05

    @field_validator("dimensions")
    @classmethod
    def _rising(cls, dimensions: list[int]) -> list[int]:
        if sorted(set(dimensions)) != dimensions:
            raise ValueError(f"expected rising numbers, got {dimensions}")
        return dimensions


class SearchFunction(Task):
    """Simple regret of a method: the least value found, the minimum being 0, and 1 + `small` the mean of random points.

    Functions and first draws depend on the seed alone, so that all methods and studies share them. All but the grid
    begin at the same point; TPE and the Gaussian process make their first ten trials at random. The grid has k places
    an axis with kᵈ ≤ evaluations, and none where 2ᵈ is more than that: there its metrics are left out.

    Two axes share the trace. Step n: after n evaluations, `regret_<d>` in each dimension, empty before the first
    gradient is paid for. Step d: in dimension d at the end, `regret`.
    Summary: `regret_<d>`; `regret_growth`, that in the last dimension there is less that in the first.
    Points, of the first seed, for searches whose points do not depend on what they find, in two dimensions of which one
    matters (x), in all studies: `point`, nine of a search with their values; `projection_important` (x, 0) and
    `projection_unimportant` (0, y), what x and y of these give to the value; `curve_important` and `curve_unimportant`,
    the same everywhere on the axes.

    Source: Bergstra and Bengio 2012; deck 002.
    """

    settings_class = SearchFunctionSettings
    methods = ("grid", "random", "sobol", "tpe", "gaussian_process", "gradient")

    @classmethod
    def check_method(cls, settings: Settings, method: Any) -> None:
        """SettingsError for a search that is possible in none of the dimensions."""
        assert isinstance(settings, SearchFunctionSettings)
        if isinstance(method, Search):
            check_affordable(method, "dimensions", settings.dimensions, settings.evaluations)

    def __init__(
        self, study: str, settings: Settings, dataset: Dataset | None, seeds: Sequence[int], device: torch.device
    ) -> None:
        """Functions are drawn when they are needed, and stay on the CPU, where searches are."""
        assert isinstance(settings, SearchFunctionSettings)
        self.settings, self.seeds = settings, list(seeds)
        self.search_seeds = [generator("search_function", "search", s).initial_seed() % 2**32 for s in seeds]

    def run(self, method: Search | Gradient, name: str) -> Result:
        """See `Task`."""
        progress, dimensions = Progress(name, "dimension"), self.settings.dimensions
        regrets: dict[int, Tensor] = {}
        for index, dimension in enumerate(dimensions):
            if isinstance(method, Gradient) or method.affords(dimension, self.settings.evaluations):
                regrets[dimension] = self.checkpoint.kept(
                    f"dimension {dimension}", partial(self._regrets, method, dimension)
                )
            progress.report(index + 1, len(dimensions))
        alive = torch.stack([torch.isfinite(values[-1]) for values in regrets.values()]).all(0)
        points = _picture(method, self) if isinstance(method, Search) and method.blind else []
        return Result(alive, _trace(regrets, self.settings.evaluations), _summary(regrets), points=points)

    def functions(self, dimension: int, effective: int | None) -> Functions:
        """Those of the seeds."""
        s = self.settings
        return functions.draw(dimension, effective, s.small, s.ripple, self.seeds)

    def _regrets(self, method: Search | Gradient, dimension: int, checkpoint: Checkpoint) -> Tensor:
        function = self.functions(dimension, self.settings.effective)
        return self._descend(method, function) if isinstance(method, Gradient) else self._search(method, function)

    def _search(self, method: Search, function: Functions) -> Tensor:
        """Least value after each evaluation, (evaluations, S)."""
        values: list[Tensor] = []

        def objective(points: Tensor) -> Tensor:
            values.append(function(points))
            return values[-1]

        run(method, objective, function.centers.shape[-1], SIDE, self.settings.evaluations, self.search_seeds)
        return _after_each(torch.stack(values), 1, self.settings.evaluations)

    def _descend(self, method: Gradient, function: Functions) -> Tensor:
        """As `_search`; f is an outer loss after no inner steps, so that its gradient is the hypergradient."""
        exact, inner, outer = Unrolled(), SGD(learning_rate=1.0), Adam(method.learning_rate)
        hyper = first_points(function.centers.shape[-1], SIDE, self.search_seeds)
        state = inner.init(hyper.new_zeros(len(self.seeds), 1))
        values: list[Tensor] = []
        for _ in range(self.settings.evaluations // GRADIENT):
            estimate = exact(function.problem, inner, state, hyper, [], function.outer_batch)
            values.append(estimate.outer_loss)
            hyper = outer.step(hyper, estimate.hypergradient).clamp(*SIDE)
        return _after_each(torch.stack(values), GRADIENT, self.settings.evaluations)


def _after_each(values: Tensor, price: int, evaluations: int) -> Tensor:
    """Least value after each of as many evaluations, (evaluations, S), where each of `values` (N, S) takes `price`; NaN
    before the first one."""
    least, _ = best_so_far(values)
    paid = torch.arange(1, evaluations + 1) // price
    found = least[(paid - 1).clamp(0, len(least) - 1)]
    return found.where((paid > 0).unsqueeze(-1), math.nan)


def _trace(regrets: Mapping[int, Tensor], evaluations: int) -> dict[int, dict[str, Tensor]]:
    trace: dict[int, dict[str, Tensor]] = {}
    for dimension, values in regrets.items():
        for index in range(evaluations):
            trace.setdefault(index + 1, {})[f"regret_{dimension}"] = values[index]
        trace.setdefault(dimension, {})["regret"] = values[-1]
    return dict(sorted(trace.items()))


def _summary(regrets: Mapping[int, Tensor]) -> dict[str, Tensor]:
    last = {f"regret_{dimension}": values[-1] for dimension, values in regrets.items()}
    return {**last, "regret_growth": regrets[max(regrets)][-1] - regrets[min(regrets)][-1]}


def _picture(method: Search, task: SearchFunction) -> list[Point]:
    """See `SearchFunction`."""
    seed = task.seeds[0]
    function = functions.draw(2, 1, task.settings.small, task.settings.ripple, [seed])
    swapped = bool(function.weights[0, 0] < function.weights[0, 1])
    order = [1, 0] if swapped else [0, 1]
    places: list[Tensor] = []

    def objective(points: Tensor) -> Tensor:
        places.append(points)
        return function(points)

    run(method, objective, 2, SIDE, PICTURE, task.search_seeds[:1])
    along = torch.linspace(*SIDE, CURVE, dtype=torch.float64).unsqueeze(-1).expand(-1, 2)
    rows = []
    for kind, points in (("projection", torch.cat(places)), ("curve", along)):
        parts = function.parts(points)[:, order].tolist()
        for (x, y), (important, other) in zip(points[:, order].tolist(), parts, strict=True):
            rows += [Point(seed, f"{kind}_important", x, 0.0, important)]
            rows += [Point(seed, f"{kind}_unimportant", 0.0, y, other)]
            if kind == "projection":
                rows += [Point(seed, "point", x, y, important + other)]
    # points of a grid share their places on the axes
    return sorted(dict.fromkeys(rows), key=lambda row: row.quantity)


TASK = SearchFunction
