"""What a simulation goes on from, to the last bit: atoms, integrator, random state, neighbor list, files."""

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import dict2constraint
from ase.io import jsonio
from ase.md.md import MolecularDynamics

from equipot import __version__
from equipot.deploy.metadata import Metadata
from equipot.errors import ConfigError, DataError
from equipot.files import atomic_write
from equipot.integrations.ase import EquipotCalculator
from equipot.integrations.md_dynamics import set_state, state_of
from equipot.integrations.md_settings import MDSettings
from equipot.integrations.settings import option_of

RESTART_FORMAT = 1
_MAY_DIFFER = ("steps", "restart_interval", "stop_below")


@dataclasses.dataclass(frozen=True)
class Restart:
    """The content of a restart file. `origin` is all that must be the same in the run that goes on."""

    path: Path
    origin: dict[str, Any]
    platform: dict[str, Any]  # on which bits depend
    progress: dict[str, Any]  # step, seconds, list builds, bytes of each file that grows
    random: dict[str, Any]  # state of the generator
    atoms: Atoms
    integrator: dict[str, np.ndarray]
    geometry: tuple[np.ndarray, ...] | None  # of the neighbor list

    def require_same(self, origin: dict[str, Any], steps: int) -> None:
        """Raise ConfigError if another run is asked for, naming what differs."""
        differing = [
            f"{name}: {before}, now {origin.get(name)}"
            for name, before in self.origin.items()
            if origin.get(name) != before
        ]
        if differing:
            raise ConfigError(
                f"Cannot resume {self.path.parent}: this is not the run that was begun there. "
                f"{'; '.join(differing)}. Set it back, or start a new run in another folder."
            )
        if steps < self.progress["step"]:
            raise ConfigError(
                f"Cannot resume {self.path.parent}: it has done {self.progress['step']} steps, "
                f"--steps is {steps}."
            )

    def cut_files(self) -> None:
        """Cut what was written after this file was, which will be written again. Raises DataError."""
        for name, size in self.progress["files"].items():
            path = self.path.parent / name
            found = path.stat().st_size if path.is_file() else 0
            if found < size:
                raise DataError(
                    f"Cannot resume {self.path.parent}: {name} has {found} bytes and had {size} when the run "
                    "was stopped. Put the whole file back, or start a new run."
                )
            os.truncate(path, size)

    def set_up(self, dynamics: MolecularDynamics, rng: np.random.Generator) -> None:
        """Give integrator and generator the state they had. Raises DataError."""
        try:
            set_state(dynamics, self.integrator)
        except KeyError as error:
            raise DataError(
                f"{self.path}: made by another ASE ({self.platform['ase']}), whose integrator is not this "
                f"one's (no {error}). Resume with that version, or start a new run from the last frame."
            ) from None
        rng.bit_generator.state = self.random


def origin_of(atoms: Atoms, settings: MDSettings, models: Sequence[Metadata], skin: float) -> dict[str, Any]:
    """What makes two runs the same: plain values. ``atoms`` as they were read."""
    digest = hashlib.sha256(jsonio.encode([c.todict() for c in atoms.constraints]).encode())
    for values in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.get_momenta(),
                   atoms.get_masses()):  # fmt: skip
        digest.update(np.ascontiguousarray(values).tobytes())
    settled = (field for field in dataclasses.fields(settings) if field.name not in _MAY_DIFFER)
    chosen = {option_of(field): getattr(settings, field.name) for field in settled}
    model = [f"{metadata.weights_sha256[:16]} {json.dumps(metadata.tables)}" for metadata in models]
    origin = chosen | {"--skin": skin, "structure": digest.hexdigest()[:16], "model": model}
    return json.loads(json.dumps(origin))


def platform_of(calculator: EquipotCalculator) -> dict[str, Any]:
    """What rounding depends on."""
    import ase

    platform = {"equipot": __version__, "ase": ase.__version__, "model runs on": calculator.model.runs_by}
    if calculator.model.engine is None:  # which gives the same bits for any number of threads
        import torch

        platform["threads"] = torch.get_num_threads()
    return platform


def write_restart(
    path: Path,
    origin: dict[str, Any],
    progress: dict[str, Any],
    dynamics: MolecularDynamics,
    rng: np.random.Generator,
) -> None:
    """Whole or not at all. The atoms are those of ``dynamics``, with their calculator."""
    atoms = dynamics.atoms
    calculator: EquipotCalculator = atoms.calc
    about = {
        "format": RESTART_FORMAT,
        "origin": origin,
        "platform": platform_of(calculator),
        "progress": progress,
        "random": rng.bit_generator.state,
        "constraints": jsonio.encode([constraint.todict() for constraint in atoms.constraints]),
    }
    arrays = {"cell": atoms.cell.array, "pbc": atoms.pbc}
    arrays |= {f"atoms/{name}": values for name, values in atoms.arrays.items() if values.dtype.kind != "O"}
    arrays |= {f"integrator/{name}": value for name, value in state_of(dynamics).items()}
    if calculator.neighbors.geometry is not None:
        arrays |= {f"list/{i}": values for i, values in enumerate(calculator.neighbors.geometry)}
    with atomic_write(path, make_folder=False) as temporary:
        np.savez(temporary, about=json.dumps(about), **arrays)


def read_restart(path: Path) -> Restart:
    """Raises DataError: damaged, no restart file at all, or of a newer format."""
    advice = "Put the right file back, or start a new run from the last frame of the trajectory."
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path}: damaged, or no restart file of 'equipot md': expected a zip archive, found "
            f"{path.stat().st_size} bytes that are none. {advice}"
        )
    try:
        return _restart(path)
    except KeyError as error:
        raise DataError(f"{path}: no restart file of 'equipot md', for it has no {error}. {advice}") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged ({error}). {advice}") from None


def _restart(path: Path) -> Restart:
    with np.load(path, allow_pickle=False) as file:  # a zip archive, with a checksum of each entry
        arrays = {name: file[name] for name in file.files}
    about = json.loads(str(arrays.pop("about")))
    if about["format"] > RESTART_FORMAT:
        raise DataError(
            f"{path}: restart format {about['format']}; this equipot reads formats up to {RESTART_FORMAT}. "
            "Upgrade equipot."
        )
    parts: dict[str, dict[str, np.ndarray]] = {"atoms": {}, "integrator": {}, "list": {}}
    for name in [name for name in arrays if "/" in name]:
        part, _, key = name.partition("/")
        parts[part][key] = arrays.pop(name)
    atoms = Atoms(parts["atoms"]["numbers"], cell=arrays["cell"], pbc=arrays["pbc"])
    for name, values in parts["atoms"].items():
        atoms.set_array(name, values)
    atoms.set_constraint([dict2constraint(c) for c in jsonio.decode(about["constraints"])])
    geometry = tuple(parts["list"][key] for key in sorted(parts["list"])) or None
    origin = {"--energy": "total"} | about["origin"]  # the option came later than the first files
    return Restart(path, origin, about["platform"], about["progress"], about["random"], atoms,
                   parts["integrator"], geometry)  # fmt: skip
