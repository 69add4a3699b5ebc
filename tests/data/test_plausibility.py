"""Warnings about wrong units, and none about sound data."""

import ase
import numpy as np
import pytest
from ase.build import bulk

from equipot.config.data import DataConfig, LabelsConfig
from equipot.data import frame_from_atoms, load_datasets, read_frames
from equipot.data.plausibility import median_relative_distance, warn_if_implausible, warn_if_unrelated


def frames_of(*structures):
    return [frame_from_atoms(atoms) for atoms in structures]


def crystal(length=1.0):
    atoms = bulk("Cu", a=3.6, cubic=True)
    atoms.set_cell(length * atoms.cell, scale_atoms=True)
    return atoms


def with_forces(make_frame, rms, seed=0):
    forces = np.random.default_rng(seed).normal(size=(2, 3))
    forces *= rms / np.sqrt((forces**2).mean()) if rms else 0.0
    return make_frame("OH", [[0, 0, 0], [0, 0, 0.97]], forces=forces)


@pytest.mark.parametrize("length", [1 / 0.529177, 0.529177, 0.1])
def test_lengths_in_another_unit(length, caplog):
    warn_if_implausible(frames_of(*[crystal(length)] * 3), "training")
    assert len(caplog.messages) == 1
    expected = length * 3.6 / np.sqrt(2) / 2.64  # 1.32 Å is the covalent radius of Cu
    assert f"is {expected:.2f} times" in caplog.text and "Check data.units.length" in caplog.text


def test_sound_lengths_rare_gases_and_lone_atoms(caplog):
    assert median_relative_distance(frames_of(ase.Atoms("H"))) is None
    far = ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 30.0]])
    assert median_relative_distance(frames_of(far)) is None
    structures = [crystal(), bulk("Ar", a=5.3), far, ase.Atoms("He")]
    warn_if_implausible(frames_of(*structures), "training")
    assert caplog.messages == []


@pytest.mark.parametrize(("rms", "lines"), [(0.0, 0), (0.02, 1), (0.05, 0), (1.0, 0), (9.0, 0), (23.0, 1)])
def test_forces(make_frame, caplog, rms, lines):
    warn_if_implausible([with_forces(make_frame, rms)] * 2, "test")
    assert len(caplog.messages) == lines
    assert all("In the test set" in m and "Check data.units.energy" in m for m in caplog.messages)


@pytest.mark.parametrize(("residual", "lines"), [(None, 0), (9.0, 0), (11.0, 1)])
def test_reference_energies_that_do_not_fit(caplog, residual, lines):
    warn_if_unrelated(residual)
    assert len(caplog.messages) == lines
    assert all("data.atomic_energies and data.units.energy" in message for message in caplog.messages)


def test_loading_warns_once(water, write, caplog):
    labels = {"energy": "my_energy", "forces": "my_forces"}
    for atoms in water:
        atoms.positions /= 0.529177
    path = str(write(water))
    given = {"H": 100.0, "O": 100.0}
    load_datasets(DataConfig(train=[path], labels=labels, atomic_energies=given), 5.0)
    starts = [message[:35] for message in caplog.messages]
    assert starts == ["Units? In the training set the medi", "The reference energies leave 105 eV"]


@pytest.mark.parametrize(
    "name", ["3bpa/train_300K.xyz", "mlearn_Si/test.xyz", "mlearn_Cu/test.xyz", "snap_Ta/all.xyz.gz"]
)
def test_published_data_are_plausible(shared_data, name, caplog):
    warn_if_implausible(read_frames(shared_data / name, LabelsConfig(), required=()), "training")
    assert "Units?" not in caplog.text
