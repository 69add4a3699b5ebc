"""An imported model beside the code that it comes from, where that is installed: both in float64."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Column, Table

from equipot.data.dataset import graph_from_atoms
from equipot.errors import ModelFileError
from equipot.models.potential import Potential
from equipot.models.predict import predict

# Relative to the energy, and to the largest force of a structure (at least 1 eV/Å); virials also to
# themselves, since they can be large where symmetry leaves no force. Sums in another order leave 1e-14; a
# path or an element in the wrong place 1e-3 and more.
TOLERANCE = 1e-9

# Energy (eV), forces (N, 3) eV/Å and stress (3, 3) eV/Å³ of atoms.
Evaluation = Callable[[Atoms], tuple[float, NDArray, NDArray]]


@dataclass(frozen=True)
class Comparison:
    """Of one structure; differences relative as `TOLERANCE` says."""

    name: str
    level: str | None
    elements: int
    energy: float
    forces: float
    stress: float  # not periodic: 0

    @property
    def worst(self) -> float:
        return max(self.energy, self.forces, self.stress)


def compare(
    potential: Potential, original: Evaluation, structures: Sequence[Atoms], level: str | None = None
) -> list[Comparison]:
    """``potential`` in float64 against ``original``, of one ``level``, on structures; some are periodic.

    Raises:
        UnknownSpeciesError: a structure contains an element that the potential does not know.
    """
    potential = copy.deepcopy(potential).double().eval()
    return [_compare(potential, original, atoms, level) for atoms in structures]


def _compare(potential: Potential, original: Evaluation, atoms: Atoms, level: str | None) -> Comparison:
    ours = predict(potential, graph_from_atoms(atoms, potential.species, potential.cutoff))
    energy, forces, stress = original(atoms)
    scale = max(1.0, float(np.abs(forces).max()))
    virials = np.zeros((2, 3, 3))
    if atoms.pbc.all():
        virials = atoms.get_volume() * np.stack([ours.stress[0].numpy(), stress])
    return Comparison(
        atoms.info.get("name", atoms.get_chemical_formula()),
        level,
        len(set(atoms.symbols)),
        abs(float(ours.energy) - energy) / max(1.0, abs(energy)),
        float(np.abs(ours.forces.numpy() - forces).max()) / scale,
        float(np.abs(virials[0] - virials[1]).max() / max(scale * len(atoms), np.abs(virials[1]).max())),
    )


def require_equal(comparisons: Sequence[Comparison], source: str) -> None:
    """Raises ModelFileError if a structure differs by more than rounding."""
    worst = max(comparisons, key=lambda found: found.worst)
    if not worst.worst <= TOLERANCE:
        where = f"'{worst.name}'" + (f" at level {worst.level}" if worst.level else "")
        raise ModelFileError(
            f"Not imported: on {where} the model differs from that of {source}, relative: energy "
            f"{worst.energy:.1e}, forces {worst.forces:.1e}, stress {worst.stress:.1e}; rounding is at most "
            f"{TOLERANCE:.0e}. Please report the case."
        )


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """A rich table with one line per structure."""
    numbers = [Column(name, justify="right") for name in ("elements", "energy", "forces", "stress")]
    named = any(found.level for found in comparisons)
    heads = ["structure", *(["level"] if named else [])]
    table = Table(*heads, *numbers, title="Relative differences in float64", box=SIMPLE)
    for found in comparisons:
        values = (f"{value:.1e}" for value in (found.energy, found.forces, found.stress))
        table.add_row(found.name, *([found.level] if named else []), str(found.elements), *values)
    return table


def sevennet(path: Path, level: str | None) -> Evaluation:
    """The evaluation of a checkpoint by the package sevenn.

    Raises:
        ModelFileError: sevenn is not installed.
    """
    try:
        from sevenn import _keys as key
        from sevenn.atom_graph_data import AtomGraphData
        from sevenn.calculator import SevenNetCalculator
        from sevenn.train.dataload import unlabeled_atoms_to_graph
    except ImportError as error:
        raise ModelFileError(
            f"--verify compares with the original code, which cannot be imported here ({error}): "
            "run `pip install sevenn`, or leave --verify out."
        ) from None
    calculator = SevenNetCalculator(str(path), device="cpu", modal=level)
    model = calculator.model.double()
    for name, buffer in model.named_buffers():  # what was rounded to single precision
        if "_w3j_" in name:
            exact = o3.wigner_3j(*map(int, name.rpartition("_w3j_")[2].split("_")), dtype=torch.float64)
            buffer.copy_(exact if torch.allclose(exact, buffer, atol=1e-6) else -exact)
    for name, module in model.named_children():  # which make single-precision numbers
        if name in ("onehot_idx_to_onehot", "one_hot_modality"):
            module.register_forward_hook(lambda _, inputs, data: _to_double(data))

    def evaluate(atoms: Atoms) -> tuple[float, NDArray, NDArray]:
        arrays = unlabeled_atoms_to_graph(atoms, calculator.cutoff)
        vectors, volume = arrays[key.EDGE_VEC], atoms.cell.volume
        data = AtomGraphData.from_numpy_dict(arrays)
        data[key.EDGE_VEC] = torch.as_tensor(vectors, dtype=torch.float64)
        data[key.CELL_VOLUME] = torch.tensor(volume, dtype=torch.float64)
        if level is not None:
            data[key.DATA_MODALITY] = level
        found = model(data)
        xx, yy, zz, xy, yz, zx = (-found[key.PRED_STRESS]).tolist()
        stress = np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])
        return found[key.PRED_TOTAL_ENERGY].item(), found[key.PRED_FORCE].numpy(), stress

    return evaluate


def _to_double(data):
    for name, value in list(data.items()):
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
            data[name] = value.double()
    return data
