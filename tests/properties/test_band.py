"""Bands on a surface of EMT, against the saddle that symmetry gives."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc100, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixCartesian

from equipot.errors import ConfigError, DataError, SimulationError
from equipot.properties.band import matched, minimum_energy_path
from equipot.properties.neb import neb
from equipot.properties.normal_modes import vibrations
from equipot.properties.settings import Common, NebSettings
from equipot.properties.strained import relax_ions


def hollow(shift: float = 0.0) -> Atoms:
    """A gold atom in a hollow of Al(100), ``shift`` times the way to the next one."""
    slab = fcc100("Al", (2, 2, 2), vacuum=5.0)
    add_adsorbate(slab, "Au", 1.7, "hollow")
    slab.set_constraint(FixAtoms(range(4)))
    slab.positions[-1, 0] += shift * slab.cell[0, 0] / 2
    slab.calc = EMT()
    return slab


@pytest.fixture(scope="module")
def ends():
    first, last = hollow(), hollow(1.0)
    for atoms in (first, last):
        relax_ions(atoms, 0.01)
    return first, last


@pytest.fixture(scope="module")
def path(ends):
    return minimum_energy_path(*ends, 3, fmax=0.02)


def test_barrier_is_that_of_the_bridge(ends, path):
    """By symmetry the saddle is over the bridge: relaxed there, with x fixed, without any band."""
    bridge = hollow(0.5)
    bridge.set_constraint([FixAtoms(range(4)), FixCartesian(8, (True, False, False))])
    relax_ions(bridge, 0.01)
    barrier = bridge.get_potential_energy() - ends[0].get_potential_energy()
    forward, backward = path.barriers
    assert forward == pytest.approx(barrier, abs=2e-3) and forward == pytest.approx(backward, abs=1e-4)
    assert path.top == 2 and path.climbed and path.has_barrier and path.minima == []
    assert path.largest_force < 0.02 and path.force_at_top < 0.04
    assert path.fit.fit_energies.max() == pytest.approx(forward, abs=5e-3)


def test_saddle_has_one_imaginary_mode(ends, path):
    saddle = path.images[path.top].copy()
    saddle.calc = EMT()
    found = vibrations(saddle)
    assert found.imaginary.sum() == 1
    assert abs(found.modes[0, 8, 0]) > 3 * abs(found.modes[0, 8, 1:]).max()  # along the path


def test_path_goes_the_short_way(ends, path):
    """Also if the last structure is written with its atom in another cell."""
    wrapped = ends[1].copy()
    wrapped.positions[-1, 0] += wrapped.cell[0, 0]
    straight = matched(ends[0], wrapped)
    assert np.linalg.norm(straight.positions - ends[0].positions, axis=1).max() < 3.0
    found = minimum_energy_path(ends[0], wrapped, 1, fmax=0.05, interpolation="linear")
    assert found.barriers == pytest.approx(path.barriers, abs=0.01)


def test_band_goes_on(ends, path):
    """What is kept on the way is enough to go on with; a relaxed band is done at once."""
    kept = []
    with pytest.raises(SimulationError, match=r"did not relax to 0.02 eV/Å in 8 steps.*--resume"):
        minimum_energy_path(*ends, 3, fmax=0.02, steps=8, keep=lambda images: kept.append([*images]))
    found = minimum_energy_path(*ends, 3, fmax=0.02, start=kept[-1])
    assert found.barriers == pytest.approx(path.barriers, abs=2e-3)
    assert minimum_energy_path(*ends, 3, fmax=0.02, start=list(path.images)).steps <= 2
    with pytest.raises(DataError, match="has 3 images of Al8Au; expected 5"):
        minimum_energy_path(*ends, 3, start=kept[-1][:3])
    with pytest.raises(DataError, match="another last structure"):
        minimum_energy_path(*ends, 3, start=kept[-1][:4] + kept[-1][:1])


def test_going_on_and_beginning_again_are_two_things(ends, tmp_path):
    common = Common(output=tmp_path, overwrite=True)
    with pytest.raises(ConfigError, match=r"--resume goes on .*: give one of them"):
        neb(*ends, EMT(), common, NebSettings(resume=True))


def test_ends_that_do_not_fit(ends):
    first, last = ends
    with pytest.raises(DataError, match=r"the last Al8: expected the same atoms"):
        matched(first, last[:8])
    with pytest.raises(DataError, match="number 0 is Al in the first structure and Au in the last"):
        matched(first, last[::-1])
    stretched = last.copy()
    stretched.set_cell(stretched.cell * 1.01)
    with pytest.raises(DataError, match="cells of the two structures differ"):
        matched(first, stretched)
    with pytest.raises(DataError, match="are the same: no atom moves"):
        matched(first, first)
    swapped = last[[0, 1, 2, 3, 5, 4, 6, 7, 8]]
    with pytest.raises(DataError, match=r"exchanged .*4 → 5, 5 → 4.*--keep-order"):
        matched(first, swapped)
    assert len(matched(first, swapped, keep_order=True)) == 9
    moved = last.copy()
    moved.positions[0, 2] -= 0.2
    with pytest.raises(DataError, match=r"Atom 0 is fixed, and 0\.2 Å away"):
        matched(first, moved)
    with pytest.raises(ConfigError, match="--images must be a whole number of at least 1"):
        minimum_energy_path(first, last, 0)
    with pytest.raises(ConfigError, match="must be idpp or linear"):
        minimum_energy_path(first, last, interpolation="quadratic")


def test_molecule_may_be_anywhere():
    """The last structure is turned and moved onto the first before atoms are compared."""
    first, last = molecule("NH3"), molecule("NH3")
    last.rotate(70, (1, 2, 3))
    last.translate((5, 0, 1))
    with pytest.raises(DataError, match="are the same"):
        matched(first, last)
