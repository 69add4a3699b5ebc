"""Phonons of silicon, NaCl and MgO by deployed models, beside those of density-functional forces.

    scripts/benchmark phonons --data DIR --model 7net-0.pt --train runs

DIR holds ``phonons_ref``: displacements, forces and Born charges of phonopy's examples, their frequencies at
special points, and sets of displaced cells. Each model is run on the crystals whose elements it knows, with
the supercell, lattice constant and Born charges of the reference. A second reference is fitted to the forces
of the set that a small model is trained on (``--train``); for NaCl and MgO its functional and lattice
constant are not those of the example.
"""

import argparse
import json
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from phono3py import Phono3py
from phonopy import Phonopy, load
from phonopy.structure.cells import guess_primitive_matrix
from rich.console import Console
from rich.table import Table

from equipot import EquipotCalculator
from equipot.config import config_from_dict
from equipot.deploy.export import deploy
from equipot.properties.start import evaluate
from equipot.properties.supercells import from_phonopy, to_phonopy
from equipot.training.run import train

SETS = {"Si": "Si_fc3_PBE", "NaCl": "NaCl_rd", "MgO": "MgO_rd"}
TRAINING = {
    "model": {
        "type": "nequip",
        "cutoff": 5.0,
        "l_max": 2,
        "layers": 2,
        "channels": 16,
        "radial_intervals": 200,
    },
    "training": {
        "epochs": 60,
        "batch_size": 1,
        "optimizer": "adam",
        "learning_rate": 5e-3,
        "schedule": {"kind": "plateau"},
    },
}


def trained(folder: Path, data: Path) -> list[Path]:
    """One small model for each crystal, on the displaced cells of its set."""
    files = []
    for crystal, name in SETS.items():
        file = folder / f"{crystal}.pt"
        if not file.is_file():
            data_section = {"train": str(data / f"{name}.xyz.gz"), "validation": 10}
            run = {"directory": str(folder / crystal), "device": "cpu"}
            result = train(config_from_dict({**TRAINING, "data": data_section, "run": run}))
            deploy(result.best_checkpoint, file)
        files.append(file)
    return files


def example(crystal: str, data: Path) -> Phonopy:
    """phonopy's example, with its displacements, DFT forces and Born charges."""
    return load(data / f"{crystal}_phonopy_params.yaml", log_level=0)


def fitted(crystal: str, data: Path) -> Phonopy:
    """Force constants that fit the DFT forces on the displaced cells of the set (by symfc)."""
    frames = ase.io.read(data / f"{SETS[crystal]}.xyz.gz", ":")
    cell = bulk(crystal, "diamond" if crystal == "Si" else "rocksalt", frames[0].cell[0, 0] / 2, cubic=True)
    primitive = guess_primitive_matrix(to_phonopy(cell))
    phonon = Phonopy(to_phonopy(cell), np.diag([2, 2, 2]), primitive, log_level=0)
    perfect, order = average_lattice(from_phonopy(phonon.supercell), frames)
    displacements = []
    for frame in frames:
        d = frame.get_scaled_positions()[order] - perfect.get_scaled_positions()
        displacements.append((d - np.rint(d)) @ perfect.cell.array)
    phonon.dataset = {
        "displacements": np.array(displacements) - np.mean(displacements, axis=1, keepdims=True),
        "forces": np.array([frame.get_forces()[order] for frame in frames]),
    }
    phonon.produce_force_constants(
        fc_calculator="symfc", calculate_full_force_constants=False, show_drift=False
    )
    known = example(crystal, data)
    assert list(phonon.primitive.symbols) == list(known.primitive.symbols)
    phonon.nac_params = known.nac_params
    return phonon


def average_lattice(perfect: Atoms, frames: list[Atoms]) -> tuple[Atoms, np.ndarray]:
    """The undisplaced cell where the frames have it, and the frames' atoms in its order."""
    first = frames[0].get_scaled_positions()
    mean = first + np.mean([_wrap(f.get_scaled_positions() - first) for f in frames], axis=0)
    same = [i for i, symbol in enumerate(frames[0].symbols) if symbol == perfect.symbols[0]]
    for start in same:
        shift = mean[start] - perfect.get_scaled_positions()[0]
        distance = _wrap(perfect.get_scaled_positions()[:, None] + shift - mean[None])
        distance = np.linalg.norm(distance @ perfect.cell.array, axis=2)
        order = distance.argmin(axis=1)
        right = (frames[0].numbers[order] == perfect.numbers).all() and len(set(order)) == len(order)
        if distance.min(axis=1).max() < 0.05 and right:
            placed = perfect.copy()
            placed.set_scaled_positions(perfect.get_scaled_positions() + shift)
            return placed, order
    raise SystemExit("The frames are not displaced cells of this crystal.")


def _wrap(d: np.ndarray) -> np.ndarray:
    return d - np.rint(d)


def by_model(reference: Phonopy, calculator: EquipotCalculator) -> Phonopy:
    """The same crystal and supercell with forces of a model."""
    phonon = Phonopy(reference.unitcell, reference.supercell_matrix, reference.primitive_matrix, log_level=0)
    phonon.generate_displacements(distance=0.01)
    cells = [from_phonopy(cell) for cell in (phonon.supercell, *phonon.supercells_with_displacements)]
    rest, *displaced = [found["forces"] for found in evaluate(calculator, cells, "displacements")]
    phonon.forces = np.array(displaced) - rest
    phonon.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
    phonon.symmetrize_force_constants(show_drift=False)
    phonon.nac_params = reference.nac_params
    return phonon


def conductivity(fitted_set: Phonopy, calculator: EquipotCalculator | None) -> float:
    """W/m/K at 300 K, in relaxation times on 10×10×10 points, by DFT forces or a model's."""
    forces = fitted_set.dataset["forces"]
    if calculator is not None:
        perfect = from_phonopy(fitted_set.supercell)
        cells = [perfect.copy() for _ in forces]
        for cell, displacement in zip(cells, fitted_set.dataset["displacements"], strict=True):
            cell.positions += displacement
        forces = [found["forces"] for found in evaluate(calculator, cells, "displaced cells")]
    crystal = Phono3py(fitted_set.unitcell, fitted_set.supercell_matrix, fitted_set.primitive_matrix)
    crystal.dataset = {
        "displacements": fitted_set.dataset["displacements"],
        "forces": np.array(forces),
    }
    crystal.produce_fc3(fc_calculator="symfc")
    crystal.produce_fc2(fc_calculator="symfc")
    crystal.mesh_numbers = [10, 10, 10]
    crystal.init_phph_interaction()
    crystal.run_thermal_conductivity(temperatures=[300.0], is_isotope=True, log_level=0)
    return float(np.ravel(crystal.thermal_conductivity.kappa)[0])


def print_conductivities(data: Path, models: list[Path]) -> None:
    """Of silicon, by force constants of second and third order fitted to the same cells."""
    reference = fitted("Si", data)
    print(f"Thermal conductivity of Si at 300 K: DFT {conductivity(reference, None):.1f} W/m/K")
    for file in models:
        calculator = EquipotCalculator(file, device="cpu")
        if "Si" in calculator.model.metadata.species:
            print(f"  {file.stem} {conductivity(reference, calculator):.1f} W/m/K")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="holds phonons_ref")
    parser.add_argument(
        "--model", type=Path, action="append", default=[], help="deployed file; may be repeated"
    )
    parser.add_argument(
        "--train", type=Path, help="train three small models into this folder, unless they are there"
    )
    parser.add_argument("--kappa", action="store_true", help="only the thermal conductivity of silicon")
    options = parser.parse_args()
    data = options.data / "phonons_ref"
    models = [*options.model, *(trained(options.train, data) if options.train else [])]
    if options.kappa:
        print_conductivities(data, models)
        return
    table = Table("crystal", "model", "reference", "MAE (THz)", "largest", "highest: model", "DFT")
    for crystal in SETS:
        stored = json.loads((data / f"{crystal}_ref.json").read_text())["q_points"]
        points = [point["q_primitive"] for point in stored.values()]
        for name, reference in (("example", example(crystal, data)), ("training set", fitted(crystal, data))):
            expected = reference.run_qpoints(points).frequencies
            if name == "example":  # the file's figures were computed elsewhere
                figures = [point["frequencies_THz"] for point in stored.values()]
                assert np.abs(np.sort(expected) - np.sort(figures)).max() < 2e-3
            for file in models:
                calculator = EquipotCalculator(file, device="cpu")
                if not set(reference.unitcell.symbols) <= set(calculator.model.metadata.species):
                    continue
                found = by_model(reference, calculator).run_qpoints(points).frequencies
                error = np.abs(found - expected)
                numbers = (error.mean(), error.max(), found.max(), expected.max())
                table.add_row(crystal, file.stem, name, *(f"{number:.3f}" for number in numbers))
    Console().print(table)


if __name__ == "__main__":
    main()
