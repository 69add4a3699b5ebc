"""Optimizers: which weights each one takes, and that several together step as each would alone."""

import copy

import pytest
import torch
from torch import nn

from equipot.config import TrainingConfig
from equipot.training.muon import Muon
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


def test_muon_takes_matrices_and_adamw_the_rest():
    """torch's Muon orthogonalizes in bfloat16, hence the tolerance; elements have matrices of their own."""
    training = TrainingConfig(optimizer="muon", weight_decay=0.1, learning_rate=0.02)
    weights, apart = Weights(), Weights()
    species = [nn.Parameter(matrix.clone()) for matrix in apart.species.detach()]
    joint = make_optimizer(weights, training)
    alone = [
        torch.optim.Muon([apart.hidden, *species], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([apart.column, apart.embedding], lr=0.02, weight_decay=0.1, fused=True),
        torch.optim.AdamW([apart.shift], lr=0.02, weight_decay=0.0, fused=True),
    ]
    steps(joint, weights, 3)
    for _ in range(3):
        apart.zero_grad()
        apart.loss().backward()
        for matrix in species:
            matrix.grad = 2 * matrix.detach() + 1
        for optimizer in alone:
            optimizer.step()
    found, expected = values(weights), values(apart)
    expected["species"] = torch.stack([matrix.detach() for matrix in species])
    for name, value in expected.items():
        loose = name in ("hidden", "species")
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-3 if loose else 0, msg=name)
        assert name == "frozen" or not torch.allclose(value, values(Weights())[name], atol=5e-3)


@pytest.mark.parametrize("shape", [(32, 32), (8, 64), (96, 32)])
def test_steps_of_muon_are_orthogonal_along_the_gradient(shape):
    """Of the first one: U f(S) V^T of the gradient's U S V^T, where f is near 1, by torch's decomposition."""
    weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    Muon([weight], lr=0.1).step()
    u, values, v = torch.linalg.svd(weight.grad, full_matrices=False)
    core = u.T @ -weight.detach() @ v.T / (0.1 * 0.2 * max(shape) ** 0.5)
    assert (core - torch.diag(core.diagonal())).abs().max() < 1e-12
    lifted = core.diagonal()[values > 0.02 * values.norm()]  # five iterations lift no smaller ones
    assert len(lifted) > 0.8 * len(values)
    assert lifted.min() > 0.6
    assert lifted.max() < 1.25


def test_muon_leaves_elements_alone_that_a_step_has_no_atom_of():
    """Their momentum, made orthogonal, would else go on by whole steps."""
    weight = nn.Parameter(torch.randn(2, 3, 4))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.1)
    weight.grad = torch.randn(2, 3, 4)
    optimizer.step()
    before, momentum = weight.detach().clone(), optimizer.state[weight]["momentum_buffer"].clone()
    weight.grad[1] = 0.0
    optimizer.step()
    assert torch.equal(weight[1], before[1])
    assert torch.equal(optimizer.state[weight]["momentum_buffer"][1], momentum[1])
    assert not torch.allclose(weight[0], before[0])


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
