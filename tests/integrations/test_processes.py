"""The calculator pickled, copied, in threads and in other processes gives the same to the last bit."""

import copy
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.mep import NEB

from equipot import EquipotCalculator
from equipot.deploy.load import load_deployed

SILICON = Path(__file__).parents[2] / "examples/04_engine/silicon.pt"

forces = methodcaller("get_forces")


@pytest.fixture
def ethanols(model_file):
    """Four structures, nothing calculated yet."""
    structures = []
    for seed in range(4):
        structures.append(molecule("CH3CH2OH", calculator=EquipotCalculator(model_file, device="cpu")))
        structures[-1].rattle(0.05, seed=seed)
    return structures


def expected(structures):
    return [forces(copy.deepcopy(atoms)) for atoms in structures]


def test_pickled_model_needs_no_file(model_file, tmp_path, ethanols):
    path = tmp_path / "model.pt"
    path.write_bytes(model_file.read_bytes())
    model = load_deployed(path, "cpu")
    text = pickle.dumps(model)
    path.unlink()
    again = pickle.loads(text)
    assert (again.metadata, again.device, again.path) == (model.metadata, model.device, path)
    assert pickle.loads(text).module is again.module  # loaded once
    again.require_capsule()
    atoms = ethanols[0]
    atoms.calc = EquipotCalculator(again)
    np.testing.assert_array_equal(forces(atoms), expected(ethanols)[0])
    assert copy.deepcopy(model) is model


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda atoms: pickle.loads(pickle.dumps(atoms))])
def test_copies_go_on_with_the_same_bits(ethanols, duplicate):
    """Their neighbor lists are those of the original, which decide the order of sums."""
    atoms = ethanols[0]
    forces(atoms)
    atoms.rattle(0.02, seed=5)
    twin = duplicate(atoms)
    assert twin.calc is not atoms.calc
    builds = atoms.calc.neighbors.builds
    np.testing.assert_array_equal(forces(twin), forces(atoms))
    assert atoms.calc.neighbors.builds == twin.calc.neighbors.builds == builds
    twin.rattle(0.1)
    forces(twin)
    assert atoms.calc.atoms == atoms  # nothing is shared


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_processes(ethanols, start):
    """Forked after OpenMP has had two threads, which are not there in the new process."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.ones(2**22).sin().sum()
        right = expected(ethanols)
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(start))
        with pool:
            found = list(pool.map(forces, ethanols, timeout=120))
            threads = pool.submit(torch.get_num_threads).result(timeout=120)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, right, strict=True):
        np.testing.assert_array_equal(one, other)
    assert threads == 1 or start == "spawn"


def test_threads(ethanols):
    """Copies of one calculator, one for each thread, on one model."""
    structures = [copy.deepcopy(atoms) for _ in range(10) for atoms in ethanols]
    assert len({id(atoms.calc.model) for atoms in structures}) == 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(forces, structures))
    for one, other in zip(found, expected(structures), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("parallel", [False, True])
def test_nudged_elastic_band(model_file, parallel):
    """With a calculator for all images, and with one for each in a thread of its own."""
    start = molecule("CH3CH2OH", calculator=EquipotCalculator(model_file, device="cpu"))
    end = copy.deepcopy(start)
    end.rattle(0.3, seed=1)
    images = [start, *(copy.deepcopy(start) for _ in range(3)), end]
    if not parallel:
        for image in images:
            image.calc = start.calc
    band = NEB(images, method="improvedtangent", parallel=parallel, allow_shared_calculator=not parallel)
    band.interpolate()
    band.get_forces()
    energies = [image.get_potential_energy() for image in copy.deepcopy(images)]
    np.testing.assert_allclose(band.energies[1:-1], energies[1:-1], rtol=1e-12)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_arrays_give_arrays_and_tensors_tensors(engine):
    """By the engine and by TorchScript, of a shipped model."""
    model = load_deployed(SILICON, "cpu", engine)
    assert (model.engine is None) == (engine == "torch")
    edge_vec = np.array([[2.3, 0.1, 0.2], [-2.3, -0.1, -0.2]])
    inputs = edge_vec, np.array([[0, 1], [1, 0]]), np.zeros(2, dtype=np.int64), np.array([True, False])
    arrays = model(*inputs)
    tensors = model(*map(torch.from_numpy, inputs))
    with torch.inference_mode():
        inference = model(*(torch.from_numpy(array).clone() for array in inputs))
    for array, tensor, other in zip(arrays, tensors, inference, strict=True):
        assert isinstance(array, np.ndarray) and array.dtype == np.float64
        assert np.array_equal(array, tensor.numpy()) and np.array_equal(array, other.numpy())
    assert arrays[0][0] != 0 == arrays[0][1] and arrays[2].shape == (2, 3, 3)


def test_a_calculator_survives_a_fork():
    """Where nothing but the calculator has imported torch; a test's own process has imported much more."""
    script = f"""
import os
from ase import Atoms
from equipot import EquipotCalculator
atoms = Atoms("Si2", [[0, 0, 0], [0, 0, 2.3]])
atoms.calc = EquipotCalculator({str(SILICON)!r}, device="cpu", engine="torch")
import torch
torch.set_num_threads(2)
torch.ones(2**22).sin().sum()
if not (child := os.fork()):
    atoms.rattle(0.1)
    os._exit(atoms.get_forces().shape[0] - torch.get_num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.splitlines()[-1] == "1"  # 2 atoms, 1 thread
