"""Equations of state against lattice sums, elastic tensors and energies made by a form itself."""

import itertools

import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.eos import vinet

from equipot.errors import ConfigError, DataError, SimulationError
from equipot.properties.elastic_tensor import elastic_tensor
from equipot.properties.elasticity import moduli
from equipot.properties.equation_of_state import _same_phase, equation_of_state, fit
from equipot.units import EV_A3_TO_GPA


def test_argon_is_the_lattice_sum():
    """E = 2ε [A12 x⁴ − A6 x²], x = σ³/a³ ∝ 1/V, with sums A over all neighbors; V0, B and B' follow."""
    atoms = bulk("Ar", a=5.25)
    sigma, epsilon, cutoff = 3.4, 0.0104, 9.5
    atoms.calc = LennardJones(sigma=sigma, epsilon=epsilon, rc=cutoff)
    cells = np.array(list(itertools.product(range(-6, 7), repeat=3))) @ atoms.cell.array
    r = np.linalg.norm(cells, axis=1)
    r = r[(r > 0) & (r < 9.3)] / 5.25  # in units of a; no shell comes or goes
    a12, a6 = (r**-12).sum(), (r**-6).sum()
    x = np.sqrt(a6 / (2 * a12))
    volume = sigma**3 / x / 4
    second = 2 * epsilon * (20 * a12 * x**4 - 6 * a6 * x**2) / volume
    third = -2 * epsilon * (120 * a12 * x**4 - 24 * a6 * x**2) / volume  # V² ∂³E/∂V³
    atoms.set_cell(atoms.cell * (4 * volume) ** (1 / 3) / 5.25, scale_atoms=True)
    found = equation_of_state(atoms, 0.02, 9)
    for each in found.fits.values():
        assert each.volume == pytest.approx(volume, rel=1e-4)
        assert each.bulk_modulus == pytest.approx(second * EV_A3_TO_GPA, rel=2e-3)
        assert each.derivative == pytest.approx(-1 - third / second, rel=0.03)  # B' = −1 − V³E'''/(V²E'')
    assert found.pressure_error < 0.02 * found.best.bulk_modulus * 0.02


def test_bulk_modulus_is_that_of_the_elastic_tensor():
    atoms = bulk("Cu", a=3.59)
    atoms.calc = EMT()
    found = equation_of_state(atoms, 0.05, 9)
    atoms.set_cell(atoms.cell * (found.best.volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    tensor = elastic_tensor(atoms, (0.005, 0.01))
    assert found.best.bulk_modulus == pytest.approx(moduli(tensor.tensor)["bulk_reuss_GPa"], rel=0.02)
    assert not found.shape_relaxed


def test_hexagonal_crystal_changes_its_shape():
    """By stresses of the relaxed shapes: B is Reuss's; with the shape kept it is Voigt's."""
    atoms = bulk("Cu", "hcp", a=2.54, c=4.1)
    atoms.calc = EMT()
    found = equation_of_state(atoms, 0.04, 7)
    assert found.shape_relaxed and set(found.space_groups) == {"P6_3/mmc (194)"}
    stresses = [each.get_stress() * EV_A3_TO_GPA for each in found.structures]
    assert max(abs(s[0] - s[2]) for s in stresses) < 0.01
    assert found.pressure_error < 0.05
    kept = equation_of_state(atoms, 0.04, 7, shape="keep")
    assert np.ptp([each.cell.lengths()[2] / each.cell.lengths()[0] for each in kept.structures]) < 1e-12
    assert (kept.energies >= found.energies - 1e-7).all() and (kept.energies > found.energies + 1e-5).any()


def test_fit_finds_the_parameters_of_its_own_form():
    volumes = np.linspace(18.0, 22.0, 9)
    energies = vinet(volumes, -1e5, 90.0 / EV_A3_TO_GPA, 4.6, 20.1)
    found = fit("vinet", volumes, energies)
    assert (found.energy, found.bulk_modulus) == pytest.approx((-1e5, 90.0), rel=1e-6)
    assert (found.derivative, found.volume) == pytest.approx((4.6, 20.1), rel=1e-4)
    other = fit("birch_murnaghan", volumes, energies)
    assert abs(other.residuals).max() > 10 * abs(found.residuals).max()
    assert other.bulk_modulus == pytest.approx(90.0, rel=0.01)


def test_another_phase_is_left_out():
    """Body-centered tetragonal copper becomes fcc once its shape may change."""
    atoms = bulk("Cu", "bct", a=2.6, c=3.6)
    atoms.calc = EMT()
    with pytest.raises(SimulationError, match="is another one at most volumes"):
        equation_of_state(atoms, 0.05, 7)
    groups = ["B", "A", "B", "A", "A", "A", "A", "B", "A"]
    assert _same_phase(groups, "A", 4).tolist() == [False] * 3 + [True] * 4 + [False] * 2


def test_refusals():
    atoms = bulk("Cu", a=3.9)  # far too large
    atoms.calc = EMT()
    with pytest.raises(SimulationError, match=r"on one side: the minimum is .*--relax"):
        equation_of_state(atoms, 0.03, 7)
    with pytest.raises(ConfigError, match=r"--points must be a whole number of at least 5, found 4"):
        equation_of_state(atoms, 0.03, 4)
    with pytest.raises(ConfigError, match=r"--span must be from 0\.005 to 0\.3 of the volume, .*found 0\.0"):
        equation_of_state(atoms, 0.0)
    with pytest.raises(DataError, match="slab"):
        equation_of_state(fcc111("Cu", (1, 1, 3), vacuum=8.0))
