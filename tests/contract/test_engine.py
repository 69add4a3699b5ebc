"""The engine gives what the modules give, for every model and every boundary."""

import copy
import zipfile

import ase
import numpy as np
import pytest
import torch
from ase.build import make_supercell

from equipot.config import NequIPConfig
from equipot.data import graph_from_atoms
from equipot.engine.library import Engine, load_library
from equipot.graph import edge_vectors
from equipot.models.build import build_potential
from equipot.models.predict import predict

SPECIES, CUTOFF = ["H", "C", "O"], 3.5

# Sums of the same numbers in another order: a few hundred operations of rounding.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def engine_of(potential, folder) -> Engine:
    """What `deploy` writes for the engine, alone in a file."""
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("model/extra/format_version", "1")
        for name, content in potential.program().files().items():
            archive.writestr(f"model/{name}", content)
    return Engine(folder / "model.pt")


def in_precision(potential, dtype):
    """A copy: rounded weights would not become exact again."""
    copied = copy.deepcopy(potential)
    copied.network.to(dtype)
    return copied


def eager(potential, edge_vec, edge_index, types, owned):
    arrays = (torch.as_tensor(np.ascontiguousarray(a)) for a in (edge_vec, edge_index, types, owned))
    return [rows.detach().numpy() for rows in potential(*arrays)]


def assert_same(found, right, tolerance):
    for a, b in zip((found.atom_energies, found.forces, found.atom_virials), right, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, np.abs(right[1]).max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_engine(potential, graphs, dtype, tmp_path):
    if len(getattr(potential, "potential", potential).levels) > 1:
        pytest.skip("a deployed model has one level")
    potential = in_precision(potential, dtype)
    engine = engine_of(potential, tmp_path)
    for graph in graphs.values():
        vec, index, types = (
            edge_vectors(graph).numpy(),
            graph.edge_index.numpy(),
            graph.atom_types.numpy(),
        )
        owned = np.ones(len(types), dtype=bool)
        owned[-1] = False
        for mask in (np.ones_like(owned), owned):
            right = eager(potential, vec, index, types, mask)
            assert_same(engine.evaluate_edges(vec, index, types, mask), right, TOLERANCE[dtype])
        # Edges in another order.
        order = np.random.default_rng(0).permutation(len(vec))
        found = engine.evaluate_edges(vec[order], index[:, order], types, owned)
        assert_same(found, right, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_channels_that_fill_no_whole_number_of_vectors(graphs, dtype, tmp_path):
    """40 = 2 · 16 + 8: maps of two vectors of columns, of one, and of single ones."""
    torch.manual_seed(3)
    config = NequIPConfig(type="nequip", cutoff=CUTOFF, layers=3, channels=(40, 24), l_max=1, parity=False)
    potential = in_precision(build_potential(config, SPECIES, 6.0, [0.0] * 3, 1.0).eval(), dtype)
    graph = graphs["molecule"]
    arrays = edge_vectors(graph).numpy(), graph.edge_index.numpy(), graph.atom_types.numpy()
    right = eager(potential, *arrays, np.ones(len(arrays[2]), dtype=bool))
    assert_same(engine_of(potential, tmp_path).evaluate_edges(*arrays), right, TOLERANCE[dtype])


def test_engine_gives_the_same_bits_with_any_number_of_threads(potential, tmp_path):
    if len(getattr(potential, "potential", potential).levels) > 1:
        pytest.skip("a deployed model has one level")
    engine = engine_of(potential, tmp_path)
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(*[np.arange(7)] * 3), axis=-1).reshape(-1, 3) * 1.6
    positions = grid + rng.uniform(-0.2, 0.2, grid.shape)
    arguments = positions, np.eye(3) * 11.2, [True, True, True], rng.integers(0, 3, len(grid))
    results = []
    try:
        for threads in (1, 2, 3):
            load_library().equipot_set_threads(threads)
            results.append(engine.evaluate(*arguments, heat=True))
    finally:
        load_library().equipot_set_threads(0)
    for other in results[1:]:
        for name, value in vars(results[0]).items():
            np.testing.assert_array_equal(getattr(other, name), value)


@pytest.fixture(scope="module")
def engine(potential, tmp_path_factory):
    if len(getattr(potential, "potential", potential).levels) > 1:
        pytest.skip("a deployed model has one level")
    return engine_of(potential, tmp_path_factory.mktemp("engine"))


def evaluate(engine, atoms: ase.Atoms):
    types = np.array([SPECIES.index(symbol) for symbol in atoms.symbols])
    return engine.evaluate(atoms.positions, atoms.cell.array, atoms.pbc, types, heat=True)


@pytest.fixture(scope="module")
def molecule(structures):
    """As dense as the crystals, so that atoms have many neighbors and some repel as nuclei do."""
    atoms = structures["molecule"].copy()
    atoms.positions *= 0.7
    return atoms


def test_heat_virials_carry_the_heat(potential, engine, molecule):
    """Σ V_i v_i = d/dt Σ r_i E_i − Σ v_i E_i = Σ r_i (F_i v_i + dU_i/dt) of a free cluster: a heat flux.

    Forces and energies by torch, dU_i/dt by central differences along the velocities as in
    test_contract.py, where the errors are estimated.
    """
    velocities, step = np.random.default_rng(5).standard_normal(molecule.positions.shape), 1e-5
    moved = [molecule.copy() for _ in range(3)]
    for atoms, time in zip(moved, (0.0, step, -step), strict=True):
        atoms.positions += time * velocities
    there, later, earlier = (predict(potential, graph_from_atoms(a, SPECIES, CUTOFF)) for a in moved)
    power = (there.forces.numpy() * velocities).sum(axis=1)
    power += (later.atom_energies - earlier.atom_energies).numpy() / (2 * step)
    flux = power @ molecule.positions
    found = evaluate(engine, molecule)
    np.testing.assert_allclose(
        np.einsum("nab,nb->a", found.atom_heat_virials, velocities), flux, rtol=1e-7, atol=1e-6
    )
    # With messages virials counted at the neighbor are something else.
    off = np.linalg.norm(np.einsum("nab,nb->a", found.atom_virials, velocities) - flux) / np.linalg.norm(flux)
    assert off > 0.05 if potential.num_exchanges > 0 else off < 1e-6


@pytest.mark.parametrize("name", ["crystal with self-images", "slab", "chain"])
def test_heat_virials_are_those_of_an_unfolded_cell(engine, structures, name):
    atoms = structures[name]
    repeats = [2 if periodic else 1 for periodic in atoms.pbc]
    unfolded = evaluate(engine, make_supercell(atoms, np.diag(repeats))).atom_heat_virials
    found = evaluate(engine, atoms).atom_heat_virials
    np.testing.assert_allclose(unfolded, np.tile(found, (np.prod(repeats), 1, 1)), rtol=1e-10, atol=1e-11)
    assert np.abs(found).max() > 1e-3


def test_heat_virials_of_ghosts_belong_to_their_owners(engine, structures):
    """Images as atoms that are not owned, as far as messages of three layers come; no exchange."""
    atoms, images = structures["chain"], [0, *range(-5, 0), *range(1, 6)]
    positions = np.concatenate([atoms.positions + n * atoms.cell.array[0] for n in images])
    graph = graph_from_atoms(ase.Atoms(list(atoms.symbols) * len(images), positions), SPECIES, CUTOFF)
    edges = edge_vectors(graph).numpy(), graph.edge_index.numpy(), graph.atom_types.numpy()
    found = engine.evaluate_edges(*edges, np.arange(len(positions)) < len(atoms), heat=True)
    at_owners = found.atom_heat_virials.reshape(len(images), len(atoms), 3, 3).sum(axis=0)
    np.testing.assert_allclose(at_owners, evaluate(engine, atoms).atom_heat_virials, rtol=1e-10, atol=1e-11)


def test_heat_virials_add_up_and_turn_with_the_atoms(engine, structures, molecule):
    for atoms in (*structures.values(), molecule):
        found = evaluate(engine, atoms)
        np.testing.assert_allclose(
            found.atom_heat_virials.sum(axis=0), found.atom_virials.sum(axis=0), rtol=1e-10, atol=1e-11
        )
        turn = np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))[0]  # or a mirror
        turned = ase.Atoms(atoms.symbols, atoms.positions @ turn.T, cell=atoms.cell @ turn.T, pbc=atoms.pbc)
        np.testing.assert_allclose(
            evaluate(engine, turned).atom_heat_virials,
            turn @ found.atom_heat_virials @ turn.T,
            rtol=1e-10,
            atol=1e-10,
        )


def test_heat_virials_in_single_precision(potential, engine, structures, tmp_path):
    """Those of float64 to float32's rounding; and what is not asked for is not there."""
    single = engine_of(in_precision(potential, torch.float32), tmp_path)
    for atoms in structures.values():
        right = evaluate(engine, atoms).atom_heat_virials
        found = evaluate(single, atoms).atom_heat_virials
        np.testing.assert_allclose(found, right, rtol=0, atol=2e-5 * max(1.0, np.abs(right).max()))
    assert single.evaluate(np.zeros((1, 3)), np.eye(3), (0, 0, 0), [0]).atom_heat_virials is None
