"""Warnings about wrong units, and none about sound data."""

import ase
import numpy as np
import pytest
from ase.build import bulk

from equipot.config.data import DataConfig, LabelsConfig
from equipot.data import frame_from_atoms, load_datasets, read_frames
from equipot.data.quality.units import check_reference_energies, implausibilities, median_relative_distance


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
def test_lengths_in_another_unit(length):
    [message] = implausibilities(frames_of(*[crystal(length)] * 3))
    expected = length * 3.6 / np.sqrt(2) / 2.64  # 1.32 Å is the covalent radius of Cu
    assert f"is {expected:.2f} times" in message and "Check data.units.length" in message


def test_sound_lengths_rare_gases_and_lone_atoms():
    assert median_relative_distance(frames_of(ase.Atoms("H"))) is None
    far = ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 30.0]])
    assert median_relative_distance(frames_of(far)) is None
    structures = [crystal(), bulk("Ar", a=5.3), far, ase.Atoms("He")]
    assert implausibilities(frames_of(*structures)) == []


@pytest.mark.parametrize(("rms", "lines"), [(0.0, 0), (0.02, 1), (0.05, 0), (1.0, 0), (9.0, 0), (23.0, 1)])
def test_forces(make_frame, rms, lines):
    messages = implausibilities([with_forces(make_frame, rms)] * 2)
    assert len(messages) == lines
    assert all("Check data.units.energy" in message for message in messages)


@pytest.mark.parametrize(("residual", "lines"), [(None, 0), (9.0, 0), (11.0, 1)])
def test_reference_energies_that_do_not_fit(residual, lines):
    found = check_reference_energies(residual)
    assert len(found) == lines
    assert all("data.atomic_energies and data.units.energy" in finding.message for finding in found)


def test_loading_warns_once(water, write, caplog):
    labels = {"energy": "my_energy", "forces": "my_forces"}
    for atoms in water:
        atoms.positions /= 0.529177
    path = str(write(water))
    given = {"H": 100.0, "O": 100.0}
    config = DataConfig(train=[path], labels=labels, atomic_energies=given, checks="warn")
    load_datasets(config, 5.0, trained=["energy", "forces"])
    starts = [m[:44] for m in caplog.messages if m.startswith(("Data check, units", "Data check, reference"))]
    assert starts == [
        "Data check, units: The median distance to th",
        "Data check, reference energies: The referenc",
    ]


@pytest.mark.parametrize(
    "name", ["3bpa/train_300K.xyz", "mlearn_Si/test.xyz", "mlearn_Cu/test.xyz", "snap_Ta/all.xyz.gz"]
)
def test_published_data_are_plausible(shared_data, name):
    assert implausibilities(read_frames(shared_data / name, LabelsConfig(), required=())) == []
