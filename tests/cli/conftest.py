"""A tiny labelled data set, and one training and one deployment of it that the tests share."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.morse import MorsePotential
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from equipot import cli
from equipot.config import config_from_dict
from equipot.data.statistics import Statistics
from equipot.deploy.checkpoint import Checkpoint, training_state
from equipot.models.build import build_potential

R0 = 2.7  # Å
MORSE = {"epsilon": 0.3, "r0": R0, "rho0": 4.0, "rcut1": 3.5 / R0, "rcut2": 4.5 / R0}

CONFIG = """\
data:
  train: train.xyz
  validation: 4
model:
  type: nequip
  cutoff: 4.0
  l_max: 1
  layers: 2
  channels: 4
  radial_hidden: [8]
  dtype: float64
training:
  epochs: 3
  batch_size: 4
  loss: {energy: 1.0, forces: 1.0, stress: 10.0}
run:
  directory: RUN
  device: cpu
"""


def labelled_crystal(seed: int) -> Atoms:
    """Four displaced copper atoms in a periodic cell, labelled by a Morse potential."""
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True)
    atoms.rattle(0.1, seed=seed)
    work = atoms.copy()
    work.calc = MorsePotential(**MORSE)
    atoms.calc = SinglePointCalculator(
        atoms, energy=work.get_potential_energy(), forces=work.get_forces(), stress=work.get_stress()
    )
    return atoms


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def equipot(monkeypatch, capfd):
    """Run a command in this process, as the console script does: ``equipot("info", path)``."""

    def run(*arguments) -> Result:
        capfd.readouterr()
        code = run_command(monkeypatch, *arguments)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def run_command(monkeypatch, *arguments) -> int:
    """The exit code of ``equipot ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["equipot", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "120")
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


@dataclass(frozen=True)
class Workspace:
    """Files that the tests read and must not change."""

    folder: Path
    config: Path
    data: Path  # frames the training has seen
    test: Path  # frames it has not seen
    run: Path
    model: Path


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, fresh_process) -> Workspace:
    """Data, a trained run and a deployed model."""
    folder = tmp_path_factory.mktemp("workspace")
    write(folder / "train.xyz", [labelled_crystal(seed) for seed in range(16)], format="extxyz")
    write(folder / "test.xyz", [labelled_crystal(seed) for seed in range(100, 104)], format="extxyz")
    run = folder / "run"
    config = folder / "config.yaml"
    config.write_text(CONFIG.replace("RUN", str(run)))
    with fresh_process(), pytest.MonkeyPatch.context() as patch:
        assert run_command(patch, "train", config) == 0
        assert run_command(patch, "deploy", run, "--output", folder / "model.pt") == 0
    return Workspace(folder, config, folder / "train.xyz", folder / "test.xyz", run, folder / "model.pt")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A checkpoint of a model with random weights that knows O, Si and Cu."""
    model = {"type": "nequip", "cutoff": 4.0, "l_max": 1, "layers": 1, "channels": 2, "radial_hidden": [4]}
    config = config_from_dict({"data": {"train": "none.xyz"}, "model": model})
    facts = {"avg_num_neighbors": 9.0, "atomic_energies": [-1.0, -2.0, -3.0], "force_rms": 1.0}
    built_from = {"species": ["O", "Si", "Cu"], "levels": [], **facts}
    potential = build_potential(config.model, **built_from)
    statistics = Statistics(built_from["species"], [0.0] * 3, "none", None, 9.0, 1.0, 0, 0, [0] * 3, {})
    path = tmp_path_factory.mktemp("small_model") / "small.ckpt"
    checkpoint = Checkpoint(path, potential, "last", config, statistics, {}, built_from, {})
    path.write_bytes(training_state(checkpoint))
    return path
