"""Muon: momentum, of which every matrix is made orthogonal before it becomes a step.

Sources: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), from where the
coefficients of the Newton-Schulz iteration are; J. Liu et al., arXiv:2502.16982 (2025): the length of steps.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_RMS = 0.2  # of the entries of a step, as they are in AdamW: both then share a learning rate


class Muon(Optimizer):
    """Nesterov's momentum, orthogonalized, with decoupled decay, for weights of two or three dimensions.

    The last two dimensions are those of a matrix. Of three the first counts matrices, such as those of an
    element each: one whose gradient is zero, as the step had no atom of its element, stays as it is.

    Matrices of a shape go through the iteration together: one by one and in bfloat16, as ``torch.optim.Muon``
    takes them, the dozens of small ones that a potential has take five times as long.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One step from the gradients there are."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[tuple(sorted(weight.shape[-2:]))].append(weight)
            for (_, longer), weights in alike.items():
                updates = [self._momentum(weight, group["momentum"]) for weight in weights]
                length = group["lr"] * _RMS * math.sqrt(longer)
                decay = group["lr"] * group["weight_decay"]
                for weight, step in zip(weights, orthogonalized(updates), strict=True):
                    if decay:
                        weight.mul_(1 - decay * _present(weight.grad))
                    weight.sub_(step, alpha=length)

    def _momentum(self, weight: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's, after the present gradient has been added; zero where that is zero."""
        state, present = self.state[weight], _present(weight.grad)
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer = state["momentum_buffer"].lerp_(weight.grad, (1 - momentum) * present)
        return weight.grad.lerp(buffer, momentum * present)


def _present(gradient: Tensor) -> float | Tensor:
    """1 for each of several matrices that is not all zero, else 0, (M, 1, 1); 1 for a single one."""
    if gradient.dim() == 2:
        return 1.0
    return (gradient != 0).any(-1, keepdim=True).any(-2, keepdim=True).to(gradient.dtype)


def orthogonalized(matrices: list[Tensor]) -> list[Tensor]:
    """Each matrix with singular values near 1; all have the same last two dimensions, or these transposed."""
    flat = [matrix.reshape(-1, *matrix.shape[-2:]) for matrix in matrices]
    x = torch.cat([one if one.shape[1] <= one.shape[2] else one.transpose(1, 2) for one in flat])
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    parts = x.split([len(one) for one in flat])
    return [
        (part if one.shape[1] <= one.shape[2] else part.transpose(1, 2)).reshape(matrix.shape)
        for part, one, matrix in zip(parts, flat, matrices, strict=True)
    ]
