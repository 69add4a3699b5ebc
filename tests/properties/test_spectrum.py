"""Spectra of harmonic molecules against their normal modes and double-harmonic intensities."""

import json
import sys
import warnings
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.verlet import VelocityVerlet

from equipot.cli import main
from equipot.errors import ConfigError, DataError
from equipot.properties.correlation import spectral_density
from equipot.properties.normal_modes import vibrations
from equipot.properties.settings import SpectrumSettings
from equipot.properties.spectrum import spectrum
from equipot.properties.trajectory import continuous

KM_PER_MOL = 42.2561  # of (D/Å)²/u, as tables and ASE have it
INFRARED = "infrared_km_per_mol_cm"
DEBYE = 0.20819433442462576


class Water(Calculator):
    """Three springs, charges, and a polarizability of the bonds, all functions of positions."""

    implemented_properties = ("energy", "forces", "dipole", "polarizability")
    springs, charges = np.array([45.0, 45.0, 12.0]), np.array([-0.66, 0.33, 0.33])
    pairs = np.array([[0, 1], [0, 2], [1, 2]])

    def __init__(self):
        super().__init__()
        self.lengths = np.linalg.norm(self.bonds(molecule("H2O")), axis=1)

    def bonds(self, atoms):
        return atoms.positions[self.pairs[:, 1]] - atoms.positions[self.pairs[:, 0]]

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        bonds = self.bonds(atoms)
        lengths = np.linalg.norm(bonds, axis=1)
        pull = (self.springs * (lengths - self.lengths) / lengths)[:, None] * bonds
        forces = np.zeros((3, 3))
        np.add.at(forces, self.pairs[:, 0], pull)
        np.add.at(forces, self.pairs[:, 1], -pull)
        alpha = 1.1 * np.eye(3) + 0.7 * np.einsum("pa,pb->ab", bonds[:2], bonds[:2])
        self.results = {
            "energy": 0.5 * float(self.springs @ (lengths - self.lengths) ** 2), "forces": forces,
            "dipole": self.charges @ atoms.positions, "polarizability": alpha,
        }  # fmt: skip


@pytest.fixture(scope="module")
def modes():
    atoms = molecule("H2O")
    atoms.calc = Water()
    return vibrations(atoms)


def oscillating(modes, kelvin: float, frames: int, interval: float) -> list[Atoms]:
    """Normal modes with kT each, exactly, without integrating anything."""
    times = interval * units.fs * np.arange(frames)
    frequencies = modes.energies / units._hbar * units._e / (1e10 * np.sqrt(units._e / units._amu))
    found = []
    phases = np.array([0.3, 1.1, 2.0])
    sizes = np.sqrt(2 * units.kB * kelvin) / frequencies
    for time in times:
        atoms = modes.atoms.copy()
        shift = sizes * np.cos(frequencies * time + phases)
        speed = -sizes * frequencies * np.sin(frequencies * time + phases)
        atoms.positions += np.einsum("k,kna->na", shift, modes.modes)
        atoms.set_velocities(np.einsum("k,kna->na", speed, modes.modes))
        found.append(atoms)
    return found


def along(modes, what: str) -> np.ndarray:
    """Derivatives by each normal coordinate, by central differences."""
    found = []
    for mode in modes.modes:
        ends = []
        for sign in (1, -1):
            atoms = modes.atoms.copy()
            atoms.positions += sign * 1e-3 * mode
            ends.append(np.array(Water().get_property(what, atoms)))
        found.append((ends[0] - ends[1]) / 2e-3)
    return np.array(found)


def bands(result, name: str, modes) -> np.ndarray:
    """Area of each mode's line."""
    waves, column = np.array(result.numbers["wavenumbers_per_cm"]), np.array(result.numbers[name])
    near = abs(waves[:, None] - modes.wavenumbers) < 60
    return (column[:, None] * near).sum(axis=0) * (waves[1] - waves[0])


@pytest.fixture(scope="module")
def harmonic(modes):
    frames = oscillating(modes, 0.5, 8000, 0.5)
    return spectrum(frames, Water(), None, SpectrumSettings(interval=0.5, temperature=0.5, resolution=12.0))


def test_lines_are_at_the_frequencies(harmonic, modes):
    waves = np.array(harmonic.numbers["wavenumbers_per_cm"])
    for name in ("infrared_km_per_mol_cm", "raman_activity_A4_per_u_cm", "density_of_states_cm"):
        column = np.array(harmonic.numbers[name])
        for expected in modes.wavenumbers:
            near = abs(waves - expected) < 60
            assert waves[near][column[near].argmax()] == pytest.approx(expected, abs=3)


def test_infrared_intensities(harmonic, modes):
    """42.2561 km/mol times the squared derivative of the dipole in D/(Å √u)."""
    expected = KM_PER_MOL * (along(modes, "dipole") ** 2).sum(axis=1) / DEBYE**2
    assert expected.max() > 10
    np.testing.assert_allclose(
        bands(harmonic, "infrared_km_per_mol_cm", modes), expected, rtol=0.02, atol=0.1
    )


def test_raman_activities_and_depolarisation(harmonic, modes):
    """45 a'² + 7 γ'², with γ'² from the six components as textbooks have it."""
    d = along(modes, "polarizability")
    mean = np.trace(d, axis1=1, axis2=2) / 3
    xx, yy, zz = (d[:, i, i] for i in range(3))
    gamma = 0.5 * ((xx - yy) ** 2 + (yy - zz) ** 2 + (zz - xx) ** 2)
    gamma += 3 * (d[:, 0, 1] ** 2 + d[:, 1, 2] ** 2 + d[:, 0, 2] ** 2)
    activity = 45 * mean**2 + 7 * gamma
    np.testing.assert_allclose(
        bands(harmonic, "raman_activity_A4_per_u_cm", modes), activity, rtol=0.02, atol=0.01
    )
    waves, ratio = (
        np.array(harmonic.numbers[n]) for n in ("wavenumbers_per_cm", "raman_depolarisation_ratio")
    )
    for k, wave in enumerate(modes.wavenumbers):
        expected = 3 * gamma[k] / (45 * mean[k] ** 2 + 4 * gamma[k])
        assert ratio[abs(waves - wave).argmin()] == pytest.approx(expected, abs=0.01)
    assert np.nanmax(harmonic.numbers["raman_intensity_relative"]) == pytest.approx(1.0)


def test_density_of_states_counts_modes(harmonic, modes):
    np.testing.assert_allclose(bands(harmonic, "density_of_states_cm", modes), 1, rtol=0.02)
    waves = np.array(harmonic.numbers["wavenumbers_per_cm"])
    total = np.array(harmonic.numbers["density_of_states_cm"]).sum() * (waves[1] - waves[0])
    assert total == pytest.approx(3, rel=0.02)
    parts = sum(np.array(harmonic.numbers[f"density_of_states_{s}_cm"]) for s in "OH")
    np.testing.assert_allclose(parts, harmonic.numbers["density_of_states_cm"], atol=1e-9)


@pytest.mark.parametrize(
    ("correction", "factor"),
    [
        ("none", lambda x: (1 - np.exp(-x)) / x),
        ("standard", lambda x: 2 * np.tanh(x / 2) / x),
        ("schofield", lambda x: 2 * np.sinh(x / 2) / x),
    ],
)
def test_other_corrections(modes, correction, factor):
    """At 300 K a quantum of 3700 cm⁻¹ is 18 kT, so they differ by orders of magnitude."""
    frames = oscillating(modes, 300.0, 1500, 0.5)  # exactly harmonic in the dipole, which is linear
    given = {"interval": 0.5, "temperature": 300.0, "resolution": 30.0}
    plain, other = (
        spectrum(frames, Water(), None, SpectrumSettings(correction=chosen, **given)).numbers[INFRARED]
        for chosen in ("harmonic", correction)
    )
    waves = np.arange(len(plain)) * 4500 / len(plain)
    top = plain.argmax()
    x = modes.wavenumbers[abs(modes.wavenumbers - waves[top]).argmin()] * 1.438777 / 300.0
    assert other[top] / plain[top] == pytest.approx(factor(x), rel=0.02)


def test_molecular_dynamics_finds_the_normal_modes(modes, tmp_path):
    """Of a file, at 5 K, by velocity Verlet: shifted by its own error, (ωτ)²/24, and by nothing else."""
    atoms = oscillating(modes, 5.0, 1, 0.5)[0]
    atoms.calc = Water()
    frames = []
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    for step in range(1500):
        frame = atoms.copy()
        frame.info = {"time_ps": 5e-4 * step, "temperature_K": 5.0}
        frame.calc = SinglePointCalculator(frame, dipole=Water().get_property("dipole", atoms))
        frames.append(frame)
        dynamics.run(1)
    ase.io.write(tmp_path / "run.extxyz", frames)
    found = spectrum(tmp_path / "run.extxyz", settings=SpectrumSettings(resolution=40.0)).numbers
    assert found["temperature_K"] == 5.0 and found["interval_fs"] == pytest.approx(0.5)
    assert "raman_activity_A4_per_u_cm" not in found
    waves, column = (np.array(found[n]) for n in ("wavenumbers_per_cm", "density_of_states_cm"))
    for expected in modes.wavenumbers:
        near = abs(waves - expected) < 80
        shift = expected * (2 * np.pi * 2.99792458e-5 * expected * 0.5) ** 2 / 24
        assert waves[near][column[near].argmax()] == pytest.approx(expected + shift, abs=4)


def test_area_is_the_variance_whatever_the_resolution():
    rng = np.random.default_rng(0)
    signal = np.cumsum(rng.normal(size=(500, 2)), axis=0)
    signal -= signal.mean(axis=0)
    for resolution in (5.0, 200.0):
        waves, density = spectral_density(signal, 1.0, resolution)
        area = density.sum() * (waves[1] - waves[0]) - 0.5 * (density[0] + density[-1]) * (
            waves[1] - waves[0]
        )
        assert area == pytest.approx((signal**2).sum(axis=1).mean(), rel=1e-6)
        assert (density > -1e-9 * density.max()).all()


def test_polarizations_of_cells_are_made_continuous():
    cells = np.tile(np.diag([5.0, 6.0, 7.0]) + 0.3, (200, 1, 1))
    true = np.cumsum(np.random.default_rng(1).normal(size=(200, 3)), axis=0) * 0.3
    inside = np.einsum("fa,fab->fb", np.einsum("fa,fab->fb", true, np.linalg.inv(cells)) % 1.0, cells)
    found = continuous(inside, cells)
    np.testing.assert_allclose(found - found[0], true - true[0], atol=1e-9)
    with pytest.raises(DataError, match=r"changes by 0.* of its quantum"):
        continuous(inside[::12], cells[::12])


def trajectory(**info) -> list[Atoms]:
    frames = []
    for step in range(8):
        atoms = molecule("H2O")
        atoms.rattle(0.01, seed=step)
        atoms.info = {"time_ps": 1e-3 * step, **info}
        frames.append(atoms)
    return frames


def test_what_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        spectrum(tmp_path / "none.xyz")
    (tmp_path / "bad.xyz").write_text("hello\n")
    with pytest.raises(DataError, match="not read as a trajectory"):
        spectrum(tmp_path / "bad.xyz")
    with pytest.raises(ConfigError, match="no 'dipole', no 'polarizability' and no velocities"):
        spectrum(trajectory(temperature_K=300.0))
    with pytest.raises(ConfigError, match="give --temperature, in K"):
        spectrum(trajectory(dipole=[1.0, 0.0, 0.0]))
    good = trajectory(dipole=[1.0, 0.0, 0.0], temperature_K=300.0)
    with pytest.raises(ConfigError, match="--interval is 2 fs, but the trajectory says 1 fs"):
        spectrum(good, settings=SpectrumSettings(interval=2.0))
    with pytest.raises(ConfigError, match=r"--dipole-unit: expected a unit such as e\*Ang, found Ang"):
        SpectrumSettings(dipole_unit="Ang")
    alike = trajectory(polarizability=np.eye(3), temperature_K=300.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no intensities, or none that does not diverge
        for highest in (5.0, 4500.0):
            found = spectrum(alike, settings=SpectrumSettings(max_wavenumber=highest)).numbers
            assert np.isnan(found["raman_intensity_relative"]).all()
    with pytest.raises(ConfigError, match="--polarizability alpha: the trajectory has nothing of this name"):
        spectrum(good, settings=SpectrumSettings(polarizability="alpha"))
    with pytest.raises(ConfigError, match="--polarizability-unit: Unknown factor 'foo'"):
        SpectrumSettings(polarizability_unit="foo")
    with pytest.raises(DataError, match="7 of 8 frames have a dipole"):
        del good[3].info["dipole"]
        spectrum(good)
    late = trajectory(dipole=[1.0, 0.0, 0.0], temperature_K=300.0)
    late[4].info["time_ps"] += 5e-4
    with pytest.raises(DataError, match=r"frames 3 and 4 are 1\.5 fs apart, others 1 fs"):
        spectrum(late)
    with pytest.raises(DataError, match="needs four frames at least, found 3"):
        spectrum(late[:3])
    with pytest.raises(ConfigError, match="--correction must be one of"):
        SpectrumSettings(correction="quantum")


def command(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["equipot", *arguments])
    with pytest.raises(SystemExit, match="0"):
        main()
    return " ".join(capsys.readouterr().out.split())


def test_command(modes, tmp_path, monkeypatch, capsys):
    frames = oscillating(modes, 10.0, 1200, 1.0)
    for step, atoms in enumerate(frames):
        atoms.info = {"time_ps": 1e-3 * step, "temperature_K": 10.0}
        atoms.info["mu"] = Water().get_property("dipole", atoms) / DEBYE
        atoms.info["alpha"] = Water().get_property("polarizability", atoms)
    monkeypatch.chdir(tmp_path)
    ase.io.write("run.extxyz", frames)
    named = ["--dipole", "mu", "--dipole-unit", "Debye", "--polarizability", "alpha"]
    out = command(monkeypatch, capsys, "spectrum", "run.extxyz", *named, "--resolution", "40")
    assert "H2O: 1200 frames, 1 fs apart, 1.2 ps in all, at 10 K; lines are 40 cm⁻¹ wide" in out
    found = json.loads(Path("spectrum/spectrum.json").read_text())
    assert set(found["files"]) >= {"spectrum.png", "spectrum.csv", "report.html"}
    table = np.genfromtxt("spectrum/spectrum.csv", delimiter=",", names=True)
    np.testing.assert_allclose(
        table["infrared_km_per_mol_cm"], found["infrared_km_per_mol_cm"], rtol=1e-6, atol=1e-9
    )
