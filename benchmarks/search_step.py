"""What a step of the architecture search costs beside plain training of the same supernet.

`python benchmarks/search_step.py`, in the environment of the pipeline: CPU seconds of an outer step by each method,
over those of the same weight steps alone, interleaved; medians. Two domains, in the sizes of the default configuration.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from bilevel.data import Dataset, Split
from bilevel.hypergradients import Hypergradient
from bilevel.tasks import create_method, task_class
from bilevel.tasks.rotated_mnist import RotatedMnist

ROOT = Path(__file__).parent.parent
STEPS, WARM = 20, 2
ROWS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "rotated_mnist_corrected": [
        ("none", {}),
        ("first_order", {}),
        ("darts", {}),
        ("truncated", {"steps": 1}),
        ("aggregated", {"gamma": 0.9}),
    ],
    "rotated_mnist_published": [("none", {}), ("darts_unmoved", {})],
}


class Search:
    """A search that takes one outer step at a time."""

    def __init__(self, name: str, method: Hypergradient, dataset: Dataset, settings: dict[str, Any]) -> None:
        cls = task_class(name)
        task = cls("search_step", cls.read_settings(settings), dataset, [0], torch.device("cpu"))
        assert isinstance(task, RotatedMnist)
        self.task, self.method, self.outer = task, method, task.outer_optimizer()
        self.state, self.hyper = task.start()

    def step(self, index: int) -> float:
        """CPU seconds."""
        begin = time.process_time()
        batches, outer_batch = self.task.draw(index)
        found = self.method(self.task.problem, self.task.optimizer, self.state, self.hyper, batches, outer_batch)
        self.state, self.hyper = found.state, self.outer.step(self.hyper, found.hypergradient)
        return time.process_time() - begin


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    study = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))["studies"]["rotated_mnist_2"]
    draws = torch.Generator().manual_seed(0)  # what the images show makes no difference to the time
    images = torch.randint(256, (2000, 1, 28, 28), generator=draws).to(torch.uint8)
    dataset = Dataset("mnist_5k", {"all": Split(images, torch.arange(2000) % 10)})
    for name, rows in ROWS.items():
        searches = [Search(name, create_method(name, row[0], row[1]), dataset, study["settings"]) for row in rows]
        seconds = [[search.step(index) for search in searches] for index in range(STEPS + WARM)][WARM:]
        medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
        print(f"{name}: an outer step, beside its weight steps alone")
        for row, median in zip(rows, medians, strict=True):
            print(f"  {row[0]:14} {1000 * median:6.0f} ms  {median / medians[0]:.2f}")


if __name__ == "__main__":
    main()
