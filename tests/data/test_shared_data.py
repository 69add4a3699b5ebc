"""Public data sets, where they are at hand."""

import ase.io
import numpy as np
import pytest

from equipot.config.data import DataConfig, LabelsConfig, UnitsConfig
from equipot.data import load_datasets, read_frames
from equipot.data.quality import check_files


def test_3bpa(shared_data):
    train = [str(shared_data / "3bpa" / name) for name in ("train_300K.xyz", "iso_atoms.xyz")]
    data = load_datasets(DataConfig(train=train, validation=50), 5.0)
    assert (len(data.train), len(data.validation)) == (450, 50)
    assert data.species == ["H", "C", "N", "O"]
    assert data.statistics.atomic_energies_source == "isolated atoms"
    assert data.statistics.atomic_energies[0] == pytest.approx(-13.587, abs=1e-3)  # quoted to 1e-3
    # A bound molecule: 3 to 7 eV per atom below its atoms.
    assert 3 < data.statistics.energy_residual_rms < 7
    # Forces at 300 K have an RMS near 1 eV/Å.
    assert 0.5 < data.statistics.force_rms < 1.5


def test_mlearn_silicon(shared_data):
    folder = shared_data / "mlearn_Si"
    train, test = str(folder / "train.xyz.gz"), str(folder / "test.xyz")
    data = load_datasets(DataConfig(train=[train], test=[test]), 5.0)
    assert (len(data.train), len(data.validation), len(data.test)) == (193, 21, 25)
    assert data.statistics.num_labels["stress"] == 193
    assert data.statistics.atomic_energies_source == "least squares"
    # PBE silicon: -5.4 eV per atom in the crystal, less in liquid and strained cells
    assert -5.5 < data.statistics.atomic_energies[0] < -4.5
    stress = np.array([frame.stress for frame in data.train.frames])
    np.testing.assert_array_equal(stress, stress.transpose(0, 2, 1))
    assert 0.0 < np.abs(stress).max() < 0.5  # 0.5 eV/Å³ = 80 GPa


def test_water_of_one_composition(shared_data):
    frames = read_frames(shared_data / "water_pbe0" / "test.xyz.gz")
    assert {frame.num_atoms for frame in frames} == {192}
    assert all(frame.pbc.all() and frame.energy is not None for frame in frames)


@pytest.mark.parametrize(("sign", "unit"), [(-1, "eV"), (1, "-eV")])
def test_virials_of_real_copper(shared_data, tmp_path, sign, unit):
    """The same stress as in the file, and of the sign that a pair potential fitted to the forces gives."""
    structures = ase.io.read(shared_data / "mlearn_Cu" / "test.xyz", ":")
    stresses = [atoms.get_stress(voigt=False) for atoms in structures]
    for atoms, stress in zip(structures, stresses, strict=True):
        atoms.calc.results.pop("stress")
        atoms.info["virial"] = (sign * atoms.get_volume() * stress).ravel()
    ase.io.write(path := tmp_path / "virial.xyz", structures, format="extxyz")
    frames = read_frames(path, LabelsConfig(virial="virial"), UnitsConfig(virial=unit))
    np.testing.assert_allclose([frame.stress for frame in frames], stresses, atol=1e-8)  # digits of the file
    found = {
        read: check_files([path], {"virial": "virial"}, {"virial": read}) for read in (unit, "eV", "-eV")
    }
    of_stress = {read: [f for f in found[read].findings if f.check == "stress and forces"] for read in found}
    assert of_stress[unit][0].severity == "note" and "agree" in of_stress[unit][0].message
    (other,) = {"eV", "-eV"} - {unit}
    assert of_stress[other][0].severity == "error" and "opposite sign" in of_stress[other][0].message
    assert "data.units.virial: -eV" in of_stress[other][0].message
