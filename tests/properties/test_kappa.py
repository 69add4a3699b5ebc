"""Thermal conductivity of a crystal with nearest neighbors only."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones

from equipot.errors import ConfigError, SimulationError
from equipot.properties.kappa import kappa
from equipot.properties.settings import Common, KappaSettings

SIGMA = 3.4
NEAREST = 2 ** (1 / 6) * SIGMA  # Å
HOT = "400,800"  # K, far above the 80 K of argon's highest frequency


def springs():
    return LennardJones(sigma=SIGMA, epsilon=0.0103, rc=1.2 * NEAREST, smooth=False)


def conductivity(**changed):
    settings = KappaSettings(**({"supercell": (3, 3, 3), "temperatures": HOT, "mesh": 20.0} | changed))
    return kappa(bulk("Ar", "fcc", np.sqrt(2) * NEAREST), springs(), settings=settings)


@pytest.fixture(scope="module")
def argon():
    return conductivity(isotopes=False)


def test_it_is_cubic_and_falls_as_one_over_temperature(argon):
    """Classically every rate of scattering is proportional to the temperature."""
    found = argon.numbers["kappa_W_per_mK"]
    assert np.allclose(found[:, :3], found[:, :1], rtol=1e-6) and np.allclose(found[:, 3:], 0, atol=1e-6)
    assert np.isclose(found[0, 0] / found[1, 0], 2.0, rtol=0.02)


def test_pairs_beyond_the_neighbors_do_not_matter(argon):
    """Only neighbors are coupled, so other pairs need not be displaced."""
    near = conductivity(isotopes=False, pair_cutoff=1.1 * NEAREST)
    assert near.numbers["displaced_supercells"] < argon.numbers["displaced_supercells"]
    expected = argon.numbers["kappa_W_per_mK"]
    assert np.allclose(near.numbers["kappa_W_per_mK"], expected, rtol=0.02, atol=1e-6)


def test_a_cutoff_without_pairs_is_refused():
    with pytest.raises(ConfigError, match=r"nearest atoms are 3\.82 Å apart, so 2 Å"):
        conductivity(pair_cutoff=2.0)


def test_no_conductivity_of_an_unstable_crystal():
    settings = KappaSettings(supercell=(4, 4, 4))
    with pytest.raises(SimulationError, match="imaginary modes"):
        kappa(bulk("Ar", "sc", 0.98 * NEAREST), springs(), Common(max_stress=np.inf), settings)


def test_coarse_meshes_are_said():
    small = {"isotopes": False, "supercell": (2, 2, 2), "pair_cutoff": 1.1 * NEAREST}
    for mesh, said in ((4.0, "Both meshes are the same"), (8.0, "changes by more than 20%")):
        found = conductivity(**small, mesh=mesh)
        assert any(said in text for text in found.numbers["warnings"])
        assert found.paragraphs[-1] == found.numbers["warnings"][-1]


def test_missing_charges_are_said_before_anything_is_computed():
    calculator = springs()
    calculator.calculate = None
    settings = KappaSettings(born="model")
    with pytest.raises(ConfigError, match="this one has no born_charges"):
        kappa(bulk("Ar", "fcc", 5.0), calculator, Common(relax=True), settings)
