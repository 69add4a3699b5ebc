"""What all commands on properties share: the structure, the minimum, the output."""

import json
import os

import numpy as np
import pytest
import yaml
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from matplotlib.figure import Figure

from equipot.errors import ConfigError, DataError, SimulationError
from equipot.properties.kappa import kappa
from equipot.properties.output import Result, Table, check_folder, finish
from equipot.properties.phonons import phonons
from equipot.properties.settings import (
    Common,
    ElasticSettings,
    EosSettings,
    KappaSettings,
    NebSettings,
    PhononSettings,
    SpectrumSettings,
    VibrationSettings,
)
from equipot.properties.start import need, prepare, space_group

SIGMA, EPSILON = 3.4, 0.0103  # Å, eV
NEAREST = 2 ** (1 / 6) * SIGMA  # where a pair has its minimum
A0 = np.sqrt(2) * NEAREST  # of fcc with nearest neighbors only


def argon(a=A0):
    return bulk("Ar", "fcc", a)


def nearest_neighbors():
    """Lennard-Jones that ends before the second shell."""
    return LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=1.2 * NEAREST, smooth=False)


def test_a_strained_cell_is_refused_and_relaxed():
    with pytest.raises(SimulationError, match=r"cell of Ar is no minimum.*--max-stress 0.05.*--relax"):
        prepare(argon(1.02 * A0), nearest_neighbors(), Common(max_stress=0.05))
    start = prepare(argon(1.02 * A0), nearest_neighbors(), Common(relax=True))
    assert np.isclose(start.atoms.get_volume(), A0**3 / 4, rtol=1e-3)
    assert start.described["space_group_relaxed"] == "Fm-3m (225)"
    assert start.described["relaxation"]["volume_change_percent"] < -5


def test_forces_are_refused():
    atoms = argon().repeat(2)
    atoms.positions[3, 0] += 0.1
    with pytest.raises(SimulationError, match=r"force on atom 3 \(Ar\).*--max-force 0.01.*--max-force 0\.\d"):
        prepare(atoms, nearest_neighbors())


def test_relaxing_positions_only_keeps_cell_and_symmetry():
    atoms = bulk("Ar", "hcp", a=NEAREST, c=1.7 * NEAREST)
    start = prepare(atoms, nearest_neighbors(), Common(relax=True, keep_cell=True))
    assert np.array_equal(start.atoms.cell.array, atoms.cell.array)
    assert start.described["space_group"] == start.described["space_group_relaxed"] == "P6_3/mmc (194)"


def test_a_symmetry_that_is_nearly_there_is_named(caplog):
    atoms = bulk("Ar", "fcc", A0, cubic=True)
    atoms.positions[0, 0] += 0.004
    prepare(atoms, nearest_neighbors())
    assert "with --symprec 0.01 it would be Fm-3m (225)" in caplog.text


def test_molecules_and_crystals_are_told_apart():
    with pytest.raises(DataError, match="expected a crystal"):
        prepare(molecule("H2O"), nearest_neighbors(), periodic=True)
    with pytest.raises(DataError, match="expected a molecule"):
        prepare(argon(), nearest_neighbors(), periodic=False)


def test_symprec_is_not_taken_for_a_molecule():
    with pytest.raises(ConfigError, match=r"--symprec 0.1 .* H2O is not periodic"):
        prepare(molecule("H2O"), nearest_neighbors(), Common(symprec=0.1))


@pytest.mark.parametrize("run", [(phonons, PhononSettings), (kappa, KappaSettings)])
def test_an_absurd_supercell_is_refused_before_it_is_made(run):
    command, settings = run
    words = "--supercell 1000 1000 1000 has 1,000,000,000 atoms; expected at most"
    with pytest.raises(ConfigError, match=words):
        command(argon(), nearest_neighbors(), settings=settings(supercell=(1000, 1000, 1000)))


def test_a_missing_package_names_the_extra():
    with pytest.raises(ConfigError, match=r"no_such_package.*equipot\[kappa\]"):
        need("no_such_package", extra="kappa")


@pytest.mark.parametrize(
    ("settings", "values", "words"),
    [
        (Common, {"max_force": 0.0}, "--max-force"),
        (Common, {"max_stress": float("nan")}, "--max-stress"),
        (Common, {"symprec": float("inf")}, "--symprec"),
        (Common, {"keep_cell": True}, "--relax"),
        (PhononSettings, {"displacement": 0.5}, "--displacement"),
        (PhononSettings, {"displacement": 1e-12}, "--displacement"),
        (PhononSettings, {"max_atoms": 0}, "--max-atoms"),
        (EosSettings, {"span": 0.5}, "--span"),
        (EosSettings, {"points": 4}, "--points"),
        (EosSettings, {"shape": "relaxed"}, "--shape"),
        (NebSettings, {"images": 0}, "--images"),
        (NebSettings, {"interpolation": "quadratic"}, "--interpolation"),
        (SpectrumSettings, {"resolution": 1e-300}, "--resolution"),
        (ElasticSettings, {"strains": "0.01,nan,0.02"}, "--strains"),
        (ElasticSettings, {"strains": "1e-14"}, "--strains"),
        (ElasticSettings, {"steps": 0}, "--steps"),
        (VibrationSettings, {"temperature": float("nan")}, "--temperature"),
        (VibrationSettings, {"temperature": 20_000.0}, "--temperature"),
        (VibrationSettings, {"symmetry_number": 10**20}, "--symmetry-number"),
        (ElasticSettings, {"strains": "0.01,0.01"}, "--strains"),
        (ElasticSettings, {"strains": "0.3"}, "--strains"),
        (ElasticSettings, {"strains": "-0.01"}, "--strains"),
        (NebSettings, {"spring": 1e300}, "--spring"),
        (Common, {"symprec": 1e-30}, "--symprec"),
        (PhononSettings, {"mesh": 1e9}, "--mesh"),
        (KappaSettings, {"displacement": 1e-6}, "--displacement"),
        (VibrationSettings, {"pressure": 0.0}, "--pressure"),
        (VibrationSettings, {"spin": float("inf")}, "--spin"),
        (VibrationSettings, {"spin": 1e9}, "--spin must be from 0 to 50, found"),
        (EosSettings, {"points": 10**9}, "--points"),
        (NebSettings, {"images": 100_000}, "--images"),
        (PhononSettings, {"supercell": (0, 1, 1)}, "--supercell"),
        (PhononSettings, {"mesh": -1.0}, "--mesh"),
        (PhononSettings, {"t_max": 300.0, "t_step": 301.0}, "--t-step must be at most --t-max, 300 K"),
        (KappaSettings, {"temperatures": "0,100"}, "--temperatures"),
        (KappaSettings, {"pair_cutoff": -3.0}, "--pair-cutoff"),
    ],
)
def test_settings_that_make_no_sense(settings, values, words):
    with pytest.raises(ConfigError, match=words):
        settings(**values)


def test_a_tolerance_beyond_the_distances_of_atoms_is_refused():
    silicon = bulk("Si")
    assert space_group(silicon, 1e-3) == "Fd-3m (227)"
    with pytest.raises(ConfigError, match=r"--symprec 3 .*: take another one"):
        space_group(silicon, 3.0)


def test_output_is_whole_and_not_overwritten_unasked(tmp_path, capsys):
    common = Common(output=tmp_path / "out")
    figure = Figure()
    figure.subplots().plot([1, 2])
    numbers = {"formula": "Ar", "frequency_THz": np.array([1.0, np.nan]), "count": np.int64(3), "small": 1e-7}
    more = {"extra.txt": lambda path: path.write_text("more")}
    result = Result("try", numbers, ["<b>"], [Table("T", ("x",), [[1.23456]])], {"a.png": figure}, more)
    assert check_folder("try", common) == tmp_path / "out"
    finish(result, common)
    text = (tmp_path / "out/try.json").read_text()
    found = json.loads(text)
    assert yaml.safe_load((tmp_path / "out/try.yaml").read_text()) == found
    assert found["small"] == 1e-7 and found["frequency_THz"] == [1.0, None] and found["count"] == 3
    assert found["files"] == ["a.png", "extra.txt", "try.yaml", "report.html"]
    page = (tmp_path / "out/report.html").read_text()
    assert "&lt;b&gt;" in page and "1.235" in page and "data:image/png" in page
    assert "Wrote" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"not empty.*--overwrite"):
        check_folder("try", common)
    again = Common(output=tmp_path / "out", overwrite=True)
    check_folder("try", again)
    finish(Result("try", {"formula": "Ar"}, []), again)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"try.json", "try.yaml", "report.html"}


def test_foreign_folders_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match=r"holds no try\.json"):
        check_folder("try", Common(output=tmp_path, overwrite=True))
    with pytest.raises(ConfigError, match="is a file"):
        check_folder("try", Common(output=tmp_path / "mine.txt"))
    with pytest.raises(ConfigError, match=r"mine\.txt is a file"):
        check_folder("try", Common(output=tmp_path / "mine.txt" / "deeper"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="no folder that can be written to"):
        check_folder("try", Common(output=tmp_path / "new" / "deeper"))
