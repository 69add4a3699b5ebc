"""Energies and forces of all frames of a file by a trainer's own ASE calculator, in its own environment.

python predict.py PROGRAM PACKAGE MODEL FRAMES OUTPUT
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import ase.io


def calculator(program: str, model: str):
    """The ASE calculator of a checkpoint."""
    if program == "equipot":
        from equipot import EquipotCalculator
        from equipot.deploy.export import deploy

        with tempfile.TemporaryDirectory() as folder:
            deploy(model, Path(folder) / "model.pt")
            return EquipotCalculator(Path(folder) / "model.pt")
    if program == "nequip":
        from nequip.integrations.ase import NequIPCalculator

        # What nequip-compile does before it compiles; averaged weights where there are some.
        return NequIPCalculator._from_saved_model(model, chemical_species_to_atom_type_map=True)
    from mace.calculators import MACECalculator

    return MACECalculator(model_paths=model, device="cpu", default_dtype="float64")


def main(program: str, package: str, model: str, frames: str, output: str) -> None:
    """Write versions, energies (eV) and forces (eV/Å)."""
    of_model, energies, forces = calculator(program, model), [], []
    for atoms in ase.io.read(frames, ":"):
        atoms.calc = of_model
        energies.append(float(atoms.get_potential_energy()))
        forces += atoms.get_forces().tolist()
    versions = {name: version(name) for name in (package, "torch")}
    Path(output).write_text(json.dumps({"versions": versions, "energies": energies, "forces": forces}))


if __name__ == "__main__":
    main(*sys.argv[1:])
