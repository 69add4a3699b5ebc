"""The loss: a weighted sum of means over the components of each quantity (of energies, per atom).

The weight of a structure, and that of one of its labels, multiply its terms. The mean is over the number of
terms, not over the sum of their weights: in a batch of one, the weight would otherwise cancel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from equipot.config import LossConfig
from equipot.errors import TrainingError
from equipot.evaluation.metrics import by_irrep
from equipot.graph import AtomicGraph, nearest_branch, structure_sizes
from equipot.models.predict import Prediction
from equipot.nn.gaussians import GaussianBasis
from equipot.quantities import LABELS, QUANTITIES, Quantity
from equipot.training.outputs import density_basis, times_overlap


@dataclass(frozen=True)
class LabelError:
    """Prediction minus reference where the label is known, zero elsewhere."""

    error: Tensor  # (S, ...) or (N, ...), of energies per atom
    count: Tensor  # () float64, how many components are known
    weight: Tensor | None = None  # (S,) or (N,) float64, of each row in the loss; None: 1
    of_density: AtomicGraph | None = None  # the error is one of a density of this


def label_errors(
    prediction: Prediction, graph: AtomicGraph, chosen: Tensor | None = None
) -> dict[str, LabelError]:
    """Errors of what is both labelled and predicted, by name; only of the structures ``chosen`` (S,)."""
    num_atoms = structure_sizes(graph)
    weight = graph.labels.weight
    weights = (None, None) if weight is None else (weight, weight[graph.structure])
    errors = {}
    for name, quantity in QUANTITIES.items():
        label, predicted = graph.labels.values.get(name), prediction.of(name)
        if label is not None and predicted is not None:
            of_level = True if chosen is None else quantity.choose(chosen, chosen[graph.structure])
            value = label.value
            if quantity.quantum:
                value = nearest_branch(value, predicted.detach(), graph, quantity.quantum)
            error = quantity.error(predicted, value, num_atoms)
            of_row = [w for w in (quantity.choose(*weights), label.weight) if w is not None]
            masked = _masked(error, label.mask & of_level, math.prod(of_row) if of_row else None)
            errors[name] = replace(masked, of_density=graph) if quantity.basis else masked
    return errors


def _masked(error: Tensor, known: Tensor, weight: Tensor | None) -> LabelError:
    components = error[0].numel() if error.shape[0] else 1
    mask = known.view(-1, *(1,) * (error.dim() - 1))
    # Not a product with the mask: the predicted stress of a molecule is NaN, and 0 * NaN is NaN.
    return LabelError(torch.where(mask, error, 0.0), known.sum().double() * components, weight)


class Loss:
    """The function of one error (its square, or the Huber function) and the weight of each label.

    ``weights`` are those of the end of training. What is reported and compared is weighted with them, so
    that the losses of all epochs mean the same while the weights that are trained with change.

    Args:
        settings: section ``training.loss`` of the configuration.
        spreads: by the name of an output, what its errors are divided by.
        species: element of each type of atoms; needed where a density is predicted. The square of its error
            is ∫ (ρ − ρ_ref)² dV = Δcᵀ S Δc, S the overlaps of its functions, whatever the kind of loss.
        irrep_weights: section ``training.irrep_weights``: of squares of an output's irreps.
    """

    def __init__(
        self,
        settings: LossConfig,
        spreads: Mapping[str, float] = MappingProxyType({}),
        species: Sequence[str] = (),
        irrep_weights: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    ):
        self._roots = {name: _root(QUANTITIES[name], weights) for name, weights in irrep_weights.items()}
        self.settings, self.spreads, self.species = settings, spreads, list(species)
        self._bases: dict[tuple[str, torch.device], GaussianBasis] = {}
        self.weights = {name: settings.final_weight(name) for name in LABELS}

    def weights_at(self, epoch: float) -> dict[str, float]:
        """The weights to train with after ``epoch`` epochs, with a fraction within one."""
        return {name: self.settings.weight_at(name, epoch) for name in LABELS}

    def sums(self, errors: dict[str, LabelError]) -> dict[str, Tensor]:
        """Weighted sum over all known components of each label: () float64."""
        return {name: self._sum(name, error) for name, error in errors.items()}

    def total(
        self,
        sums: dict[str, Tensor],
        counts: Tensor,
        prediction: Prediction,
        weights: dict[str, float] | None = None,
    ) -> Tensor:
        """() float64: Σ weight · sum / count. A label without any value contributes zero.

        Args:
            sums: of the frames at hand.
            counts: (Q,) known components of each of ``LABELS`` in the whole step, of which these frames may
                be a part: totals of parts then add up to that of the step.
            prediction: of these frames.
            weights: as from ``weights_at``; None: ``self.weights``.

        Raises:
            TrainingError: a weight for what the model does not predict.
        """
        weights = self.weights if weights is None else weights
        for name, weight in weights.items():
            if weight > 0 and prediction.of(name) is None:
                raise TrainingError(
                    f"training.loss.{name} is {weight:g}, but the model predicts no {name}: set it to 0."
                )
        # Frames without labels must still have a gradient, of zeros, for the optimizer to step over.
        values = prediction.outputs.values() if prediction.energy is None else [prediction.energy]
        total = 0.0 * sum(value.sum() for value in values)
        for name, value in sums.items():
            if weights[name] > 0:
                total = total + weights[name] * value / counts[LABELS.index(name)].clamp(min=1)
        return total

    def _sum(self, name: str, label: LabelError) -> Tensor:
        error = label.error / self.spreads.get(name, 1.0)
        if name in self._roots:
            error = (error.flatten(1) @ self._roots[name].to(error.device)).view_as(error)
        if label.of_density is not None:
            terms = self._density_terms(name, error, label.of_density)
        elif self.settings.kind == "huber":
            zero = torch.zeros_like(error)
            terms = huber_loss(error, zero, reduction="none", delta=self.settings.huber_delta)
        else:
            terms = error.square()
        if label.weight is None:
            return terms.sum()
        return (terms * label.weight.view(-1, *(1,) * (error.dim() - 1))).sum()

    def _density_terms(self, name: str, error: Tensor, graph: AtomicGraph) -> Tensor:
        """(N, K), whose sum is Δcᵀ S Δc. Its gradient is 2 S Δc, for which S Δc needs none."""
        if (name, error.device) not in self._bases:
            self._bases[name, error.device] = density_basis(name, self.species, error.device)
        terms = 2 * error * times_overlap(self._bases[name, error.device], error.detach(), graph)
        return terms - 0.5 * terms.detach()


def _root(quantity: Quantity, weights: Mapping[str, float]) -> Tensor:
    """(V, V) float64, of V numbers: its square is Σ w_i P_i, P_i the projectors on the irreps."""
    found = torch.zeros(quantity.components, quantity.components, dtype=torch.float64)
    one = np.eye(quantity.components).reshape(-1, *quantity.shape)
    for irrep, parts in by_irrep(quantity, one).items():
        found += math.sqrt(weights.get(irrep, 1.0)) * torch.from_numpy(parts @ parts.T)
    return found
