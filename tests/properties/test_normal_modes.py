"""Frequencies against √(k/μ) and chains of springs, thermochemistry against tables."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian

from equipot.errors import ConfigError, DataError, SimulationError
from equipot.properties.normal_modes import Vibrations, shape_of, vibrations
from equipot.properties.strained import relax_ions
from equipot.properties.thermochemistry import symmetry_number, thermochemistry

INVCM_OF = np.sqrt(units._e / units._amu) * 1e10 / (2 * np.pi * units._c * 100)  # of √(eV/Å²/u)


class Springs(Calculator):
    """Atoms in a row, each tied to the next: ½ k (|r| − r0)²."""

    implemented_properties = ("energy", "forces")
    k, r0 = 20.0, 1.2

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        bonds = np.diff(atoms.positions, axis=0)
        lengths = np.linalg.norm(bonds, axis=1)
        pull = self.k * (lengths - self.r0)[:, None] * bonds / lengths[:, None]
        forces = np.zeros_like(atoms.positions)
        forces[:-1] += pull
        forces[1:] -= pull
        self.results = {"energy": 0.5 * self.k * ((lengths - self.r0) ** 2).sum(), "forces": forces}


def test_diatomic_is_the_root_of_k_over_mu():
    """Morse: k = 2 ε ρ²/r0²; the rotations' curvature is zero at the minimum."""
    depth, r0, steep = 4.5, 1.1, 2.9
    atoms = Atoms("CO", [[0, 0, 0], [0.6 * r0, 0, 0.8 * r0]])
    atoms.calc = MorsePotential(epsilon=depth, r0=r0, rho0=steep)
    found = vibrations(atoms)
    reduced = np.prod(atoms.get_masses()) / atoms.get_masses().sum()
    expected = INVCM_OF * np.sqrt(2 * depth * (steep / r0) ** 2 / reduced)
    assert found.geometry == "linear" and found.wavenumbers == pytest.approx([expected], rel=1e-5)
    assert found.change < 1.0 and len(found.rigid) == 5 and abs(found.rigid / units.invcm).max() < 5
    assert found.zero_point_energy == pytest.approx(0.5 * expected * units.invcm, rel=1e-5)


def test_chain_of_springs():
    """Free ends: ω_k = 2 √(k/m) sin(πk/2N) along the chain; across it nothing holds the atoms."""
    size = 6
    atoms = Atoms("C" * size, [[0, 0, Springs.r0 * i] for i in range(size)], calculator=Springs())
    found = vibrations(atoms)
    along = 2 * np.sqrt(Springs.k / 12.011) * np.sin(np.pi * np.arange(1, size) / (2 * size)) * INVCM_OF
    assert len(found.energies) == 3 * size - 5
    assert found.wavenumbers[-(size - 1) :] == pytest.approx(along, rel=1e-4)
    assert abs(found.wavenumbers[: -(size - 1)]).max() < 1  # 2 (N − 2) across, but for rounding
    assert not found.imaginary[-(size - 1) :].any()
    norms = (found.modes**2 * atoms.get_masses()[:, None]).sum(axis=(1, 2))
    assert norms == pytest.approx(1.0)
    assert abs(np.einsum("mna,n->ma", found.modes, atoms.get_masses())).max() < 1e-8  # no momentum


@pytest.mark.parametrize(
    ("name", "number", "shape"),
    [
        *(("H2O", 2, "nonlinear"), ("NH3", 3, "nonlinear"), ("CH4", 12, "nonlinear")),
        *(("C6H6", 12, "nonlinear"), ("CO2", 2, "linear"), ("HCN", 1, "linear"), ("C2H6", 6, "nonlinear")),
        *(("CH3OH", 1, "nonlinear"), ("C60", 60, "nonlinear"), ("H", 1, "monatomic")),
    ],
)  # fmt: skip
def test_symmetry_number(name, number, shape):
    """In any orientation, and with the errors of a relaxation."""
    atoms = molecule(name)
    atoms.rotate(33, (1, 2, 3))
    atoms.rattle(0.003, seed=1)
    assert (symmetry_number(atoms), shape_of(atoms)) == (number, shape)


def gas(name: str, *wavenumbers: float) -> Vibrations:
    """A molecule of which the modes are known."""
    measured = {"He": Atoms("He"), "N2": Atoms("N2", [[0, 0, 0], [0, 0, 1.0977]])}
    atoms = measured[name] if name in measured else molecule(name)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    energies = np.sort(wavenumbers) * units.invcm
    nothing = np.zeros(0)
    return Vibrations(
        *(atoms, np.arange(len(atoms)), nothing, energies, nothing, nothing), 0.0, 0.0, shape_of(atoms)
    )


@pytest.mark.parametrize(
    ("found", "entropy", "capacity"),
    [
        (gas("H2O", 1595, 3657, 3756), 188.8, 33.6),
        (gas("CO2", 667, 667, 1333, 2349), 213.8, 37.1),
        (gas("CH4", *[1306] * 3, *[1534] * 2, 2917, *[3019] * 3), 186.3, 35.7),
        (gas("N2", 2330), 191.6, 29.1),
        (gas("He"), 126.15, 20.786),  # Sackur-Tetrode and 5/2 R
    ],
    ids=["H2O", "CO2", "CH4", "N2", "He"],
)
def test_thermochemistry_is_that_of_tables(found, entropy, capacity):
    """S° and Cp in J/(mol K) at 298.15 K and 1 bar, of NIST's JANAF tables, from measured frequencies."""
    result = thermochemistry(found, 298.15, 1e5)
    assert result["entropy_J_per_mol_K"] == pytest.approx(entropy, abs=0.3)
    assert result["heat_capacity_J_per_mol_K"] == pytest.approx(capacity, abs=0.3)
    gibbs = result["enthalpy_eV"] - 298.15 * result["entropy_eV_per_K"]
    assert result["gibbs_energy_eV"] == pytest.approx(gibbs, abs=1e-9)
    assert result["internal_energy_eV"] > -1.0 + found.zero_point_energy


def test_spin_and_symmetry_number_count():
    water = gas("H2O", 1595, 3657, 3756)
    plain = thermochemistry(water)["entropy_J_per_mol_K"]
    gas_constant = 8.314
    once = thermochemistry(water, symmetry=1)
    assert once["entropy_J_per_mol_K"] - plain == pytest.approx(gas_constant * np.log(2), abs=0.01)
    triplet = thermochemistry(water, spin=1)
    assert triplet["entropy_J_per_mol_K"] - plain == pytest.approx(gas_constant * np.log(3), abs=0.01)
    assert thermochemistry(gas("OH", 3738))["spin"] == 0.5
    with pytest.raises(ConfigError, match=r"--spin 0.5 does not fit H2O, .* even number .* 0, 1"):
        thermochemistry(water, spin=0.5)
    with pytest.raises(ConfigError, match="--symmetry-number"):
        thermochemistry(water, symmetry=0)
    with pytest.raises(ConfigError, match="temperature"):
        thermochemistry(water, 0.0)
    with pytest.raises(SimulationError, match="several imaginary modes"):
        thermochemistry(gas("H2O", -100, -50, 3000))


def test_imaginary_modes():
    """Three atoms of copper in a row bend in two directions, with equal frequencies."""
    atoms = Atoms("Cu3", [[0, 0, -2.3], [0, 0, 0], [0, 0, 2.3]], calculator=EMT())
    relax_ions(atoms, 1e-5)
    found = vibrations(atoms)
    assert found.imaginary.sum() == 2 and found.wavenumbers[0] == pytest.approx(
        found.wavenumbers[1], rel=1e-3
    )
    assert found.zero_point_energy == pytest.approx(0.5 * found.energies[2:].sum())


def test_adsorbate_on_fixed_atoms():
    slab = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    add_adsorbate(slab, "O", 1.2, "fcc")
    slab.set_constraint(FixAtoms(range(8)))
    slab.calc = EMT()
    relax_ions(slab, 1e-3)
    found = vibrations(slab)
    assert found.geometry == "fixed" and len(found.energies) == 3 and not found.imaginary.any()
    assert found.wavenumbers[0] == pytest.approx(found.wavenumbers[1], rel=1e-2)  # threefold
    assert not found.modes[:, :8].any()
    thermo = thermochemistry(found)
    assert "gibbs_energy_eV" not in thermo and thermo["entropy_eV_per_K"] > 0
    slab.set_constraint(FixCartesian(0))
    with pytest.raises(DataError, match="only FixAtoms is understood"):
        vibrations(slab)


def test_refusals():
    atoms = bulk("Cu")
    atoms.calc = EMT()
    with pytest.raises(DataError, match="use equipot phonons"):
        vibrations(atoms)
    with pytest.raises(ConfigError, match="--displacement"):
        vibrations(molecule("H2O"), 1.0)
