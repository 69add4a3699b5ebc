"""Phonons of crystals whose dispersion is known in closed form."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.data import atomic_masses

from equipot.errors import ConfigError, DataError, SimulationError, UnknownSpeciesError
from equipot.properties.born import read_born
from equipot.properties.phonons import phonons
from equipot.properties.settings import Common, PhononSettings
from equipot.properties.supercells import to_phonopy

SILICON = Path(__file__).parents[2] / "examples/04_engine/silicon.pt"
SIGMA, EPSILON = 3.4, 0.0103  # Å, eV
NEAREST = 2 ** (1 / 6) * SIGMA  # Å, where a pair has its minimum
SPRING = 36 * 2 ** (2 / 3) * EPSILON / SIGMA**2  # eV/Å², second derivative there
A0 = np.sqrt(2) * NEAREST
THZ = 1e-12 / (2 * np.pi) * np.sqrt(units._e / units._amu) * 1e10  # of sqrt(eV/Å²/u)
ANY_STRESS = Common(max_stress=np.inf)
FAST = {"checks": False, "mesh": 30.0}


def springs(rc=1.2 * NEAREST, **changed):
    return LennardJones(**({"sigma": SIGMA, "epsilon": EPSILON, "rc": rc, "smooth": False} | changed))


def at(result, label):
    [found] = [of["frequencies_THz"] for of in result.numbers["special_points"] if of["label"] == label]
    return found


@pytest.fixture(scope="module")
def argon():
    """fcc with central forces between nearest neighbors."""
    settings = PhononSettings(supercell=(3, 3, 3), mesh=40.0, t_max=3000.0)
    return phonons(bulk("Ar", "fcc", A0), springs(), settings=settings)


def test_bands_are_those_of_nearest_neighbor_springs(argon, tmp_path):
    """D(q) = Σ_j k n n^T (1 − cos q·r_j), over the twelve neighbors."""
    argon.files["bands.csv"](tmp_path / "bands.csv")
    table = np.genfromtxt(tmp_path / "bands.csv", delimiter=",", names=True)
    q = np.column_stack([table[f"q{i}"] for i in (1, 2, 3)])
    found = np.column_stack([table[f"frequency_{i}_THz"] for i in (1, 2, 3)])
    cell = argon.numbers["primitive_cell_A"]
    shifts = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])
    neighbors = [s for s in shifts if np.isclose(np.linalg.norm(s @ cell), NEAREST)]
    assert len(neighbors) == 12
    for point, frequencies in zip(q[::7], found[::7], strict=True):
        matrix = np.zeros((3, 3))
        for shift in neighbors:
            n = shift @ cell / NEAREST
            matrix += SPRING * np.outer(n, n) * (1 - np.cos(2 * np.pi * shift @ point))
        expected = np.sqrt(np.abs(np.linalg.eigvalsh(matrix)) / atomic_masses[18]) * THZ
        assert np.allclose(np.sort(frequencies), expected, atol=2e-3)  # of displacements of 0.01 Å


def test_special_points_of_fcc(argon):
    """X: M ω² = 8k, 4k, 4k; L: 8k, 2k, 2k."""
    unit = np.sqrt(SPRING / atomic_masses[18]) * THZ
    assert np.allclose(at(argon, "X"), unit * np.sqrt([4, 4, 8]), rtol=1e-3)
    assert np.allclose(at(argon, "L"), unit * np.sqrt([2, 2, 8]), rtol=1e-3)
    assert np.allclose(at(argon, "Γ"), 0, atol=1e-4)
    assert argon.numbers["imaginary_modes"] == []
    assert argon.numbers["space_group"] == "Fm-3m (225)" and argon.numbers["primitive_atoms"] == 1


def test_checks_find_it_converged(argon):
    by_name = {check["check"]: check for check in argon.numbers["checks"]}
    assert by_name.keys() == {"supercell", "displacement"}
    assert by_name["supercell"]["largest_change_THz"] < 1e-3  # a supercell holds all neighbors of its atoms
    assert 1e-5 < by_name["displacement"]["largest_change_THz"] < 0.05


def test_heat_capacity_follows_dulong_and_petit(argon):
    """3R, less its first quantum correction, R/12 Σ (hν/kT)², of which Σ ν² is the trace of D(r=0)."""
    capacity = argon.numbers["thermal_heat_capacity_J_per_K_mol"]
    gas_constant = units._k * units._Nav
    nu2 = 12 * SPRING / atomic_masses[18] * THZ**2 * 1e24  # 1/s², of the three modes
    for t, value in zip(argon.numbers["thermal_temperature_K"], capacity, strict=True):
        if t >= 200:
            correction = nu2 * (units._hplanck / (units._k * t)) ** 2 / 12
            assert np.isclose(value, gas_constant * (3 - correction), rtol=2e-3)
    assert capacity[0] == 0


def test_density_of_states_counts_the_modes(argon, tmp_path):
    argon.files["dos.csv"](tmp_path / "dos.csv")
    table = np.genfromtxt(tmp_path / "dos.csv", delimiter=",", names=True)
    assert np.isclose(np.trapezoid(table["total_per_THz"], table["frequency_THz"]), 3, rtol=1e-3)


def test_sound_velocity_is_that_of_the_elastic_constants(argon, tmp_path):
    """Along [100]: ρ v² = C11 and C44, from stresses of strained cells."""
    atoms = bulk("Ar", "fcc", A0, cubic=True)
    cell, strain, stress = atoms.cell.array, 1e-3, {}
    for name, (i, j) in {"C11": (0, 0), "C44": (1, 2)}.items():
        values = []
        for sign in (1, -1):
            deformation = np.eye(3)
            deformation[i, j] += sign * strain / (1 if i == j else 2)
            deformation[j, i] = deformation[i, j]
            strained = Atoms(atoms)
            strained.set_cell(cell @ deformation, scale_atoms=True)
            strained.calc = springs()
            values.append(strained.get_stress(voigt=False)[i, j])
        stress[name] = (values[0] - values[1]) / (2 * strain)
    density = 4 * atomic_masses[18] / A0**3
    argon.files["bands.csv"](tmp_path / "bands.csv")
    table = np.genfromtxt(tmp_path / "bands.csv", delimiter=",", names=True)
    near = table[(table["segment"] == 0)][2]  # Γ to X
    slopes = [near[f"frequency_{i}_THz"] / near["distance_per_A"] for i in (1, 2, 3)]
    expected = [np.sqrt(stress[name] / density) * THZ * 2 * np.pi for name in ("C44", "C44", "C11")]
    assert np.allclose(np.sort(slopes), expected, rtol=5e-3)


def test_an_instability_is_named():
    """Compressed simple cubic springs buckle: at X, M ω² = 4 φ'/r for what moves across."""
    r = 0.98 * NEAREST
    slope = 24 * EPSILON / r * ((SIGMA / r) ** 6 - 2 * (SIGMA / r) ** 12)
    result = phonons(bulk("Ar", "sc", r), springs(), ANY_STRESS, PhononSettings(supercell=(4, 4, 4), **FAST))
    modes = {mode["label"]: mode for mode in result.numbers["imaginary_modes"]}
    assert modes["X"]["kind"] == "instability" and modes["X"]["degeneracy"] == 2
    assert np.isclose(
        modes["X"]["frequency_THz"], -np.sqrt(-4 * slope / r / atomic_masses[18]) * THZ, rtol=5e-3
    )
    assert modes["X"]["shares"] == {"Ar": pytest.approx(1.0)}
    assert "saddle point" in " ".join(result.paragraphs)
    assert "Imaginary modes" in [table.title for table in result.tables]


def test_two_elements_and_their_splitting(tmp_path):
    """Rocksalt of springs: at Γ μ ω² = 2k; charges add e² Z² / (ε0 ε V μ) along the field."""
    charge, dielectric = 1.1, 2.4
    atoms = bulk("NaCl", "rocksalt", 2 * NEAREST)
    born = tmp_path / "born.json"
    born.write_text(json.dumps({"born": {"Na": charge, "Cl": -charge}, "dielectric": dielectric}))
    settings = PhononSettings(supercell=(2, 2, 2), born=str(born), **FAST)
    result = phonons(atoms, springs(), settings=settings)
    sodium, chlorine = atomic_masses[11], atomic_masses[17]
    reduced = sodium * chlorine / (sodium + chlorine)
    field = units._e / (units._eps0 * 1e-10) * charge**2 / (dielectric * atoms.get_volume())  # eV/Å²
    transverse, longitudinal = 2 * SPRING / reduced, (2 * SPRING + field) / reduced
    expected = np.sqrt([transverse, transverse, longitudinal]) * THZ
    assert np.allclose(np.sort(at(result, "Γ"))[3:], expected, rtol=1e-3)
    assert result.numbers["non_analytical_correction"]
    plain = phonons(atoms, springs(), settings=PhononSettings(supercell=(2, 2, 2), **FAST))
    assert np.allclose(at(plain, "Γ")[3:], expected[0], rtol=1e-3)


def test_charges_of_phonopy_are_the_same_as_tensors(tmp_path):
    from phonopy import Phonopy

    one = "{0} 0 0 0 {0} 0 0 0 {0}\n"
    (tmp_path / "BORN").write_text("14.4\n" + one.format(2.4) + one.format(1.1) + one.format(-1.1))
    (tmp_path / "born.json").write_text(json.dumps({"born": [1.1, -1.1], "dielectric": 2.4}))
    cubic = to_phonopy(bulk("NaCl", "rocksalt", 2 * NEAREST, cubic=True))
    phonon = Phonopy(cubic, np.eye(3), "F")
    theirs, ours = (read_born(tmp_path / name, phonon, 1e-5) for name in ("BORN", "born.json"))
    assert np.allclose(theirs["born"], ours["born"]) and np.allclose(theirs["dielectric"], ours["dielectric"])
    assert theirs["factor"] == 14.4 and np.isclose(ours["factor"], 14.3996, atol=1e-4)  # e²/(4π ε0), eV Å
    (tmp_path / "BORN").write_text("14.4\n1 2\n")
    with pytest.raises(DataError, match="BORN"):
        read_born(tmp_path / "BORN", phonon, 1e-5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "no born and no dielectric"),
        ("{born: {Na: 1}, dielectric: 2}", "no Cl"),
        ("{born: [1], dielectric: 2}", "must have 2 tensors"),
        ("{born: [1, -1], dielectric: [1, 2]}", "dielectric must be 3×3"),
        ("{born: [1, x], dielectric: 2}", "born of atom 1"),
        ("{born: [1, -1], dielectric: -2}", "positive definite"),
        ("{", "neither YAML nor JSON"),
    ],
)
def test_unusable_charges(tmp_path, text, words):
    (tmp_path / "born.yaml").write_text(text)
    settings = PhononSettings(supercell=(1, 1, 1), born=str(tmp_path / "born.yaml"), **FAST)
    with pytest.raises(DataError, match=words):
        phonons(bulk("NaCl", "rocksalt", 2 * NEAREST), springs(), settings=settings)


@pytest.mark.parametrize("born, words", [("model", "this one has no born_charges"), ("BORN", "no file BORN")])
def test_missing_charges_are_said_before_anything_is_computed(born, words):
    calculator = springs()
    calculator.calculate = None
    with pytest.raises((ConfigError, DataError), match=words):
        phonons(bulk("Ar", "fcc", 1.1 * A0), calculator, Common(relax=True), PhononSettings(born=born))


def run_command(monkeypatch, capfd, *arguments):
    from equipot import cli

    monkeypatch.setattr(sys, "argv", ["equipot", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    return code, capfd.readouterr()


@pytest.fixture
def silicon(tmp_path):
    bulk("Si", "diamond", 5.43, cubic=True).write(tmp_path / "si.xyz")
    return tmp_path / "si.xyz"


def test_command_and_hessian(monkeypatch, capfd, tmp_path, silicon):
    """From the command line, with a model file; derivatives by torch agree with displacements."""
    out = tmp_path / "out"
    options = ("--relax", "--supercell", "1x1x1", "--hessian", "--output", out)
    code, printed = run_command(monkeypatch, capfd, "phonons", silicon, "--model", SILICON, *options)
    assert code == 0 and "Warning" not in printed.err, printed.err
    found = json.loads((out / "phonons.json").read_text())
    assert (
        found["space_group_relaxed"] == "Fd-3m (227)"
        and found["supercell_atoms"] == 8
        and found["primitive_atoms"] == 2
    )
    checks = {check["check"]: check for check in found["checks"]}
    assert checks["hessian"]["largest_change_THz"] < 0.02  # single precision and displacements of 0.01 Å
    assert all((out / name).stat().st_size for name in found["files"])
    import phonopy

    again = phonopy.load(out / "phonopy_params.yaml", log_level=0)
    x = next(of for of in found["special_points"] if of["label"] == "X")
    assert np.allclose(again.run_qpoints([x["q"]]).frequencies[0], x["frequencies_THz"], atol=1e-4)
    code, printed = run_command(monkeypatch, capfd, "phonons", silicon, "--model", SILICON, "--output", out)
    assert code == 1 and "--overwrite" in printed.err


def test_errors_of_the_command(monkeypatch, capfd, tmp_path, silicon):
    bulk("Cu").write(tmp_path / "cu.xyz")
    with pytest.raises(UnknownSpeciesError, match="Cu"):
        phonons(tmp_path / "cu.xyz", SILICON)
    with pytest.raises(ConfigError, match="--hessian"):
        phonons(bulk("Ar", "fcc", A0), springs(), settings=PhononSettings((1, 1, 1), hessian=True, **FAST))
    with pytest.raises(SimulationError, match="no minimum"):
        phonons(bulk("Si", "diamond", 5.0), SILICON)
    monkeypatch.setitem(sys.modules, "seekpath", None)
    code, printed = run_command(monkeypatch, capfd, "phonons", silicon, "--model", SILICON)
    assert code == 1 and "equipot[properties]" in printed.err
