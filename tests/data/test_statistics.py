"""Statistics against values worked out by hand."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from equipot.data import GraphDataset, Statistics, compute_statistics
from equipot.data.statistics import fit_atomic_energies, shortest_distances
from equipot.errors import DataError
from equipot.quantities import LABELS

H2 = [[0, 0, 0], [0, 0, 0.7]]
WATER = [[0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]
HYDROGEN, OXYGEN = -13.0, -430.0


def isolated(make_frame, symbol, energy, **fields):
    return make_frame(symbol, [[0, 0, 0]], energy=energy, config_type="IsolatedAtom", **fields)


@pytest.fixture
def frames(make_frame):
    """Two H2 and one water, 0.1 eV/atom below the isolated atoms."""
    return [
        make_frame("H2", H2, energy=2 * HYDROGEN - 0.2, forces=[[0, 0, 1.0], [0, 0, -1.0]]),
        make_frame("H2", H2, energy=2 * HYDROGEN - 0.2),
        make_frame("OH2", WATER, energy=2 * HYDROGEN + OXYGEN - 0.3, forces=np.full((3, 3), 2.0)),
    ]


@pytest.fixture
def dataset(frames):
    return GraphDataset(frames, ["H", "O"], 1.2)


def test_counts_neighbors_and_forces(dataset):
    statistics = compute_statistics(dataset)
    assert statistics.species == ["H", "O"]
    assert (statistics.num_frames, statistics.num_atoms) == (3, 7)
    assert statistics.atoms_per_species == [6, 1]
    assert tuple(statistics.num_labels.get(name, 0) for name in LABELS) == (3, 5, 0)
    # Edges below 1.2 Å: 2 per H2; 4 in water, whose H–H distance is √2.
    assert statistics.avg_num_neighbors == 8 / 7
    # 15 components: 2 ones, 4 zeros, 9 twos. Tolerance: rounding.
    assert statistics.force_rms == pytest.approx(np.sqrt(38 / 15), rel=1e-14)


def test_isolated_atoms(dataset, make_frame):
    atoms = [isolated(make_frame, "O", OXYGEN), isolated(make_frame, "H", HYDROGEN)]
    for mode in ("auto", "isolated_atoms"):
        statistics = compute_statistics(dataset, atoms, mode)
        assert statistics.atomic_energies == [HYDROGEN, OXYGEN]
        assert statistics.atomic_energies_source == "isolated atoms"
        # 0.1 eV/atom in every frame; tolerance: energies of 500 eV carry 1e-13 eV
        assert statistics.energy_residual_rms == pytest.approx(0.1, abs=1e-12)


def test_least_squares_finds_energies_that_fit_exactly(dataset):
    statistics = compute_statistics(dataset, mode="least_squares")
    # Two compositions, two unknowns: -13.1 for H from H2, the rest of water's energy for O.
    np.testing.assert_allclose(statistics.atomic_energies, [HYDROGEN - 0.1, OXYGEN - 0.1], rtol=1e-12)
    assert statistics.energy_residual_rms == pytest.approx(0, abs=1e-10)  # rounding of 500 eV, amplified
    assert statistics.atomic_energies_source == "least squares"


def test_auto_without_all_isolated_atoms_fits_and_says_so(dataset, make_frame, caplog):
    with caplog.at_level(logging.WARNING, logger="equipot"):
        statistics = compute_statistics(dataset, [isolated(make_frame, "H", HYDROGEN)], "auto")
    assert statistics.atomic_energies_source == "least squares"
    assert "give energies for H but not for O" in caplog.text


def test_isolated_atom_missing_for_one_species(dataset, make_frame):
    with pytest.raises(DataError, match="no isolated atom with an energy for O"):
        compute_statistics(dataset, [isolated(make_frame, "H", HYDROGEN)], "isolated_atoms")
    without_energy = [isolated(make_frame, "H", HYDROGEN), isolated(make_frame, "O", None)]
    with pytest.raises(DataError, match="no isolated atom with an energy for O"):
        compute_statistics(dataset, without_energy, "isolated_atoms")


def test_contradicting_isolated_atoms(dataset, make_frame):
    atoms = [
        isolated(make_frame, "H", -13.0, file="a.xyz", index=1),
        isolated(make_frame, "H", -12.0, file="a.xyz", index=2),
    ]
    with pytest.raises(DataError, match=r"isolated H atoms .* -13.0 eV .*frame 1.* -12.0 eV .*frame 2"):
        compute_statistics(dataset, atoms, "auto")


def test_given_energies(dataset):
    statistics = compute_statistics(dataset, mode={"O": -400.0, "H": -10.0, "C": 1.0})
    assert statistics.atomic_energies == [-10.0, -400.0]
    assert statistics.atomic_energies_source == "given"
    with pytest.raises(DataError, match=r"no energy for O; it has H"):
        compute_statistics(dataset, mode={"H": -10.0})


def test_no_reference_energies(dataset):
    statistics = compute_statistics(dataset, mode="none")
    assert statistics.atomic_energies == [0.0, 0.0]
    per_atom = np.array([-26.2 / 2, -26.2 / 2, -456.3 / 3])
    assert statistics.energy_residual_rms == pytest.approx(
        np.sqrt(np.mean(per_atom**2)), rel=1e-14
    )  # rounding


def test_unknown_mode(dataset):
    with pytest.raises(
        DataError, match="'lsq'; expected auto, isolated_atoms, least_squares, none or a mapping"
    ):
        compute_statistics(dataset, mode="lsq")


def test_single_composition_stays_at_the_mean_energy_per_atom():
    # Tolerance: rounding. Both species get the mean, because nothing tells them apart.
    counts = np.array([[2, 1], [2, 1], [4, 2]])
    energies = np.array([-30.0, -33.0, -66.0])
    mean = np.mean([-10.0, -11.0, -11.0])
    np.testing.assert_allclose(fit_atomic_energies(counts, energies), [mean, mean], rtol=1e-14)


def test_partly_determined_fit_is_the_smallest_change_from_the_mean():
    # Species 0 is determined; 1 and 2 occur only together, so they share what is left.
    counts = np.array([[2, 0, 0], [1, 1, 1]])
    energies = np.array([-4.0, -17.0])
    np.testing.assert_allclose(
        fit_atomic_energies(counts, energies), [-2, -7.5, -7.5], rtol=1e-13
    )  # rounding


def test_fit_minimises_the_residual_per_atom():
    random = np.random.default_rng(0)
    counts = random.integers(1, 6, size=(12, 3))
    energies = counts @ np.array([-1.0, -5.0, -9.0]) + random.normal(size=12)

    def residual(x):
        return np.sum(((energies - counts @ x) / counts.sum(axis=1)) ** 2)

    best = fit_atomic_energies(counts, energies)
    for step in 1e-3 * np.vstack([np.eye(3), -np.eye(3)]):
        assert residual(best + step) > residual(best)


def test_one_frame(make_frame):
    statistics = compute_statistics(GraphDataset([make_frame("OH2", WATER, energy=-456.0)], ["H", "O"], 1.2))
    np.testing.assert_allclose(statistics.atomic_energies, [-152.0, -152.0], rtol=1e-14)  # rounding
    assert statistics.force_rms is None


def test_energies_of_some_frames_are_enough(make_frame):
    frames = [make_frame("H2", H2, energy=-26.0), make_frame("H2", H2, forces=np.zeros((2, 3)))]
    statistics = compute_statistics(GraphDataset(frames, ["H"], 1.2))
    assert statistics.atomic_energies == [-13.0]
    assert statistics.num_labels["energy"] == 1
    assert statistics.force_rms == 0.0


def test_no_energies(make_frame):
    dataset = GraphDataset([make_frame("H2", H2, forces=np.ones((2, 3)))], ["H"], 1.2)
    assert compute_statistics(dataset).atomic_energies_source == "none"  # forces alone can be trained on
    with pytest.raises(DataError, match=r"No training frame has an energy.*data.labels.energy"):
        compute_statistics(dataset, mode="least_squares")
    statistics = compute_statistics(dataset, mode="none")
    assert statistics.energy_residual_rms is None
    assert statistics.force_rms == 1.0


def test_no_neighbors(make_frame):
    dataset = GraphDataset([make_frame("H2", [[0, 0, 0], [0, 0, 7.0]], energy=1.0)], ["H"], 5.0)
    with pytest.raises(DataError, match=r"neighbor within the cutoff of 5.0 Å.*data.units.length"):
        compute_statistics(dataset)


def test_species_without_atoms(make_frame):
    dataset = GraphDataset([make_frame("H2", H2, energy=1.0)], ["H", "N", "O"], 5.0)
    with pytest.raises(DataError, match="No training frame contains N, O"):
        compute_statistics(dataset)


def test_empty_training_set():
    with pytest.raises(DataError, match="no frames"):
        compute_statistics(GraphDataset([], ["H"], 5.0))


def test_statistics_survive_json(dataset):
    statistics = compute_statistics(dataset)
    assert Statistics.from_dict(json.loads(json.dumps(statistics.to_dict()))) == statistics


def test_statistics_of_another_version(dataset):
    values = compute_statistics(dataset).to_dict()
    del values["force_rms"]
    with pytest.raises(DataError, match=r"missing \['force_rms'\], unknown \['old'\]"):
        Statistics.from_dict({**values, "old": 1})


def test_statistics_with_labels_counted_by_former_names(dataset):
    """As in the checkpoints of formats 1 and 2."""
    values = compute_statistics(dataset).to_dict()
    del values["num_labels"]
    former = {**values, "num_energies": 3, "num_forces": 5, "num_stresses": 0}
    assert Statistics.from_dict(former) == compute_statistics(dataset)


# --- levels of theory


def with_level(frame, level, shift=0.0):
    values = dict(frame.values)
    if "energy" in values:
        values["energy"] += shift * frame.num_atoms
    return dataclasses.replace(frame, level=level, values=values)


def test_each_level_has_its_own_reference_energies(frames):
    both = [with_level(f, "low") for f in frames] + [with_level(f, "high", -5.0) for f in frames]
    statistics = compute_statistics(GraphDataset(both, ["H", "O"], 1.2, ["low", "high"]))
    low, high = (statistics.levels[name].atomic_energies for name in ("low", "high"))
    np.testing.assert_allclose(low, [HYDROGEN - 0.1, OXYGEN - 0.1])
    np.testing.assert_allclose(high, [HYDROGEN - 5.1, OXYGEN - 5.1])
    assert statistics.levels["high"].energy_residual_rms < 1e-12
    assert statistics.atomic_energies == low
    assert Statistics.from_dict(json.loads(json.dumps(statistics.to_dict()))) == statistics


def test_isolated_atoms_count_for_their_own_level(frames, make_frame):
    both = [with_level(f, "low") for f in frames] + [with_level(f, "high", -5.0) for f in frames]
    atoms = [with_level(isolated(make_frame, s, e), "low") for s, e in (("H", HYDROGEN), ("O", OXYGEN))]
    statistics = compute_statistics(GraphDataset(both, ["H", "O"], 1.2, ["low", "high"]), atoms)
    sources = {name: level.atomic_energies_source for name, level in statistics.levels.items()}
    assert sources == {"low": "isolated atoms", "high": "least squares"}
    with pytest.raises(DataError, match=r"Level high: .*no isolated atom"):
        compute_statistics(GraphDataset(both, ["H", "O"], 1.2, ["low", "high"]), atoms, "isolated_atoms")


def test_a_level_without_frames_or_elements(frames, caplog):
    low = [with_level(f, "low") for f in frames]
    with pytest.raises(DataError, match="No training frame is of the level high"):
        compute_statistics(GraphDataset(low, ["H", "O"], 1.2, ["low", "high"]))
    hydrogen = [with_level(f, "high") for f in frames[:2]]
    compute_statistics(GraphDataset(low + hydrogen, ["H", "O"], 1.2, ["low", "high"]))
    assert "No training frame of the level high contains O" in caplog.text


def test_one_named_level_is_as_none(frames, dataset):
    named = compute_statistics(GraphDataset([with_level(f, "low") for f in frames], ["H", "O"], 1.2, ["low"]))
    assert named == compute_statistics(dataset)


def test_shortest_distances(frames, make_frame):
    """Also across cell boundaries; whatever the order of the species; no pair beyond the cutoff."""
    assert shortest_distances(GraphDataset(frames, ["O", "H"], 1.2)) == {"H-H": 0.7, "H-O": 1.0}
    far = make_frame("OC", [[0, 0, 0], [0, 0, 3.9]], cell=4.9 * np.eye(3), pbc=True)
    found = shortest_distances(GraphDataset([*frames, far], ["H", "C", "O"], 1.5))
    assert found == pytest.approx({"H-H": 0.7, "H-O": 1.0, "C-O": 1.0}, rel=1e-12)
