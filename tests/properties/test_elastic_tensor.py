"""Elastic tensors against lattice sums, published values and the second derivative of the energy."""

import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.tersoff import Tersoff, TersoffParameters
from scipy.spatial.transform import Rotation

from equipot.errors import ConfigError, DataError, SimulationError
from equipot.properties.elastic_tensor import elastic_tensor
from equipot.properties.elasticity import (
    crystal_symmetry,
    moduli,
    rotated,
    sound,
    stiffness_eigenvalues,
    symmetrised,
    youngs_modulus,
)
from equipot.units import EV_A3_TO_GPA

SIGMA, EPSILON, CUTOFF = 3.4, 0.0104, 8.5
# Si(C) of J. Tersoff, Phys. Rev. B 38, 9902 (1988).
TERSOFF = TersoffParameters(
    *(3, 1, 0, 1.0039e5, 16.217, -0.59825, 0.78734, 1.1e-6, 1.7322, 471.18, 2.85, 0.15, 2.4799, 1830.8)
)


def silicon() -> Atoms:
    atoms = bulk("Si", a=5.432)
    atoms.calc = Tersoff({("Si", "Si", "Si"): TERSOFF})
    return atoms


@pytest.fixture(scope="module")
def relaxed_silicon():
    return elastic_tensor(silicon(), (0.005, 0.01))


@pytest.mark.parametrize("a", [5.1, 5.25])
def test_argon_is_the_lattice_sum(a):
    """Pairs: C_ijkl = Σ (φ'' − φ'/r) r_i r_j r_k r_l / (2 V r²), of Lagrangian strains also under stress."""
    atoms = bulk("Ar", a=a)
    atoms.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF)
    found = elastic_tensor(atoms, clamped=True)
    cells = np.array(list(itertools.product(range(-5, 6), repeat=3))) @ atoms.cell.array
    r = np.linalg.norm(cells, axis=1)
    near = (r > 0) & (r < CUTOFF)
    cells, r = cells[near], r[near]
    first = 4 * EPSILON * (-12 * SIGMA**12 / r**13 + 6 * SIGMA**6 / r**7)
    second = 4 * EPSILON * (156 * SIGMA**12 / r**14 - 42 * SIGMA**6 / r**8)
    x, y = cells[:, 0], cells[:, 1]
    weight = (second - first / r) / r**2 * EV_A3_TO_GPA / (2 * atoms.get_volume())
    c11, c12 = weight @ x**4, weight @ (x * y) ** 2
    cauchy = {"C11": c11, "C12": c12, "C44": c12}
    assert found.constants == pytest.approx(cauchy, rel=1e-5)
    assert found.forbidden < 1e-6 and found.asymmetry < 1e-6
    assert abs(found.stress[0]) > 0.01  # GPa: not at its minimum, and yet symmetric


def test_silicon_is_the_published_one(relaxed_silicon):
    """Tersoff (1988), table II: 142.5, 75.4, 69.0 GPa; with clamped ions C44 is 118.8."""
    assert relaxed_silicon.constants == pytest.approx({"C11": 142.5, "C12": 75.4, "C44": 69.0}, abs=0.1)
    clamped = elastic_tensor(silicon(), (0.005,), clamped=True)
    assert clamped.constants == pytest.approx({"C11": 142.5, "C12": 75.4, "C44": 118.8}, abs=0.1)
    assert relaxed_silicon.stable and relaxed_silicon.convergence < 0.05


def test_turned_crystal_has_the_same_constants(relaxed_silicon):
    atoms = silicon()
    turn = Rotation.from_euler("xyz", [20, 30, 50], degrees=True).as_matrix()
    atoms.set_cell(atoms.cell.array @ turn.T, scale_atoms=True)
    found = elastic_tensor(atoms, (0.005,))
    assert found.constants == pytest.approx(relaxed_silicon.constants, abs=0.1)
    assert abs(found.tensor - rotated(relaxed_silicon.tensor, turn)).max() < 0.1
    assert found.forbidden < 0.1


def wurtzite() -> Atoms:
    return bulk("ZnO", "wurtzite", a=3.25, c=5.2)


def corundum() -> Atoms:
    from ase.spacegroup import crystal

    where = [(0, 0, 0.352), (0.306, 0, 0.25)]
    return crystal(["Al", "O"], where, spacegroup=167, cellpar=[4.76, 4.76, 12.99, 90, 90, 120])


@pytest.mark.parametrize(
    ("make", "crystal_class", "count"),
    [
        (lambda: bulk("Cu"), "cubic", 3),
        (wurtzite, "hexagonal", 5),
        (corundum, "trigonal, -3m", 6),
        (lambda: bulk("In", "bct", a=3.25, c=4.95), "tetragonal, 4/mmm", 6),
    ],
)
def test_standard_axes_name_every_independent_constant(make, crystal_class, count):
    """What symmetry leaves of any tensor is spanned by the named constants, in the standard axes."""
    atoms = make()
    atoms.rotate(40, (1, 2, 3), rotate_cell=True)
    symmetry = crystal_symmetry(atoms)
    assert (symmetry.crystal_class, len(symmetry.constants)) == (crystal_class, count)
    random = np.random.default_rng(0).normal(size=(10, 6, 6))
    tensors = [rotated(symmetrised(each, symmetry.rotations), symmetry.to_standard) for each in random]
    places = [(int(n[0]) - 1, int(n[1]) - 1) for n in symmetry.constants]
    named = np.array([[each[place] for place in places] for each in tensors])
    assert np.linalg.matrix_rank(named) == count
    solved, *_ = np.linalg.lstsq(named, np.reshape(tensors, (10, 36)), rcond=None)
    assert abs(named @ solved - np.reshape(tensors, (10, 36))).max() < 1e-6


def test_moduli_of_an_isotropic_solid():
    """λ and μ give everything; Voigt, Reuss and Hill agree."""
    lame, shear = 60.0, 30.0
    tensor = np.diag([2 * shear] * 3 + [shear] * 3)
    tensor[:3, :3] += lame
    found = moduli(tensor)
    for mean in ("voigt", "reuss", "hill"):
        assert found[f"bulk_{mean}_GPa"] == pytest.approx(lame + 2 * shear / 3)
        assert found[f"shear_{mean}_GPa"] == pytest.approx(shear)
        assert found[f"poisson_{mean}"] == pytest.approx(lame / (2 * (lame + shear)))
    assert found["universal_anisotropy"] == pytest.approx(0.0, abs=1e-12)
    young = shear * (3 * lame + 2 * shear) / (lame + shear)
    directions = np.array([[1, 0, 0], [0.6, 0, 0.8], [3**-0.5] * 3])
    assert youngs_modulus(tensor, directions) == pytest.approx([young] * 3)
    assert stiffness_eigenvalues(tensor)[[0, -1]] == pytest.approx([2 * shear, 3 * lame + 2 * shear])


def test_copper_of_the_literature():
    """C 168.4, 121.4, 75.4 GPa: K 137, G 47 (Hill), E 66.7 and 191 GPa along 100 and 111, Debye 343 K.

    Sources: C. Kittel, Introduction to Solid State Physics; G. Simmons and H. Wang (1971).
    """
    tensor = np.diag([168.4 - 121.4] * 3 + [75.4] * 3)
    tensor[:3, :3] += 121.4
    found = moduli(tensor)
    assert found["bulk_hill_GPa"] == pytest.approx(137.1, abs=0.1)
    assert found["shear_hill_GPa"] == pytest.approx(47.3, abs=0.5)
    along = youngs_modulus(tensor, np.array([[1, 0, 0], [3**-0.5] * 3]))
    assert along == pytest.approx([66.7, 191.1], rel=0.01)
    waves = sound(tensor, bulk("Cu", a=3.615))
    assert waves["density_g_per_cm3"] == pytest.approx(8.93, abs=0.02)
    assert waves["debye_temperature_K"] == pytest.approx(343, abs=8)
    assert waves["sound_longitudinal_m_per_s"] == pytest.approx(4760, rel=0.02)


def test_unstable_crystal_is_said_to_be():
    """Copper in simple cubic order shears by itself."""
    atoms = bulk("Cu", "sc", a=2.4)
    atoms.calc = EMT()
    found = elastic_tensor(atoms, (0.005,), clamped=True)
    assert not found.stable and stiffness_eigenvalues(found.tensor)[0] < -1


def test_refusals():
    slab = fcc111("Cu", (1, 1, 3), vacuum=8.0)
    with pytest.raises(DataError, match=r"this is a slab \(c not periodic\)"):
        elastic_tensor(slab)
    slab.pbc = True
    with pytest.raises(DataError, match=r"this is a slab \(1\d\.\d Å empty along c\)"):
        elastic_tensor(slab)
    water = molecule("H2O", vacuum=5.0, pbc=True)
    with pytest.raises(DataError, match=r"this is a molecule"):
        elastic_tensor(water)
    for wrong in ((), (0.0,), (0.5,), (0.01, 0.01)):
        with pytest.raises(ConfigError, match="--strains must be"):
            elastic_tensor(silicon(), wrong)
    with pytest.raises(SimulationError, match=r"strained by \+0.01 in yz did not relax to 1e-14"):
        elastic_tensor(silicon(), (0.01,), fmax=1e-14, steps=3)
