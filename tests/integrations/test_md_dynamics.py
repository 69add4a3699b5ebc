"""Integrators against statistical mechanics: ensembles, what is conserved, constraints."""

from itertools import product

import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixInternals,
    FixLinearTriatomic,
    FixScaled,
    FixSubsetCom,
    Hookean,
)

from equipot.errors import ConfigError, DataError
from equipot.integrations.md_dynamics import (
    check_constraints,
    degrees_of_freedom,
    make_integrator,
    set_velocities,
)
from equipot.integrations.md_settings import MDSettings

kT = ase.units.kB * 300.0


class Springs(Calculator):
    """A ring of anharmonic springs, 1 eV/Å² and 2 eV/Å⁴, about the positions it is made for."""

    implemented_properties = ("energy", "forces")

    def __init__(self, positions):
        super().__init__()
        self.rest = np.roll(positions, -1, axis=0) - positions

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        stretch = np.roll(atoms.positions, -1, axis=0) - atoms.positions - self.rest
        push = stretch + 2.0 * stretch**3
        energy = float((stretch**2 / 2 + stretch**4 / 2).sum())
        self.results = {"energy": energy, "forces": push - np.roll(push, 1, axis=0)}


class Nothing(Calculator):
    """An ideal gas."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}


def begin(atoms, calculator, settings):
    check_constraints(atoms, settings)
    atoms.calc = calculator
    rng = np.random.default_rng(settings.seed)
    set_velocities(atoms, settings, rng)
    return make_integrator(atoms, settings, rng)


def ring():
    """16 atoms of two elements, periodic, so that only translations are conserved."""
    rng = np.random.default_rng(3)
    return Atoms("ArNe" * 8, rng.uniform(0, 20, (16, 3)), cell=[20, 20, 20], pbc=True)


FIXED = {
    "free": (list, 0, 3),
    "atoms": (lambda: [FixAtoms([0, 5, 6, 9])], 12, 0),
    "directions": (lambda: [FixCartesian([1, 2], (False, False, True)), FixAtoms([4])], 5, 0),
    "planes": (lambda: [FixedPlane([1, 2], (1, 1, 0)), FixedLine([7], (1, 0, 2))], 4, 0),
    "center": (lambda: [FixCom()], 3, 0),
    "subset": (lambda: [FixSubsetCom([1, 2, 3])], 3, 0),
    "heights": (lambda: [FixCartesian(list(range(16)), (False, False, True))], 16, 2),
}


@pytest.mark.parametrize(
    ("thermostat", "kind"),
    [*product(("langevin", "csvr", "nose-hoover"), ("free", "atoms")), ("langevin", "planes")],
)
def test_kinetic_energies_are_canonical(thermostat, kind):
    """Of f free momenta: mean f kT/2, variance f (kT)²/2; correlated over about 1/friction.

    4,000 steps of 4 fs and 20 fs of the thermostat: about 400 independent values, whose mean scatters by
    √(2/f)/√400 = 1 % and whose variance by √(2/400) = 7 %; allow 4σ.
    """
    constraints, removed, conserved = FIXED[kind]
    atoms = ring()
    atoms.set_constraint(constraints())
    settings = MDSettings("nvt", thermostat, temperature=300, timestep=4.0, friction=0.05)
    dynamics = begin(atoms, Springs(atoms.positions), settings)
    freedom = 48 - removed - (0 if thermostat == "langevin" else conserved)
    assert degrees_of_freedom(atoms, "nvt", thermostat) == freedom
    start, kinetic = atoms.positions.copy(), []
    for _ in dynamics.irun(4000):
        kinetic.append(atoms.get_kinetic_energy())
    kinetic = np.array(kinetic[250:])
    assert kinetic.mean() == pytest.approx(freedom * kT / 2, rel=0.04)
    assert kinetic.var() == pytest.approx(freedom * kT**2 / 2, rel=0.3)
    if kind == "atoms":
        np.testing.assert_array_equal(atoms.positions[[0, 5, 6, 9]], start[[0, 5, 6, 9]])
    if kind == "planes":
        moved = atoms.positions - start
        np.testing.assert_allclose(moved[[1, 2]] @ [1, 1, 0], 0.0, atol=1e-9)
        np.testing.assert_allclose(np.cross(moved[7], [1, 0, 2]), 0.0, atol=1e-9)


@pytest.mark.parametrize("kind", FIXED)
def test_degrees_of_freedom_are_counted_and_drawn(kind):
    """Drawn momenta have none of what is conserved; over many draws f kT/2 of energy, to √(2/f/200) = 2 %."""
    constraints, removed, conserved = FIXED[kind]
    atoms = ring()
    atoms.set_constraint(constraints())
    assert degrees_of_freedom(atoms, "nvt") == 48 - removed
    assert degrees_of_freedom(atoms, "nve") == 48 - removed - conserved
    settings, rng, energies = MDSettings("nve", velocities="draw"), np.random.default_rng(1), []
    for _ in range(200):
        set_velocities(atoms, settings, rng)
        energies.append(atoms.get_kinetic_energy())
    assert np.mean(energies) == pytest.approx((48 - removed - conserved) * kT / 2, rel=0.06)
    if conserved:
        np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-9)


def test_rotations_about_what_is_fixed():
    """A molecule with one atom fixed still turns about it; with two about a line; with three not at all."""
    water = molecule("H2O")
    for fixed, conserved in (([0], 3), ([0, 1], 1), ([0, 1, 2], 0)):
        water.set_constraint(FixAtoms(fixed))
        assert degrees_of_freedom(water, "nvt") - degrees_of_freedom(water, "nve") == conserved


def slab():
    """Copper of four layers, the lower two fixed."""
    atoms = fcc111("Cu", (2, 2, 4), vacuum=6.0, periodic=True)
    atoms.set_constraint(FixAtoms(indices=np.flatnonzero(atoms.get_tags() > 2)))
    return atoms


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_slab_conserves_its_energy(ensemble):
    """Velocity Verlet, and what Nosé-Hoover chains conserve instead; fixed atoms stay to the last bit."""
    atoms = slab()
    dynamics = begin(atoms, EMT(), MDSettings(ensemble, "nose-hoover", timestep=4.0, temperature=600))
    start, energies = atoms.positions.copy(), []
    for _ in dynamics.irun(150):
        total = atoms.get_total_energy()
        energies.append(total if ensemble == "nve" else dynamics.get_conserved_energy())
    assert np.ptp(energies) < 0.02 * atoms.get_kinetic_energy()
    free = atoms.get_tags() <= 2
    np.testing.assert_array_equal(atoms.positions[~free], start[~free])
    assert (np.linalg.norm(atoms.positions - start, axis=1)[free] > 1e-3).all()


def test_csvr_knows_what_it_took():
    atoms = slab()
    dynamics = begin(atoms, EMT(), MDSettings("nvt", "csvr", timestep=4.0, temperature=600))
    energies = [atoms.get_total_energy() - dynamics.transferred_energy for _ in dynamics.irun(100)]
    assert np.ptp(energies) < 0.02 * atoms.get_kinetic_energy()
    assert abs(dynamics.transferred_energy) > 0.1


@pytest.mark.parametrize(
    ("name", "kind", "removed"), [("H2O", FixBondLengths, 3), ("CO2", FixLinearTriatomic, 4)]
)
def test_rigid_molecules_keep_their_lengths(name, kind, removed):
    """Without forces between atoms that move together: the kinetic energy is conserved, the shape kept."""
    atoms = molecule(name, cell=[20, 20, 20], pbc=True)  # it keeps turning
    pairs = [(0, 1), (0, 2), (1, 2)]
    atoms.set_constraint(FixBondLengths(pairs) if kind is FixBondLengths else FixLinearTriatomic([(1, 0, 2)]))
    dynamics = begin(atoms, Nothing(), MDSettings("nve", timestep=0.5))
    before = [atoms.get_distance(*pair) for pair in pairs]
    kinetic = [atoms.get_kinetic_energy() for _ in dynamics.irun(100)]
    np.testing.assert_allclose([atoms.get_distance(*pair) for pair in pairs], before, rtol=1e-6)
    assert np.ptp(kinetic) < 1e-3 * kinetic[0]
    assert degrees_of_freedom(atoms, "nvt") == 9 - removed


def gas():
    """32 atoms in a box, far from equilibrium with 300 K and 1 GPa by 20 %."""
    rng = np.random.default_rng(5)
    length = (33 * kT / ase.units.GPa) ** (1 / 3) * 1.06
    return Atoms("Ar32", rng.uniform(0, length, (32, 3)), cell=[length] * 3, pbc=True)


@pytest.mark.parametrize(("mask", "fixed"), [(None, True), ((0, 0, 1), False)])
def test_volumes_of_an_ideal_gas(mask, fixed):
    """N atoms: p(V) ∝ V^N exp(−PV/kT), so ⟨V⟩ = (N + 1) kT/P; N is a third of the coordinates that are free.

    Those that are fixed keep their fractions of the cell. V scatters by 1/√(N+1) = 17 % (21 %) and is
    correlated over about 50 of 7,000 steps: the mean to 1.5 % (2 %); allow 4σ. The variance of V is (N + 1)
    (kT/P)², to about 12 %; allow 3σ.
    """
    atoms, height = gas(), (False, False, True)
    if fixed:
        at_height = [FixCartesian(list(range(8, 12)), height), FixScaled(list(range(12, 16)), height)]
        atoms.set_constraint([FixAtoms(list(range(8))), *at_height])
    scaled, still = atoms.get_scaled_positions(), np.zeros((32, 3), dtype=bool)
    still[:8], still[8:16, 2] = fixed, fixed
    settings = MDSettings("npt", timestep=40.0, pressure=1.0, friction=0.05, mask=mask, seed=2)
    dynamics = begin(atoms, Nothing(), settings)
    cell, volumes = atoms.cell.array.copy(), []
    for _ in dynamics.irun(7000):
        volumes.append(atoms.get_volume())
    volumes, ideal, expected = np.array(volumes[500:]), kT / ase.units.GPa, 64 / 3 + 1 if fixed else 33
    assert degrees_of_freedom(atoms, "npt") == 3 * (expected - 1)
    assert volumes.mean() == pytest.approx(expected * ideal, rel=0.08)
    assert volumes.var() == pytest.approx(expected * ideal**2, rel=0.4)
    if mask:
        np.testing.assert_array_equal(atoms.cell.array[:2], cell[:2])
        np.testing.assert_array_equal(atoms.cell.array[2, :2], 0.0)
    else:
        np.testing.assert_allclose(atoms.cell.lengths(), atoms.cell.lengths()[0], rtol=1e-9)
    moved = (atoms.get_scaled_positions() - scaled)[still]
    np.testing.assert_allclose(moved - np.round(moved), 0.0, atol=1e-9)


@pytest.mark.parametrize("mask", [None, (1, 1, 0), (0, 0, 1)])
def test_martyna_tobias_klein(mask):
    """Conserves its energy; the cell changes where it may, and nowhere else, from a hexagonal one too."""
    atoms = bulk("Cu", "hcp", a=2.55, c=4.15).repeat((3, 3, 2))
    settings = MDSettings("npt", "nose-hoover", temperature=400, timestep=4.0, pressure=5.0, mask=mask)
    dynamics = begin(atoms, EMT(), settings)
    cell = atoms.cell.array.copy()
    energies = [dynamics.get_conserved_energy() for _ in dynamics.irun(150)]
    assert np.ptp(energies) < 0.02 * atoms.get_kinetic_energy()
    stretch = np.linalg.solve(cell, atoms.cell.array)
    changed = np.array(mask or (1, 1, 1), dtype=bool)
    np.testing.assert_allclose(stretch, np.diag(np.diag(stretch)), atol=1e-9)
    assert (abs(np.diag(stretch) - 1)[changed] > 1e-3).all()
    np.testing.assert_allclose(np.diag(stretch)[~changed], 1.0, atol=1e-12)
    if mask is None:
        assert np.ptp(np.diag(stretch)) < 1e-12


def test_masked_cells_shear_nothing():
    """Velocities along x stay there: ASE's drag by the barostat turned them."""
    atoms = gas()
    settings = MDSettings("npt", temperature=0, timestep=5.0, mask=(1, 0, 1), velocities="keep")
    atoms.set_momenta(np.outer(np.linspace(-1, 1, 32), [1.0, 0, 0]))
    dynamics = begin(atoms, Nothing(), settings)
    dynamics.run(20)
    assert abs(atoms.cell[2, 2] / atoms.cell[1, 1] - 1) > 1e-9
    np.testing.assert_array_equal(atoms.get_momenta()[:, 1:], 0.0)


@pytest.mark.parametrize(
    ("constraint", "settings", "message"),
    [
        (FixBondLengths([(0, 1)]), MDSettings("nvt"), "FixBondLengths, which nvt with langevin does not"),
        (FixBondLengths([(0, 1)]), MDSettings("nvt", "nose-hoover"), "FixBondLengths, which nvt with nose"),
        (FixAtoms([0]), MDSettings("npt", "nose-hoover"), "it keeps none"),
        (FixCom(), MDSettings("npt"), "FixCom, which npt with langevin does not keep .it keeps FixAtoms"),
        (FixInternals(bonds=[(1.0, [0, 1])]), MDSettings("nve"), "FixInternals, which nve does not"),
        (Hookean(0, 1, 1.0, rt=1.0), MDSettings("npt"), "Hookean"),
        ([FixAtoms([0]), FixCartesian([0, 1])], MDSettings("nve"), "Atom 0 is in more than one constraint"),
        ([FixAtoms([0]), FixCom()], MDSettings("nve"), "more than one"),
        (FixScaled([0], (True, False, False)), MDSettings("nve"), "at right angles"),
    ],
)
def test_constraints_that_are_refused(constraint, settings, message):
    atoms = bulk("Cu").repeat((2, 2, 2))
    atoms.set_constraint(constraint)
    with pytest.raises(DataError, match=message):
        check_constraints(atoms, settings)


def test_fixed_directions_of_a_cell_at_right_angles():
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(FixScaled([0, 1], (True, False, False)))
    check_constraints(atoms, MDSettings("nvt"))
    assert degrees_of_freedom(atoms, "nvt") == 10


def test_velocities_are_kept_or_drawn():
    settings = {choice: MDSettings("nve", velocities=choice) for choice in (None, "keep", "draw")}

    def after(momenta, choice):
        atoms = bulk("Cu", cubic=True)
        if momenta is not None:
            atoms.set_momenta(momenta)
        said = set_velocities(atoms, settings[choice], np.random.default_rng(0))
        return atoms.get_momenta(), said

    given = np.random.default_rng(1).standard_normal((4, 3))
    drawn, said = after(None, None)
    assert said == "Velocities are drawn for 300 K."
    for choice in (None, "keep"):
        momenta, said = after(given, choice)
        np.testing.assert_array_equal(momenta, given)
        assert "are kept" in said
    np.testing.assert_array_equal(after(given, "draw")[0], drawn)
    momenta, said = after(np.zeros((4, 3)), None)
    np.testing.assert_array_equal(momenta, drawn)
    assert "those of the structure are zero" in said
    assert not after(np.zeros((4, 3)), "keep")[0].any()
    with pytest.raises(ConfigError, match="--velocities keep: the structure has none"):
        after(None, "keep")


def test_drift_counts_as_motion():
    """Kept velocities may move the whole: then all momenta are in the temperature."""
    atoms = bulk("Cu", cubic=True)
    atoms.set_momenta(np.tile([1.0, 0, 0], (4, 1)))
    assert degrees_of_freedom(atoms, "nve") == 12
    atoms.set_momenta(np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 0, 0], [0, 0, 0]]))
    assert degrees_of_freedom(atoms, "nve") == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thermostat": "nose"}, "--thermostat must be langevin, nose-hoover or csvr, found 'nose'"),
        ({"velocities": "zero"}, "--velocities must be keep or draw"),
        ({"ensemble": "npt", "thermostat": "csvr"}, "csvr has no barostat"),
        ({"thermostat": "csvr", "temperature": 0}, "above 0 K"),
        ({"mask": (0, 0, 1)}, "--mask is for npt"),
        ({"ensemble": "npt", "mask": (0, 0, 0)}, "--mask must be"),
        ({"ensemble": "npt", "mask": (0, 2, 0)}, "--mask must be"),
        ({"stop_below": "0.9 nm"}, "--stop-below must be a factor"),
        ({"stop_below": "-1"}, "--stop-below"),
        ({"restart_interval": 0}, "--restart-interval"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        MDSettings(**options)


def test_nothing_to_move():
    atoms = ring()
    atoms.set_constraint(FixAtoms(list(range(16))))
    with pytest.raises(ConfigError, match="Nothing is free"):
        begin(atoms, Springs(atoms.positions), MDSettings("nvt"))
    still = ring()
    still.set_momenta(np.zeros((16, 3)))
    with pytest.raises(ConfigError, match="all are zero"):
        begin(still, Springs(still.positions), MDSettings("nvt", "csvr", velocities="keep"))
