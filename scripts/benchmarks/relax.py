"""Relaxation with cells: 100 small crystals by `equipot relax`, and one after the other by ASE's optimizers.

Both until the same largest force and stress. Of ASE's optimizers and filters the one that takes the least
processor time for the first tenth relaxes all. TorchSim's FIRE, where it is installed, has the same model.
Processor time of one process on one thread.
"""

import argparse
import importlib.util
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.optimize import FIRE, LBFGS

from equipot import EquipotCalculator
from equipot.deploy.load import load_deployed
from equipot.engine.library import Engine, load_library
from equipot.integrations.relax import run_relax
from equipot.integrations.relax_settings import RelaxSettings
from equipot.machine import keep_memory
from equipot.units import GPA

FORCE, STRESS, STEPS = 0.005, 0.02, 500  # eV/Å, GPa
SAME = 2e-5  # eV/atom; farther apart are two minima
ASE = {
    f"{optimizer.__name__}, {name}": (optimizer, filter_)
    for optimizer in (LBFGS, FIRE)
    for name, filter_ in (("UnitCellFilter", UnitCellFilter), ("FrechetCellFilter", FrechetCellFilter))
}
# Lattice constants (Å) about those of experiment.
CUBIC = {
    "fcc": {"Cu": 3.6, "Al": 4.05, "Ag": 4.1, "Ni": 3.5, "Pt": 3.95, "Au": 4.1},
    "bcc": {"Fe": 2.85, "W": 3.18, "Mo": 3.16, "V": 3.0, "Ta": 3.3, "Na": 4.2},
    "diamond": {"Si": 5.45, "Ge": 5.75, "C": 3.57},
    "rocksalt": {"NaCl": 5.65, "MgO": 4.22, "LiF": 4.03, "CaO": 4.8, "TiN": 4.24, "PbS": 5.95},
    "zincblende": {"GaAs": 5.7, "ZnS": 5.4, "SiC": 4.36, "InP": 5.9, "BN": 3.62},
    "fluorite": {"CaF2": 5.46, "CeO2": 5.41},
}
HEXAGONAL = {
    "hcp": {"Mg": (3.2, 5.2), "Ti": (2.94, 4.65), "Zn": (2.66, 4.95), "Co": (2.5, 4.05)},
    "wurtzite": {"ZnO": (3.25, 5.2), "GaN": (3.2, 5.2), "AlN": (3.1, 5.0)},
}
PEROVSKITES = {"SrTi": 3.9, "BaTi": 4.0, "KNb": 4.0, "CaTi": 3.85}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="examples/04_engine/silicon.pt", help="deployed file")
    parser.add_argument("--structures", type=int, default=100)
    parser.add_argument("--rattle", type=float, default=0.06, help="Å, standard deviation")
    parser.add_argument("--strain", type=float, default=0.02, help="standard deviation of each element")
    parser.add_argument("--optimizer", default="lbfgs", help="of equipot: lbfgs or fire")
    arguments = parser.parse_args()
    keep_memory()
    load_library().equipot_set_threads(1)
    model = load_deployed(arguments.model, "cpu")
    structures = crystals(model.metadata.species, arguments)
    sizes = [len(atoms) for atoms in structures]
    print(f"{len(structures)} crystals of {min(sizes)} to {max(sizes)} atoms, {sum(sizes)} in all")
    spent = spy_on_engine()
    trials = {
        name: by_ase(structures[: len(structures) // 10 or 1], model, *kind)[1] for name, kind in ASE.items()
    }
    best = min(trials, key=trials.get)
    print("ASE, first tenth:", "; ".join(f"{name} {seconds:.2f} s" for name, seconds in trials.items()))

    spent.clear()
    energies, seconds, converged = by_ase(structures, model, *ASE[best])
    report(f"ASE ({best})", seconds, spent, converged)
    spent.clear()
    rows, ours = by_equipot(structures, model, arguments.optimizer)
    report("equipot relax", ours, spent, sum(row["converged"] for row in rows))

    if importlib.util.find_spec("torch_sim") is not None:
        spent.clear()
        theirs, there = by_torchsim(structures, model)
        report("TorchSim's unit_cell_fire", theirs, spent, there)

    lower = np.array([row["energy_eV_per_atom"] for row in rows]) - energies
    same = abs(lower) < SAME
    print(f"{seconds / ours:.1f} times faster; the same minimum in {same.sum()} of {len(same)}, energies "
          f"within {abs(lower[same]).max():.1e} eV/atom")  # fmt: skip
    for number in np.flatnonzero(~same):
        print(f"  {structures[number].symbols}: equipot's is {1e3 * lower[number]:+.2f} meV/atom")


def crystals(species: tuple[str, ...], arguments: argparse.Namespace) -> list[Atoms]:
    """Of elements that the model knows, strained and with displaced atoms."""
    found = [
        bulk(name, kind, a=a, cubic=kind != "fluorite")
        for kind, of in CUBIC.items()
        for name, a in of.items()
    ]
    found += [bulk(name, kind, a=a, c=c) for kind, of in HEXAGONAL.items() for name, (a, c) in of.items()]
    places = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    found += [
        Atoms(f"{name}O3", scaled_positions=places, cell=[a] * 3, pbc=True) for name, a in PEROVSKITES.items()
    ]
    found = [atoms for atoms in found if set(atoms.symbols) <= set(species)]
    if len(found) < 10:  # of few kinds, in cells of several sizes
        primitive = [bulk(name, "diamond", a=a) for name, a in CUBIC["diamond"].items() if name in species]
        found += [
            atoms * size for atoms in primitive for size in ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2))
        ]
    rng = np.random.default_rng(0)
    structures = []
    for number in range(arguments.structures):
        atoms = found[number % len(found)].copy()
        strain = rng.normal(scale=arguments.strain, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        atoms.positions += rng.normal(scale=arguments.rattle, size=atoms.positions.shape)
        structures.append(atoms)
    return structures


def spy_on_engine() -> dict[str, float]:
    """Sums of what the engine does from now on: structures, atoms, seconds."""
    spent: dict[str, float] = defaultdict(float)
    evaluate = Engine.evaluate_edges

    def counted(self, edge_vec, edge_index, atom_types, *others, **more):
        start = time.process_time()
        found = evaluate(self, edge_vec, edge_index, atom_types, *others, **more)
        spent["seconds"] += time.process_time() - start
        spent["atoms"] += len(atom_types)
        return found

    Engine.evaluate_edges = counted
    return spent


def by_ase(structures, model, optimizer, filter_) -> tuple[np.ndarray, float, int]:
    """Energies (eV/atom), processor time (s), how many have converged."""
    calculator = EquipotCalculator(model)
    energies, converged = [], 0
    start = time.process_time()
    for given in structures:
        atoms = given.copy()
        atoms.calc = calculator
        for _ in optimizer(filter_(atoms), logfile=None).irun(fmax=0.0, steps=STEPS):
            force = np.linalg.norm(atoms.get_forces(), axis=1).max()
            if force < FORCE and abs(atoms.get_stress()).max() < STRESS * GPA:
                converged += 1
                break
        energies.append(atoms.get_potential_energy() / len(atoms))
    return np.array(energies), time.process_time() - start, converged


def by_equipot(structures, model, optimizer) -> tuple[list[dict], float]:
    """The table and the processor time (s), files included."""
    settings = RelaxSettings(cell=True, optimizer=optimizer, force=FORCE, stress=STRESS, steps=STEPS)
    with tempfile.TemporaryDirectory() as folder:
        ase.io.write(Path(folder) / "in.xyz", structures)
        start = time.process_time()
        result = run_relax([Path(folder) / "in.xyz"], model, Path(folder) / "out", settings)
        return result.table, time.process_time() - start


def by_torchsim(structures, model) -> tuple[float, int]:
    """Processor time (s), and how many have converged, of its batched FIRE with equipot's model."""
    import torch
    import torch_sim as ts

    from equipot.integrations.torchsim import EquipotModel

    def converged(state, _):
        force = ts.quantities.systemwise_max_force(state)
        return (force < FORCE) & (state.stress.abs().amax(dim=(1, 2)) < STRESS * GPA)

    torch.set_num_threads(1)
    start = time.process_time()
    state = ts.optimize(
        system=structures, model=EquipotModel(model), optimizer=ts.optimizers.unit_cell_fire,
        convergence_fn=converged, max_steps=STEPS, steps_between_swaps=1,
    )  # fmt: skip
    return time.process_time() - start, int(converged(state, None).sum())


def report(name: str, seconds: float, spent: dict[str, float], converged: int) -> None:
    print(f"{name}: {seconds:.2f} s, {spent['seconds'] / seconds:.0%} of it in the engine, which was given "
          f"{spent['atoms']:.0f} atoms; {converged} converged")  # fmt: skip


if __name__ == "__main__":
    main()
