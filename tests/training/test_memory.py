"""The forecast against the memory that the largest step takes; what is said about it."""

import pytest
import torch

from equipot.data.batching import Budget
from equipot.data.load import load_datasets
from equipot.graph import collate
from equipot.models.build import build_potential
from equipot.training.memory import (
    LiveTensors,
    MemoryForecast,
    _measure,
    describe_memory,
    forecast_memory,
    free_memory,
)


def test_live_tensors_are_counted_while_they_live():
    with LiveTensors() as tensors:
        one = torch.zeros(1000, dtype=torch.float64)
        view = one[10:]  # of the same memory
        assert tensors.bytes == 8000
        del one
        assert tensors.bytes == 8000
        del view
        assert tensors.bytes == 0
        torch.ones(500, dtype=torch.float64)
    assert tensors.peak == 8000


@pytest.fixture
def potential_and_frames(make_config):
    config = make_config(model={"channels": 8, "layers": 2})
    datasets = load_datasets(config.data, config.model.cutoff)
    torch.manual_seed(0)
    return build_potential(config.model, ["Cu"], 3.0, [0.0], 1.0), datasets.train


@pytest.mark.parametrize("size", [1, 3, 9])
def test_forecast_is_near_what_the_largest_step_takes(potential_and_frames, size):
    potential, frames = potential_and_frames
    measured = _measure(potential, collate([frames[i] for i in range(size)]))  # all have the same size
    forecast = forecast_memory(potential, frames, Budget(size), 1)
    weights = 5 * 8 * sum(weight.numel() for weight in potential.parameters())
    assert forecast.edges == 12 * size
    # Not exactly proportional: tables of radial functions, say, are made once.
    assert forecast.bytes - weights == pytest.approx(measured, rel=0.1)


def test_parts_need_less(potential_and_frames):
    potential, frames = potential_and_frames
    edges = [forecast_memory(potential, frames, Budget(9), parts).edges for parts in (1, 2, 4)]
    assert edges == [108, 66, 39]  # a share, and one frame more if they cannot be dealt out evenly


def test_too_little_memory_is_a_warning_with_advice():
    forecast = MemoryForecast(30_000_000_000, 123_456)
    text = "Memory: about 30 GB for the largest step, of 123,456 edges at once"
    assert describe_memory(forecast, None) == text
    assert describe_memory(forecast, 80_000_000_000) == f"{text}; 80 GB free"
    warning = describe_memory(forecast, 16_000_000_000)
    assert warning.startswith("Warning")
    assert "training.accumulate to 3" in warning


def test_free_memory_is_told_on_linux():
    assert free_memory("cpu") > 1e6
