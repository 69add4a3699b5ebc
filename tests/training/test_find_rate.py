"""The learning-rate finder."""

import numpy as np
import pytest

from equipot.errors import TrainingError
from equipot.training import learning_rate
from equipot.training.learning_rate import HIGHEST, LOWEST, find_learning_rate, plot_search, suggest


@pytest.mark.parametrize(("lowest_at", "expected"), [(0.03, 0.01), (0.1, 0.02), (0.2, 0.05), (0.29, 0.05)])
def test_suggestion_is_a_round_number_a_third_below_the_minimum(lowest_at, expected):
    rates = list(np.geomspace(1e-5, 1.0, 301))
    smoothed = [abs(np.log(rate / lowest_at)) for rate in rates]
    assert suggest(rates, smoothed) == pytest.approx(expected, rel=1e-12)


def test_search_leaves_no_run_behind_and_ends_when_the_loss_explodes(make_config, tmp_path):
    config = make_config(training={"loss": {"energy": 1.0, "forces": 1.0}, "gradient_clip": 1e3})
    first = find_learning_rate(config, steps=120)
    assert not config.run.directory.exists()
    assert list(tmp_path.iterdir()) == []
    assert first.rates[0] == LOWEST
    assert first.rates[-1] <= HIGHEST
    assert first.rates == sorted(first.rates)
    assert min(first.smoothed) < 0.7 * first.smoothed[0]  # it has learned something
    assert LOWEST < first.suggestion < first.rates[int(np.argmin(first.smoothed))]
    assert find_learning_rate(config, steps=120).losses == first.losses
    plot_search(first, tmp_path / "rate.png")
    assert (tmp_path / "rate.png").read_bytes()[:4] == b"\x89PNG"


def test_search_ends_when_the_loss_has_risen(make_config, monkeypatch):
    monkeypatch.setattr(learning_rate, "HIGHEST", 1e4)
    search = find_learning_rate(make_config(), steps=60)
    assert len(search.rates) < 60
    assert search.smoothed[-1] > 4 * min(search.smoothed)


def test_loss_that_is_not_finite_from_the_start_is_an_error(make_config, monkeypatch):
    monkeypatch.setattr(learning_rate.Trial, "train", lambda *_: float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        find_learning_rate(make_config(), steps=5)
