"""The engine gives what the modules give, for every model and every boundary."""

import zipfile

import numpy as np
import pytest
import torch

from equipot.engine.library import Engine, load_library
from equipot.graph import edge_vectors

# Sums of the same numbers in another order: a few hundred operations of rounding.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def engine_of(potential, folder) -> Engine:
    """What `deploy` writes for the engine, alone in a file."""
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("model/extra/format_version", "1")
        for name, content in potential.program().files().items():
            archive.writestr(f"model/{name}", content)
    return Engine(folder / "model.pt")


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
    network_dtype = potential.dtype
    potential.network.to(dtype)
    try:
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
    finally:
        potential.network.to(network_dtype)


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
            results.append(engine.evaluate(*arguments))
    finally:
        load_library().equipot_set_threads(0)
    for other in results[1:]:
        for name, value in vars(results[0]).items():
            np.testing.assert_array_equal(getattr(other, name), value)
