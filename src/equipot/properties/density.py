"""``equipot density``: the electron density of a molecule, as a cube file and a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io.cube import write_cube
from ase.units import Debye
from numpy.typing import NDArray

from equipot.data.structures import read_structure
from equipot.errors import ConfigError, DataError, ModelFileError
from equipot.integrations.ase import EquipotCalculator
from equipot.nn.gaussians import GaussianBasis
from equipot.properties.density_plot import plot_density
from equipot.properties.output import Result, Table
from equipot.properties.settings import DensitySettings
from equipot.quantities import QUANTITIES
from equipot.units import BOHR

_MOST_POINTS = 50_000_000


class Density:
    """Of one molecule: coefficients of Gaussian functions on its atoms, scaled to its number of electrons."""

    def __init__(self, atoms: Atoms, name: str, rows: NDArray, charge: float = 0.0):
        quantity, species = QUANTITIES[name], list(QUANTITIES[name].basis)
        self.atoms = atoms
        self.basis = GaussianBasis(quantity.basis, quantity.rows.irreps, species)
        self.types = torch.tensor([species.index(symbol) for symbol in atoms.symbols])
        self.positions = torch.from_numpy(atoms.positions / BOHR)
        self.electrons = float(atoms.numbers.sum() - charge)
        self.rows = torch.from_numpy(np.array(rows, dtype=np.float64))
        self.predicted = float(self.basis.moments(self.rows, self.positions, self.types)[0].sum())
        self.rows *= self.electrons / self.predicted

    def at(self, points: NDArray) -> NDArray:
        """(..., 3) Å → (...) e/Bohr³."""
        flat = torch.from_numpy(np.ascontiguousarray(points.reshape(-1, 3)) / BOHR)
        return (
            self.basis.density(flat, self.rows, self.positions, self.types).numpy().reshape(points.shape[:-1])
        )

    def dipole(self) -> NDArray:
        """(3,) e Å, of nuclei and electrons, about the center of mass."""
        center = self.atoms.get_center_of_mass()
        _, moment = self.basis.moments(self.rows, self.positions, self.types)
        of_electrons = moment.numpy() * BOHR - self.electrons * center
        return self.atoms.numbers @ (self.atoms.positions - center) - of_electrons


def density(structure: str | Path | Atoms, model: Any, settings: DensitySettings | None = None) -> Result:
    """The density of a molecule on a grid, its number of electrons and its dipole.

    Args:
        structure: any file that trainings read, or Atoms; not periodic.
        model: a deployed file or the folder of an ensemble, with an output that has a `basis`.
        settings: those of the command.

    Raises:
        ConfigError: no such output, no electrons by the charge, or the grid is too large.
        DataError: the structure is periodic, or the density has no electrons.
        ModelFileError: the model predicts no density.
    """
    settings = settings or DensitySettings()
    atoms = read_structure(structure, settings.species_map)
    if atoms.pbc.any():
        raise DataError(
            "The structure is periodic, but the density is that of a molecule, without images. "
            "If it is a molecule in a box, set its pbc to F F F."
        )
    if not atoms.numbers.sum() > settings.charge:
        raise ConfigError(
            f"--charge {settings.charge:g}: the nuclei have {atoms.numbers.sum()} e, so there is no electron."
        )
    calculator = EquipotCalculator(model, settings.device)
    name = _chosen(calculator, settings.name, model)
    found = Density(atoms, name, calculator.get_property(name, atoms), settings.charge)
    if not found.predicted > 0:
        raise DataError(f"The predicted density has {found.predicted:.4g} electrons: is it trained?")
    origin, shape = _box(atoms, settings)
    grid = origin + np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) * settings.spacing
    values = found.at(grid)
    numbers = _numbers(found, values, settings) | {"output": name, "grid": shape, "origin_Ang": origin}
    return Result(
        name="density",
        numbers=numbers,
        paragraphs=[_summary(atoms, numbers, settings)],
        tables=[_table(numbers)],
        pictures={"density.png": plot_density(atoms, found.at)},
        files={"density.cube": lambda path: _write(path, atoms, values, origin, settings.spacing)},
    )


def _chosen(calculator: EquipotCalculator, name: str | None, model: Any) -> str:
    names = [output for output in calculator.model.output_names if QUANTITIES[output].basis]
    if not names:
        raise ModelFileError(
            f"{model}: predicts no density. Train one with an output that has a `basis` (docs/density.md)."
        )
    if name is None and len(names) > 1:
        raise ConfigError(
            f"The model predicts {len(names)} densities: choose one with --name: {', '.join(names)}."
        )
    if name is not None and name not in names:
        raise ConfigError(f"--name {name}: the model has no such density, but {', '.join(names)}.")
    return name or names[0]


def _box(atoms: Atoms, settings: DensitySettings) -> tuple[NDArray, tuple[int, ...]]:
    """First point (Å) and number of points of the grid."""
    low, high = (f(atoms.positions, axis=0) for f in (np.min, np.max))
    shape = np.ceil((high - low + 2 * settings.margin) / settings.spacing).astype(int) + 1
    if shape.prod() > _MOST_POINTS:
        raise ConfigError(
            f"The grid would have {' x '.join(map(str, shape))} points, more than {_MOST_POINTS:,}. "
            "Raise --spacing or lower --margin."
        )
    return 0.5 * (low + high - (shape - 1) * settings.spacing), tuple(shape.tolist())


def _write(path: Path, atoms: Atoms, values: NDArray, origin: NDArray, spacing: float) -> None:
    boxed = atoms.copy()
    boxed.cell = np.array(values.shape) * spacing
    with path.open("w") as file:
        write_cube(file, boxed, values, origin=origin, comment="electron density, e/Bohr^3, by equipot")


def _numbers(found: Density, values: NDArray, settings: DensitySettings) -> dict[str, Any]:
    dipole = found.dipole()
    return {
        "formula": found.atoms.get_chemical_formula(),
        "electrons": found.electrons,
        "electrons_predicted": found.predicted,
        "dipole_e_Ang": dipole,
        "dipole_Debye": float(np.linalg.norm(dipole) / Debye),
        "lowest_e_per_Bohr3": float(values.min()),
        "highest_e_per_Bohr3": float(values.max()),
        "spacing_Ang": settings.spacing,
    }


def _summary(atoms: Atoms, numbers: dict[str, Any], settings: DensitySettings) -> str:
    off = numbers["electrons_predicted"] / numbers["electrons"] - 1
    about = "" if settings.charge == 0 else " (of an ion: about its center of mass)"
    return (
        f"The electron density of {numbers['formula']}: {numbers['electrons_predicted']:.4f} electrons, "
        f"{100 * off:+.3f} % off the {numbers['electrons']:g} that it must have, to which it was scaled. Its "
        f"dipole{about} is {numbers['dipole_Debye']:.3f} D. The lowest value on the grid is "
        f"{numbers['lowest_e_per_Bohr3']:.1e} e/Bohr³, as fitted densities are not bound to be positive."
    )


def _table(numbers: dict[str, Any]) -> Table:
    x, y, z = (f"{component:.4f}" for component in numbers["dipole_e_Ang"])
    rows = [
        ["electrons, by integration of the functions", f"{numbers['electrons_predicted']:.5f}"],
        ["electrons, nuclear charges less the charge", f"{numbers['electrons']:g}"],
        ["dipole, e Å", f"{x}  {y}  {z}"],
        ["dipole, D", f"{numbers['dipole_Debye']:.4f}"],
    ]
    return Table("Integrals of the density", ["what", "value"], rows)
