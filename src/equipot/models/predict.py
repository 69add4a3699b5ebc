"""Energies, forces, stresses and outputs of whole structures, from what a model gives for their atoms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from equipot.errors import DataError
from equipot.graph import AtomicGraph, edge_vectors, structure_sizes, volume
from equipot.ops.operators import load_operators
from equipot.quantities import BASIC, FIELD, QUANTITIES


@dataclass(frozen=True)
class Prediction:
    """What a potential says of a graph; units and signs as in :mod:`equipot.units`.

    A model without energies says its outputs alone; the rest is None.
    """

    energy: Tensor | None = None  # (S,) float64, eV
    atom_energies: Tensor | None = None  # (N,) float64, eV
    forces: Tensor | None = None  # (N, 3) float64, eV/Å
    stress: Tensor | None = None  # (S, 3, 3) float64, eV/Å³, symmetric; NaN unless periodic in all directions
    atom_virials: Tensor | None = None  # (N, 3, 3) float64, eV
    outputs: Mapping[str, Tensor] = field(default_factory=dict)  # (S, ...) or (N, ...) float64, by name
    energy_uncertainty: Tensor | None = None  # (S,) float64, eV, a standard deviation, if known

    def of(self, quantity: str) -> Tensor | None:
        """What is compared with labels of this name; None where the model does not predict it."""
        return getattr(self, quantity) if quantity in BASIC else self.outputs.get(quantity)


def predict(
    potential: nn.Module, graph: AtomicGraph, field: Tensor | None = None, energy: bool = True
) -> Prediction:
    """Energies, forces and stresses of every structure; differentiable by parameters in train mode.

    Without ``energy`` outputs alone, of a :class:`Potential`, and derivatives only if there are such outputs.

    ``potential`` is a :class:`Potential` or a deployed module with the same contract; ``field`` (S, 3)
    float64 V/Å, of each structure, for a model that knows it; None: that of the labels.
    """
    load_operators()
    owned = torch.ones_like(graph.atom_types, dtype=torch.bool)
    inputs = [edge_vectors(graph), graph.edge_index, graph.atom_types, owned]
    if graph.level is not None:
        inputs.append(graph.level[graph.structure])
    if not energy and potential.output_names and not potential.derivative_names:
        return Prediction(outputs=_outputs(potential.values(*inputs), potential.output_names, graph))
    if not getattr(potential, "has_energy", True):
        with torch.set_grad_enabled(torch.is_grad_enabled() and getattr(potential, "training", False)):
            (values,) = potential(*inputs)
            return Prediction(outputs=_outputs(values, potential.output_names, graph))
    given = graph.labels.values.get(FIELD.name)
    if field is None and given is not None:
        field = torch.where(given.mask.unsqueeze(1), given.value, 0.0)
    with torch.enable_grad():  # forces are a derivative, also where no graph is kept
        more = {} if field is None else {"field": field[graph.structure]}
        energies, forces, virials, *values = potential(*inputs, **more)
    per_atom = torch.cat([energies.unsqueeze(1), virials.flatten(1)], dim=1)
    structure = graph.structure.unsqueeze(0)
    sums = torch.ops.equipot.segment_sum(per_atom, structure, 0, graph.num_structures)
    energy, virial = sums[:, 0], sums[:, 1:].view(-1, 3, 3)
    size = volume(graph)
    periodic = (size > 0)[:, None, None]
    # Dividing by 1 where there is no volume keeps NaN out of the gradient.
    stress = -virial / torch.where(size > 0, size, torch.ones_like(size))[:, None, None]
    stress = 0.5 * (stress + stress.transpose(1, 2))
    outputs = _outputs(values[0], potential.output_names, graph) if values else {}
    return Prediction(energy, energies, forces, stress.masked_fill(~periodic, torch.nan), virials, outputs)


def _outputs(values: Tensor, names: Sequence[str], graph: AtomicGraph) -> dict[str, Tensor]:
    """Values of atoms, or of structures: sums or means over their atoms. As `quantities.of_structure`."""
    structure, count = graph.structure.unsqueeze(0), graph.num_structures
    sizes = structure_sizes(graph).unsqueeze(1)
    quantities = [QUANTITIES[name] for name in names]
    rows = dict(zip(names, values.split([one.components for one in quantities], dim=1), strict=True))
    for quantity in (one for one in quantities if one.total):
        label, own = graph.labels.values.get(quantity.total), rows[quantity.name]
        wanted = 0.0 if label is None else torch.where(label.mask, label.value, 0.0).unsqueeze(1)
        missing = wanted - torch.ops.equipot.segment_sum(own, structure, 0, count)
        rows[quantity.name] = own + (missing / sizes)[graph.structure]
    found = {}
    for quantity in quantities:
        own = rows[quantity.name]
        if quantity.charges:
            refuse_periodic(quantity.name, graph.pbc)
            own = own + quantity.per_charge * rows[quantity.charges] * graph.positions
        if not quantity.per_atom:
            own = torch.ops.equipot.segment_sum(own, structure, 0, count)
            own = own / sizes if quantity.mean else own
        found[quantity.name] = own.reshape(len(own), *quantity.shape)
    return found


def refuse_periodic(name: str, pbc: Tensor) -> None:
    """Raises DataError if one of the structures (S, 3), of which a dipole is asked, is periodic."""
    if bool(pbc.any()):
        raise DataError(
            f"The output '{name}' has Σ q r, which depends on which images of its atoms a periodic cell has. "
            "For molecules in a box take off pbc; for crystals and liquids train a vector without `charges`, "
            "on polarizations that are continuous from frame to frame."
        )
