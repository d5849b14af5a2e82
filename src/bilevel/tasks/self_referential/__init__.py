"""A network that changes its own weights while it works: deck 002, "A neural network that embeds its own meta-levels".

Every sequence has a Boolean function of its own, drawn at random, and tells its value at one symbol after the other,
each just after the network has answered. A network that remembers what it was told answers rightly where a symbol comes
back; before that none can. The network of `bilevel.models.self_referential` may remember in its activations and in its
weights; with modification switched off it is the same network, with as many parameters, and has its activations alone.
Its first weights are trained by gradient through all that it does to them.

Its author writes that such networks did not work well in practice. With `encoding` one_hot the functions are linear
in the inputs, so that one weight for each symbol would do; with `binary` they are not.

Source: Schmidhuber 1993; deck 002. The problem is ours: the source is a thought experiment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import model_validator
from torch import Tensor

from bilevel.data import Corpus, Dataset
from bilevel.hypergradients import Hypergradient
from bilevel.models.self_referential import Course, SelfReferential
from bilevel.optimizers import Adam, Clipped
from bilevel.outer import Adam as OuterAdam
from bilevel.problem import Batch, Problem
from bilevel.randomness import generator
from bilevel.results import Metrics, Result
from bilevel.runs import OuterLoop, blank, greedy
from bilevel.settings import Count, Positive, Settings
from bilevel.tasks.self_referential.sequences import Encoding, Sequences, codes, draw_sequences
from bilevel.tracing import traced

WIDTHS, SCALES = (0.1, 2.0), (0.01, 10.0)
"""Between which the width of g and the scale of changes stay."""


class SelfReferentialSettings(Settings):
    """Settings of the experiment.

    symbols: how many there are. encoding: how the network is shown one: as one of so many inputs, or in binary digits.
    length: inputs of a sequence.
    hidden: units of the network whose values it sees at its next step. ticks: steps that every input is held for.
    modifies: whether it may change its weights; otherwise they stay, and all else is the same.
    width: σ of the kernel g that finds weights by their addresses, at the start. scale: s, the largest change of a
        weight in a step, at the start.
    batch_size: sequences of an inner step, drawn anew. learning_rate: of Adam on the first weights. clip: greatest norm
        of a gradient.
    inner_steps: k, between two updates of σ and s. outer_steps: number of these updates. outer_learning_rate: of Adam
        on the logarithms of σ and s. outer_batch_size: other sequences, on which the outer loss is taken.
    test_size: sequences of the test. evaluate_every: updates between two looks at them.
    """

    symbols: Count = 4
    encoding: Encoding = "one_hot"
    length: Count = 12
    hidden: Count = 8
    ticks: Count = 1
    modifies: bool = True
    width: Positive = 0.5
    scale: Positive = 1.0
    batch_size: Count = 32
    learning_rate: Positive = 0.02
    clip: Positive = 1.0
    inner_steps: Count = 10
    outer_steps: Count = 60
    outer_learning_rate: Positive = 0.02
    outer_batch_size: Count = 32
    test_size: Count = 300
    evaluate_every: Count = 5

    @model_validator(mode="after")
    def _fits(self) -> SelfReferentialSettings:
        if self.symbols < 2 or (self.encoding == "binary" and self.symbols & (self.symbols - 1)):
            kind = "a power of two, at least 2, for encoding binary" if self.encoding == "binary" else "at least 2"
            raise ValueError(f"symbols: expected {kind}, got {self.symbols}")
        if self.length < 2:
            raise ValueError(f"length: expected at least 2, or nothing comes back, got {self.length}")
        return self


class SelfReferentialTask(OuterLoop):
    """See the module.

    Inner loss: the mean of −log of the probability given to the target, over sequences and places. Outer loss: the same
    of other sequences; its own derivative by σ and s is what `first_order` takes. With modification switched off s has
    no effect. All methods see the same sequences.

    Trace, by update, on test sequences: `test_loss`; `repeated_loss` and `repeated_error`, the share of wrong answers,
    where the symbol has been there before; `least_loss`, ln 2 times the share of symbols that have not, which the mean
    loss cannot be expected to fall below; `change`, ‖W_T − W_0‖ / ‖W_0‖, the mean over sequences; `width`, `scale`. By
    place in the sequence, from 1, at the end: `place_loss`, `place_least`.
    Summary: the same at the end, not by place; `excess_loss`, test_loss − least_loss.
    """

    settings_class: ClassVar[type[Settings]] = SelfReferentialSettings

    def __init__(
        self,
        study: str,
        settings: Settings,
        dataset: Dataset | Corpus | None,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        """Draw the test sequences of every seed."""
        assert isinstance(settings, SelfReferentialSettings)
        self.study, self.settings, self.seeds, self.device = study, settings, list(seeds), device
        self.outer_steps, self.evaluate_every = settings.outer_steps, settings.evaluate_every
        inputs = 2 * codes(settings.symbols, settings.encoding).shape[1]
        self.network = SelfReferential(inputs, settings.hidden, settings.ticks, settings.modifies)
        self.problem = traced(Problem(self._loss, self._loss))
        self.optimizer = Clipped(Adam(learning_rate=settings.learning_rate), norm=settings.clip)
        self.tests = [self._sequences("test", seed, 0, settings.test_size) for seed in self.seeds]

    def run(self, method: Hypergradient, name: str) -> Result:
        """See `Task`; adds the trace by place."""
        self._by_place: dict[int, dict[str, Tensor]] = {}
        result = greedy(self, method, name)
        steps = sorted({*result.trace, *self._by_place})
        trace = {
            step: {**result.trace.get(step, {}), **blank(self._by_place.get(step, {}), result.alive)} for step in steps
        }
        return replace(result, trace=trace)

    def start(self) -> tuple[Tensor, Tensor]:
        """First weights of every seed, and logarithms of σ and s."""
        draws = [generator(self.study, "initialization", seed) for seed in self.seeds]
        params = torch.stack([self.network.initial(each) for each in draws]).to(self.device)
        hyper = torch.tensor([self.settings.width, self.settings.scale], device=self.device).log()
        return self.optimizer.init(params), hyper.repeat(len(self.seeds), 1)

    def outer_optimizer(self) -> OuterAdam:
        """Adam with its default decay rates."""
        return OuterAdam(self.settings.outer_learning_rate)

    def draw(self, step: int) -> tuple[Sequence[Batch], Batch]:
        """Sequences of k inner steps, and others."""
        s = self.settings
        steps = range(step * s.inner_steps, (step + 1) * s.inner_steps)
        batches = [self._batch("training", each, s.batch_size) for each in steps]
        return batches, self._batch("outer", step, s.outer_batch_size)

    def project(self, hyper: Tensor) -> Tensor:
        """Within `WIDTHS` and `SCALES`."""
        low, high = torch.tensor([WIDTHS, SCALES], device=hyper.device).log().unbind(-1)
        return torch.maximum(torch.minimum(hyper, high), low)

    def evaluate(self, state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        """See the class."""
        return self._metrics(self._courses(state, hyper), state, hyper)

    def summarize(self, state: Tensor, hyper: Tensor, trace: Sequence[Metrics]) -> dict[str, Tensor]:
        """See the class."""
        courses = self._courses(state, hyper)
        losses = torch.stack([course.losses.double().mean(0) for course in courses]).cpu()
        new = torch.stack([1 - test.repeated.double().mean(0) for test in self.tests]).cpu()
        for place in range(self.settings.length):
            self._by_place[place + 1] = {"place_loss": losses[:, place], "place_least": math.log(2) * new[:, place]}
        found = self._metrics(courses, state, hyper)
        return {**found, "excess_loss": found["test_loss"] - found["least_loss"]}

    def _metrics(self, courses: Sequence[Course], state: Tensor, hyper: Tensor) -> dict[str, Tensor]:
        rows = []
        for course, test, params in zip(courses, self.tests, self.optimizer.params(state), strict=True):
            losses, repeated = course.losses.double(), test.repeated
            first = self.network.layout.split(params)["weights"]
            change = (course.weights - first).norm(dim=(-2, -1)) / first.norm()
            rows.append(
                {
                    "test_loss": float(losses.mean()),
                    "repeated_loss": float(losses[repeated].mean()),
                    "repeated_error": float((course.margins[repeated] <= 0).double().mean()),
                    "least_loss": math.log(2) * float((~repeated).double().mean()),
                    "change": float(change.mean()),
                }
            )
        found = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
        width, scale = hyper.cpu().double().exp().unbind(-1)
        return {**found, "width": width, "scale": scale}

    @torch.no_grad()
    def _courses(self, state: Tensor, hyper: Tensor) -> list[Course]:
        """What each seed's network does on its test sequences."""
        rows = zip(self.optimizer.params(state), hyper, self.tests, strict=True)
        return [self.network.run(params, own, test.inputs, test.targets) for params, own, test in rows]

    def _loss(self, params: Tensor, hyper: Tensor, batch: Batch) -> Tensor:
        return self.network.run(params, hyper, *batch).losses.mean()

    def _batch(self, purpose: str, step: int, count: int) -> Batch:
        """Inputs (S, B, T, n) and targets (S, B, T)."""
        drawn = [self._sequences(purpose, seed, step, count) for seed in self.seeds]
        return torch.stack([each.inputs for each in drawn]), torch.stack([each.targets for each in drawn])

    def _sequences(self, purpose: str, seed: int, step: int, count: int) -> Sequences:
        s = self.settings
        drawn = draw_sequences(count, s.length, s.symbols, s.encoding, generator(self.study, purpose, seed, step))
        return Sequences(*(part.to(self.device) for part in drawn))


TASK = SelfReferentialTask
