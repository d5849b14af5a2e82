"""Locally linear prediction, against NumPy's fit of a polynomial of degree one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from bilevel.trajectory import LocallyLinear, Prediction


def followed(chosen: LocallyLinear, recorded: Tensor) -> Tensor:
    """Recorded or predicted values (steps, S, H) of as many steps as `recorded` has."""
    prediction = Prediction(chosen)
    rows = []
    for step, values in enumerate(recorded):
        if prediction.optimizes(step):
            prediction.record(step, values)
            rows.append(values)
        else:
            rows.append(prediction.predict(step))
    return torch.stack(rows)


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(2, 5), st.integers(0, 2**16))
def test_predictions_lie_on_the_least_squares_line(length: int, every: int, seed: int) -> None:
    chosen = LocallyLinear(length=length, every=every)
    period = length * every
    draw = torch.Generator().manual_seed(seed)
    recorded = torch.randn(2 * period + 1, 3, 2, generator=draw, dtype=torch.float64)
    found = followed(chosen, recorded)
    for first in (0, period):
        known = recorded[first : first + length].reshape(length, -1).numpy()
        slope, level = np.polyfit(np.arange(length), known, 1)
        for index in range(length, period):
            expected = (level + slope * index).reshape(3, 2)
            np.testing.assert_allclose(found[first + index].numpy(), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found[2 * period], recorded[2 * period], rtol=0, atol=0)


@given(st.integers(2, 2000), st.integers(2, 20), st.integers(0, 100_000))
def test_one_mini_epoch_of_several_is_optimized(length: int, every: int, step: int) -> None:
    prediction = Prediction(LocallyLinear(length=length, every=every))
    assert prediction.optimizes(step) == ((step // length) % every == 0)
    assert all(prediction.optimizes(index) for index in (0, length - 1, length * every))
    assert not any(prediction.optimizes(index) for index in (length, length * every - 1))


def test_a_line_is_continued_exactly_however_long_the_mini_epoch() -> None:
    steps = torch.arange(4000, dtype=torch.float64).view(-1, 1, 1)
    line = 0.7 - 3e-5 * steps + torch.tensor([[0.0, 1e3]])
    found = followed(LocallyLinear(length=2000, every=2), line)
    torch.testing.assert_close(found, line, rtol=1e-12, atol=0)


def test_single_precision_is_summed_up_in_double() -> None:
    draw = torch.Generator().manual_seed(0)
    recorded = 1000 + torch.randn(400, 1, 1, generator=draw)
    found = followed(LocallyLinear(length=200, every=2), recorded)
    assert found.dtype == torch.float32
    slope, level = np.polyfit(np.arange(200), recorded[:200, 0, 0].double().numpy(), 1)
    np.testing.assert_allclose(found[399, 0, 0].item(), level + slope * 399, rtol=1e-7)


def test_seeds_and_hyperparameters_do_not_mix() -> None:
    recorded = torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen = LocallyLinear(length=4, every=2)
    before = followed(chosen, recorded)
    recorded[2, 1, 0] = torch.nan
    after = followed(chosen, recorded)
    touched = torch.zeros(3, 2, dtype=torch.bool)
    touched[1, 0] = True
    assert after[4:, touched].isnan().all()
    torch.testing.assert_close(after[4:, ~touched], before[4:, ~touched], rtol=0, atol=0)


def test_what_is_not_recorded_in_full_is_not_predicted() -> None:
    prediction = Prediction(LocallyLinear(length=3, every=2))
    values = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="expected 3 recorded steps, found 0"):
        prediction.predict(3)
    prediction.record(0, values)
    with pytest.raises(ValueError, match=r"outer step 2 cannot be recorded: .* 1 of this one"):
        prediction.record(2, values)
    prediction.record(1, values)
    with pytest.raises(ValueError, match="outer step 3 cannot be predicted: expected 3 recorded steps, found 2"):
        prediction.predict(3)
    prediction.record(2, values)
    with pytest.raises(ValueError, match="outer step 3 cannot be recorded"):
        prediction.record(3, values)
    assert prediction.predict(5).tolist() == [[1.0]]


@pytest.mark.parametrize(
    "wrong",
    [{"length": 1}, {"every": 1}, {"of": "weights"}, {"length": 2.5}, {"degree": 2}],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LocallyLinear(**({"length": 10, "every": 2} | wrong))
