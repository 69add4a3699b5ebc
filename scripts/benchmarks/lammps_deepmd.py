"""DeePMD-kit's pair style for ``scripts/benchmark lammps``: its environment and a model by its tools.

DeepPot-SE (``se_e2_a``) of DeePMD-kit's default sizes in float32, trained for two steps on random labels,
frozen and compressed: another, strictly local architecture, not equivariant. By its TensorFlow backend: the
wheels of DeePMD-kit 3.2.0 load with torch 2.11 only.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "compare"))

import numpy as np
from ase import Atoms
from environments import peer_python

ROOT = Path(__file__).resolve().parents[2]
_THREADS = "OMP_NUM", "TF_INTRA_OP_PARALLELISM", "TF_INTER_OP_PARALLELISM", "DP_INTRA_OP_PARALLELISM"
ONE_THREAD = {f"{name}_THREADS": "1" for name in (*_THREADS, "DP_INTER_OP_PARALLELISM")}


def deepmd_programs() -> Path:
    """The folder of ``dp``, ``lmp`` and ``mpiexec``, in an environment that is made if it is missing."""
    folder = ROOT / ".benchmark-envs" / "deepmd"
    return peer_python("deepmd", folder, ROOT / "constraints.txt").parent


def deploy_deepmd(programs: Path, atoms: Atoms, species: list[str], cutoff: float, path: Path) -> None:
    """Write a compressed model for these elements to ``path`` (.pb)."""
    folder = path.parent / "deepmd"
    folder.mkdir()
    _write_data(folder / "data", atoms, species)
    neighbors = int(
        2 * len(atoms) / atoms.cell.volume * 4.19 * cutoff**3
    )  # room for the densest environments
    (folder / "input.json").write_text(json.dumps(_settings(species, cutoff, neighbors)))
    for command in (
        ("train", "input.json"),
        ("freeze", "-o", "frozen.pb"),
        ("compress", "-i", "frozen.pb", "-o", str(path.resolve()), "-t", "input.json"),
    ):
        run = subprocess.run(
            [str(programs / "dp"), "--tf", *command],
            cwd=folder, env=os.environ | ONE_THREAD, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if run.returncode:
            raise SystemExit(f"dp {command[0]}: {(run.stdout + run.stderr)[-2000:]}")


def _settings(species: list[str], cutoff: float, neighbors: int) -> dict:
    descriptor = {
        "type": "se_e2_a", "rcut": cutoff, "rcut_smth": 0.5, "sel": [neighbors] * len(species),
        "neuron": [25, 50, 100], "axis_neuron": 16, "precision": "float32", "seed": 1,
    }  # fmt: skip
    fitting = {"neuron": [240, 240, 240], "resnet_dt": True, "precision": "float32", "seed": 1}
    return {
        "model": {"type_map": species, "descriptor": descriptor, "fitting_net": fitting},
        "learning_rate": {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-4, "decay_steps": 10},
        "loss": {"start_pref_e": 0.02, "limit_pref_e": 1, "start_pref_f": 1000, "limit_pref_f": 1},
        "training": {
            "training_data": {"systems": ["data"], "batch_size": 1},
            "numb_steps": 2, "disp_freq": 1, "save_freq": 2, "seed": 1,
        },
    }  # fmt: skip


def _write_data(folder: Path, atoms: Atoms, species: list[str]) -> None:
    """One frame with random labels in DeePMD-kit's format."""
    frame = folder / "set.000"
    frame.mkdir(parents=True)
    (folder / "type_map.raw").write_text("\n".join(species) + "\n")
    (folder / "type.raw").write_text("\n".join(str(species.index(s)) for s in atoms.symbols) + "\n")
    forces = np.random.default_rng(0).normal(size=(1, 3 * len(atoms)))
    for name, values in (
        ("coord", atoms.positions), ("box", atoms.cell.array), ("energy", np.zeros(1)), ("force", forces),
    ):  # fmt: skip
        np.save(frame / f"{name}.npy", np.reshape(values, (1, -1)))
