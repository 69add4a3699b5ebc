"""Optimizers: which weights decay, and Muon, which is one optimizer for matrices and another for the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from equipot.config import TrainingConfig
from equipot.errors import TrainingError


def make_optimizer(potential: nn.Module, training: TrainingConfig) -> Optimizer:
    """The optimizer of ``training.optimizer`` for the trainable weights of ``potential``.

    Its state is tensors and plain values, and every group of weights has the key ``lr``, also for Muon.

    Raises:
        TrainingError: this torch has no Muon.
    """
    trainable = {name: weight for name, weight in potential.named_parameters() if weight.requires_grad}
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer != "muon":
        kind = AdamW if training.optimizer == "adamw" else Adam
        groups = _groups(trainable.values(), decay)
        return kind(groups, lr=rate, amsgrad=training.optimizer == "amsgrad", fused=True)
    if not hasattr(torch.optim, "Muon"):
        raise TrainingError(f"training.optimizer: muon needs torch 2.9 or later, found {torch.__version__}.")
    matrices = [weight for name, weight in trainable.items() if _is_hidden_matrix(name, weight)]
    chosen = {id(weight) for weight in matrices}
    rest = _groups((weight for weight in trainable.values() if id(weight) not in chosen), decay)
    members = []
    if matrices:
        # With this adjustment a step is as long as one of AdamW, so both share a learning rate and a decay.
        members.append(
            torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    if rest:
        members.append(AdamW(rest, lr=rate, fused=True))
    return JointOptimizer(members)


def _groups(weights: Iterable[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    # Matrices decay; the scale and shift of each species mean energies, which must not be drawn to zero.
    weights = list(weights)
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_hidden_matrix(name: str, weight: nn.Parameter) -> bool:
    """Muon is made for the matrices between hidden layers: not for embeddings, nor for a readout's column."""
    return weight.dim() == 2 and min(weight.shape) > 1 and not name.endswith("embedding")


class JointOptimizer(Optimizer):
    """Several optimizers, each for weights of its own, as one: a single state and one list of groups.

    Args:
        members: whose groups come one after the other in ``param_groups``.
    """

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
