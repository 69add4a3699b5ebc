"""Averages of the weights, exponential and with equal shares."""

import copy

import pytest
import torch
from torch import nn

from equipot.errors import TrainingError
from equipot.training.ema import WeightAverage
from equipot.training.module import PotentialModule
from equipot.training.monitor import TrainingMonitor
from equipot.training.run import train


def test_average_follows_its_recurrence_and_swap_is_exact():
    model = nn.Linear(1, 1, bias=False).double()
    average = WeightAverage(model, decay=0.5)
    expected, start = model.weight.item(), model.weight
    for value in (1.0, 2.0, 3.0):
        model.weight.data.fill_(value)
        average.update()
        # the decay of the first updates is lower: 2/11, 3/12, 4/13
        decay = min(0.5, (1 + average.updates) / (10 + average.updates))
        expected = decay * expected + (1 - decay) * value
    average.swap()
    # lerp rounds differently from the formula written out
    assert abs(model.weight.item() - expected) < 1e-15
    assert model.weight is start  # the optimizer still holds the same parameter
    average.swap()
    assert model.weight.item() == 3.0


def test_state_goes_on_where_it_was_taken():
    torch.manual_seed(0)
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.9)
    model.weight.data.add_(1.0)
    average.update()
    content, state = copy.deepcopy(average.checkpoint()), average.state_dict()
    other.load_state_dict(model.state_dict())
    resumed = WeightAverage(other, decay=0.9)
    resumed.load(content, state)
    for each in (average, resumed):
        each.update()
    assert resumed.updates == 2
    for name, value in average.model_state_dict().items():
        assert torch.equal(value, resumed.model_state_dict()[name])


def test_equal_shares_take_over_from_the_exponential_average():
    model = nn.Linear(1, 1, bias=False).double()
    average = WeightAverage(model, decay=0.5, swa_from=2)
    for epoch, value in ((1.0, 7.0), (1.5, 9.0)):
        model.weight.data.fill_(value)
        average.update(epoch)
    assert average.kind == "ema"
    for epoch, value in ((2.0, 1.0), (2.5, 2.0), (3.0, 6.0)):
        model.weight.data.fill_(value)
        average.update(epoch)
        if epoch == 2.0:
            assert average.model_state_dict()["weight"].item() == 1.0  # nothing of before is left
    assert average.kind == "swa"
    average.swap()
    assert model.weight.item() == pytest.approx(3.0, rel=1e-15)  # rounding of two lerps
    average.swap()
    content = average.checkpoint()
    assert content["ema"] is None
    assert content["swa"]["weight"].item() == pytest.approx(3.0, rel=1e-15)


def test_without_exponential_average_the_weights_stand_in_until_then():
    model = nn.Linear(1, 1, bias=False).double()
    average = WeightAverage(model, decay=None, swa_from=1)
    model.weight.data.fill_(4.0)
    average.update(0.5)
    assert average.kind is None
    assert average.checkpoint() == {"ema": None, "swa": None}
    average.swap()
    assert model.weight.item() == 4.0
    average.swap()
    average.update(1.0)
    assert average.kind == "swa"


@pytest.mark.parametrize(
    ("decay", "swa_from", "words"),
    [(0.9, 3, "since epoch 2"), (0.9, None, r"swa.from_epoch to that"), (None, 1, "since epoch 2")],
)
def test_average_that_began_at_another_epoch_is_refused(decay, swa_from, words):
    model = nn.Linear(1, 1)
    average = WeightAverage(model, decay=0.9, swa_from=2)
    average.update(2.0)
    other = WeightAverage(model, decay, swa_from)
    with pytest.raises(TrainingError, match=words):
        other.load(average.checkpoint(), average.state_dict())


def test_validation_sees_the_average_and_training_goes_on_from_the_weights(make_config, monkeypatch, no_plot):
    """Each step starts from the bits that the one before has left, also where a validation lies between.

    Whoever is told that a validation has ended finds them again: a checkpoint could be written then.
    """
    left = []  # weights after 0, 1, 2 ... steps
    validated = []  # steps done and weights, of each validation batch
    step, validate = PotentialModule.training_step, PotentialModule.validation_step

    def weights_of(module):
        return {name: weight.detach().clone() for name, weight in module.potential.named_parameters()}

    def watched_step(module, *arguments):
        start = weights_of(module)
        left.extend([start] if not left else [])
        assert all(torch.equal(start[name], weight) for name, weight in left[-1].items())
        step(module, *arguments)
        left.append(weights_of(module))

    def watched_validation(module, *arguments):
        validated.append((len(left) - 1, weights_of(module)))
        validate(module, *arguments)

    def end_of_validation(monitor, trainer, module):
        assert all(torch.equal(left[-1][name], weight) for name, weight in weights_of(module).items())

    monkeypatch.setattr(TrainingMonitor, "on_validation_end", end_of_validation)
    monkeypatch.setattr(PotentialModule, "training_step", watched_step)
    monkeypatch.setattr(PotentialModule, "validation_step", watched_validation)
    last = torch.load(
        train(make_config(training={"epochs": 3, "ema": 0.5})).last_checkpoint, weights_only=True
    )
    assert [number for number, _ in validated] == [4, 4, 8, 8, 12, 12]  # two batches after each epoch
    average, seen = left[0], dict(validated)
    for number, weights in enumerate(left[1:], start=1):
        decay = min(0.5, (1 + number) / (10 + number))
        average = {name: decay * average[name] + (1 - decay) * weight for name, weight in weights.items()}
        if number in seen:  # lerp rounds differently from the formula written out
            torch.testing.assert_close(seen[number], average, rtol=1e-12, atol=1e-14)
    for name, weight in left[-1].items():
        assert torch.equal(last["state_dict"][f"potential.{name}"], weight)
        assert torch.equal(last["equipot"]["ema"][name], seen[12][name])
