"""The moving average of the weights."""

import torch
from torch import nn

from equipot.training.ema import WeightAverage


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
    with average.applied():
        # lerp rounds differently from the formula written out
        assert abs(model.weight.item() - expected) < 1e-15
        assert model.weight is start  # the optimizer still holds the same parameter
    assert model.weight.item() == 3.0


def test_state_goes_on_where_it_was_taken():
    torch.manual_seed(0)
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.9)
    model.weight.data.add_(1.0)
    average.update()
    state = {name: value.clone() for name, value in average.model_state_dict().items()}
    other.load_state_dict(model.state_dict())
    resumed = WeightAverage(other, decay=0.9)
    resumed.load_model_state_dict(state, average.updates)
    for each in (average, resumed):
        each.update()
    assert resumed.updates == 2
    for name, value in average.model_state_dict().items():
        assert torch.equal(value, resumed.model_state_dict()[name])
