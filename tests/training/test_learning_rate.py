"""The learning-rate schedule, step by step."""

import pytest

from equipot.config import ScheduleConfig, SWAConfig
from equipot.training.learning_rate import LearningRateSchedule


def schedule(epochs: int = 10, **settings) -> LearningRateSchedule:
    return LearningRateSchedule(ScheduleConfig(**settings), 0.1, steps_per_epoch=4, epochs=epochs)


def test_warmup_rises_linearly_to_the_full_rate():
    rates = [schedule(kind="constant", warmup_epochs=1).at(step) for step in range(6)]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rel=1e-12)


def test_cosine_falls_from_the_full_rate_to_the_minimum():
    cosine = schedule(kind="cosine", warmup_epochs=2, min_learning_rate=0.01)
    rates = [cosine.at(step) for step in range(8, 41)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[16] == pytest.approx(0.055)  # half way
    assert rates[-1] == pytest.approx(0.01)
    assert rates == sorted(rates, reverse=True)
    assert cosine.at(1000) == pytest.approx(0.01)


def test_plateau_reduces_after_patience_epochs_without_improvement():
    plateau = schedule(kind="plateau", patience=2, factor=0.5)
    rates = []
    for epoch, loss in enumerate([1.0, 0.5, 0.6, 0.6, 0.6, 0.4, 0.6, 0.6, 0.6]):
        plateau.observe(loss, epoch)
        rates.append(plateau.at(40))
    assert rates == [0.1] * 4 + [0.05] * 4 + [0.025]


def test_plateau_ignores_warmup_and_stops_at_the_minimum():
    plateau = schedule(kind="plateau", patience=0, factor=0.1, warmup_epochs=2, min_learning_rate=0.02)
    for epoch, loss in enumerate([0.1, 0.1, 1.0]):
        plateau.observe(loss, epoch)
    assert plateau.at(40) == 0.1
    plateau.observe(1.0, 3)
    assert plateau.at(40) == 0.02


def test_rate_of_weight_averaging_takes_over():
    swa = SWAConfig(from_epoch=3, learning_rate=0.007)
    settings = ScheduleConfig(kind="cosine", min_learning_rate=0.01)
    rates = [LearningRateSchedule(settings, 0.1, 4, 10, swa).at(step) for step in range(40)]
    assert rates[:12] == [schedule(kind="cosine", min_learning_rate=0.01).at(step) for step in range(12)]
    assert rates[12:] == [0.007] * 28
    without_rate = SWAConfig(from_epoch=3)
    assert LearningRateSchedule(settings, 0.1, 4, 10, without_rate).at(20) == schedule(
        kind="cosine", min_learning_rate=0.01
    ).at(20)


def test_state_restores_the_reduction():
    before, after = (schedule(kind="plateau", patience=0) for _ in range(2))
    for epoch in range(3):
        before.observe(1.0, epoch)
    after.load_state_dict(before.state_dict())
    assert after.at(40) == before.at(40) == 0.025
    assert after.state_dict() == before.state_dict()
