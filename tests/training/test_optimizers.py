"""Optimizers: which weights each one takes, and that several together step as each would alone."""

import copy

import pytest
import torch
from torch import nn

from equipot.config import TrainingConfig
from equipot.training.optimizers import make_optimizer


class Weights(nn.Module):
    """One weight of every shape that potentials have."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {
            "hidden": (3, 4), "column": (4, 1), "species": (2, 3, 4), "embedding": (2, 3), "shift": (2,),
            "frozen": (3, 3),
        }  # fmt: skip
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            setattr(self, name, nn.Parameter(value, requires_grad=name != "frozen"))

    def loss(self) -> torch.Tensor:
        return sum((w**2).sum() + w.sum() for w in self.parameters() if w.requires_grad)


def steps(optimizer, weights: Weights, number: int) -> None:
    for _ in range(number):
        optimizer.zero_grad()
        weights.loss().backward()
        optimizer.step()


def values(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.named_parameters()}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "amsgrad", "muon"])
def test_trains_everything_but_frozen_weights_and_restores_exactly(optimizer):
    training = TrainingConfig(optimizer=optimizer, weight_decay=0.01)
    weights = Weights()
    before = values(weights)
    first = make_optimizer(weights, training)
    steps(first, weights, 3)
    changed = {name for name, value in values(weights).items() if not torch.equal(value, before[name])}
    assert changed == before.keys() - {"frozen"}
    twin = copy.deepcopy(weights)
    second = make_optimizer(twin, training)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for group in [*first.param_groups, *second.param_groups]:
        group["lr"] = 0.02
    steps(first, weights, 2)
    steps(second, twin, 2)
    for name, value in values(weights).items():
        assert torch.equal(value, values(twin)[name]), name
        assert name == "frozen" or not torch.equal(value, before[name])


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    training = TrainingConfig(optimizer="muon", weight_decay=0.1, learning_rate=0.02)
    weights, apart = Weights(), Weights()
    joint = make_optimizer(weights, training)
    alone = [
        torch.optim.Muon([apart.hidden], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [apart.column, apart.species, apart.embedding], lr=0.02, weight_decay=0.1, fused=True
        ),
        torch.optim.AdamW([apart.shift], lr=0.02, weight_decay=0.0, fused=True),
    ]
    steps(joint, weights, 3)
    for _ in range(3):
        apart.zero_grad()
        apart.loss().backward()
        for optimizer in alone:
            optimizer.step()
    for name, value in values(apart).items():
        assert torch.equal(value, values(weights)[name]), name


def test_only_matrices_decay():
    for optimizer in ("adamw", "muon"):
        weights = Weights()
        made = make_optimizer(weights, TrainingConfig(optimizer=optimizer, weight_decay=0.5))
        decays = {id(w): group["weight_decay"] for group in made.param_groups for w in group["params"]}
        assert {name: decays.get(id(w)) for name, w in weights.named_parameters()} == {
            "hidden": 0.5, "column": 0.5, "species": 0.5, "embedding": 0.5, "shift": 0.0, "frozen": None,
        }  # fmt: skip


def test_steps_of_amsgrad_do_not_grow_when_gradients_shrink():
    def last_step(optimizer):
        model = nn.Linear(1, 1, bias=False).double()
        made = make_optimizer(model, TrainingConfig(optimizer=optimizer, learning_rate=0.1))
        for gradient in [10.0, *[0.01] * 10_000]:
            before = model.weight.item()
            model.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
            made.step()
        return abs(model.weight.item() - before)

    # Adam has forgotten the large gradient and takes whole steps; AMSGrad divides by the largest one. The
    # first is nearly the learning rate; the second 0.01 / (10 √0.001), as Adam weighs one gradient.
    assert last_step("adam") > 0.09
    assert last_step("amsgrad") < 0.005
