"""ASE databases, written by ASE and by ase-db-backends."""

import ase.db
import numpy as np
import pytest

from equipot.config.data import LabelsConfig, UnitsConfig
from equipot.data import read_frames


def write_database(path, structures, **data):
    if path.suffix == ".aselmdb":
        pytest.importorskip("ase_db_backends")
    # fairchem's databases are opened with the type named; .aselmdb alone is not known to older ASE
    kind = {".aselmdb": "aselmdb", ".db": "db", ".json": "json"}[path.suffix]
    with ase.db.connect(path, type=kind) as database:
        for i, atoms in enumerate(structures):
            database.write(atoms, key=0.5 * i, data={name: value[i] for name, value in data.items()})
    return path


@pytest.mark.parametrize("name", ["a.db", "a.json", "a.aselmdb"])
def test_calculator_results(tmp_path, crystals, check_same, name):
    structures = crystals("OH2", "Si4", "NaCl")
    path = write_database(tmp_path / name, structures)
    check_same(read_frames(path), structures)
    assert [f.energy for f in read_frames(path, LabelsConfig(energy="key", forces=None))] == [0, 0.5, 1]


def test_deleted_rows_of_aselmdb(tmp_path, crystals, check_same):
    structures = crystals("OH2", "Si4", "NaCl")
    path = write_database(tmp_path / "a.aselmdb", structures)
    with ase.db.connect(path, type="aselmdb") as database:
        database.delete([2])
    check_same(read_frames(path), [structures[0], structures[2]])


def test_labels_as_data_and_units_in_metadata_as_in_schnetpack(tmp_path, crystals, failing):
    """ASEAtomsData: data {'energy': (1,), 'forces': (N, 3)}, metadata with the units."""
    structures = crystals("OH2", "Si4")
    data = {"energy": [np.array([a.get_potential_energy()]) for a in structures],
            "forces": [a.get_forces() for a in structures]}  # fmt: skip
    for atoms in structures:
        atoms.calc = None
    path = write_database(tmp_path / "a.db", structures, **data)
    with ase.db.connect(path) as database:
        database.metadata = {
            "_distance_unit": "Ang", "_property_unit_dict": {"energy": "kcal/mol", "forces": "kcal/mol/Ang"}
        }  # fmt: skip
    assert "names kcal/mol as its unit of energy" in failing(path)
    frames = read_frames(path, units=UnitsConfig(energy="kcal/mol"))
    factor = 0.043364104
    # 8 digits of the constant
    assert frames[1].energy == pytest.approx(data["energy"][1][0] * factor, rel=1e-7)
    np.testing.assert_allclose(frames[1].forces, data["forces"][1] * factor, rtol=1e-7)
    with ase.db.connect(path) as database:
        database.metadata = {
            "_distance_unit": "Ang",
            "_property_unit_dict": {"energy": "eV", "forces": "Ha/Bohr", "dipole": "Debye"},
        }  # fmt: skip
    assert "names Hartree/Bohr as its unit of forces" in failing(path)
    frames = read_frames(path, units=UnitsConfig(forces="Hartree/Bohr"))
    np.testing.assert_allclose(frames[1].forces, data["forces"][1] * 27.211386 / 0.52917721, rtol=1e-7)


@pytest.mark.parametrize("name", ["a.db", "a.aselmdb"])
def test_truncated(tmp_path, crystals, failing, name):
    path = write_database(tmp_path / name, crystals(*["Si8"] * 100))
    content = path.read_bytes()
    end = len(content.rstrip(b"\0"))
    path.write_bytes(content[: end // 2])
    message = failing(path)
    assert message.startswith(str(path)) and "truncated" in message


def test_misnamed_label(tmp_path, crystals, failing):
    path = write_database(tmp_path / "a.db", crystals("OH2"))
    message = failing(path, LabelsConfig(forces="force"))
    assert "no frame has a label 'force'" in message and "Did you mean 'forces'?" in message
