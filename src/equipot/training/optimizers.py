"""Optimizers: which weights decay, and Muon, which is one optimizer for matrices and another for the rest."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from equipot.config import TrainingConfig
from equipot.training.muon import Muon


def make_optimizer(
    potential: nn.Module, training: TrainingConfig, factors: Mapping[str, float] | None = None
) -> Optimizer:
    """The optimizer of ``training.optimizer`` for the trainable weights of ``potential``.

    ``factors``: of the learning rate, by the names of weights; see ``parameter_groups``.

    Its state is tensors and plain values, and every group of weights has the key ``lr``, also for Muon.
    """
    trainable = {name: weight for name, weight in potential.named_parameters() if weight.requires_grad}
    rate, decay, factors = training.learning_rate, training.weight_decay, factors or {}
    if training.optimizer != "muon":
        kind = AdamW if training.optimizer == "adamw" else Adam
        groups = parameter_groups(trainable, decay, factors)
        return kind(groups, lr=rate, amsgrad=training.optimizer == "amsgrad", fused=True)
    matrices = {name: weight for name, weight in trainable.items() if _is_hidden_matrix(name, weight)}
    rest = {name: weight for name, weight in trainable.items() if name not in matrices}
    members = []
    if matrices:
        groups = parameter_groups(matrices, decay, factors)
        members.append(Muon(groups, lr=rate))
    if rest:
        members.append(AdamW(parameter_groups(rest, decay, factors), lr=rate, fused=True))
    return JointOptimizer(members)


def parameter_groups(
    weights: Mapping[str, nn.Parameter], weight_decay: float, factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups for an optimizer, each with its ``weight_decay`` and the ``factor`` of its learning rate.

    Args:
        weights: by name, those to train.
        weight_decay: of matrices.
        factors: of the learning rate, by the names of weights; 1 for those it does not name.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, weight in weights.items():
        # Scale and shift mean energies, not to be drawn to zero.
        decays = weight.dim() >= 2 and not _is_added(name)
        groups.setdefault((not decays, factors.get(name, 1.0)), []).append(weight)
    return [
        {"params": groups[key], "weight_decay": 0.0 if key[0] else weight_decay, "factor": key[1]}
        for key in sorted(groups)
    ]


def _is_added(name: str) -> bool:
    """Constants that are added, which with several levels of theory are a matrix, and the scale."""
    return name.startswith("scale_shift.") or name.endswith(".bias")


def _is_hidden_matrix(name: str, weight: nn.Parameter) -> bool:
    """Muon is made for the matrices between hidden layers: not for embeddings, nor for a readout."""
    outside = name.endswith("embedding") or name.startswith("network.readout.") or _is_added(name)
    return weight.dim() >= 2 and min(weight.shape[-2:]) > 1 and not outside


class JointOptimizer(Optimizer):
    """Several optimizers, each for weights of its own, as one: a single state, groups one after the other."""

    def __init__(self, members: list[Optimizer]):
        self.members = members
        self._sizes = [len(member.param_groups) for member in members]
        super().__init__([group for member in members for group in member.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every member, from the same gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss

    def _share(self) -> None:
        """Members work on this optimizer's state and groups, which loading replaces by new ones."""
        start = 0
        for member, size in zip(self.members, self._sizes, strict=True):
            member.param_groups = self.param_groups[start : start + size]
            member.state = self.state
            start += size
