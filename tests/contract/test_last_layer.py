"""The engine's last-layer features are what the modules' last linear maps are given, for every model."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from equipot.data import graph_from_atoms
from equipot.deploy.rigidity import engine_of
from equipot.engine.library import load_library
from equipot.graph import edge_vectors


def last_map(potential):
    """The module of the last linear map, and its weights (K,)."""
    readout = potential.network.readout
    if hasattr(readout, "layers"):
        return readout.layers[-1], readout.layers[-1].packed()[0].detach().numpy()[:, 0]
    return readout, readout.packed().detach().numpy()[0]


def with_factor(potential, factor):
    program = potential.program()
    program.add_uncertainty(torch.as_tensor(np.broadcast_to(factor, (program.feature_width,) * 2).copy()))
    return engine_of(program, Path("model.pt"))


@pytest.fixture
def one_level(potential):
    if len(getattr(potential, "potential", potential).levels) > 1:
        pytest.skip("a deployed model has one level")
    return potential


@pytest.fixture
def engine(one_level):
    """Its R is lower triangular and otherwise arbitrary."""
    width = one_level.program().feature_width
    return with_factor(one_level, np.tril(np.random.default_rng(0).normal(size=(width, width))))


def inputs(graph):
    return edge_vectors(graph).numpy(), graph.edge_index.numpy(), graph.atom_types.numpy()


def test_features_are_what_the_last_map_is_given(one_level, engine, graphs):
    """A hook on the eager module sees its input; pairs of an Allegro are summed at their center."""
    given = []
    module, weights = last_map(one_level)
    hook = module.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0].detach().numpy()))
    scale, shift = (p.detach().numpy() for p in (one_level.scale_shift.scale, one_level.scale_shift.shift))
    try:
        for graph in graphs.values():
            vec, index, types = inputs(graph)
            given.clear()
            repulsion = 0.0
            with torch.no_grad():
                arrays = edge_vectors(graph), graph.edge_index, graph.atom_types
                one_level.network(*arrays)
                if one_level.zbl is not None:
                    repulsion = one_level.zbl(*arrays).numpy()
            right = given[0]
            if one_level.num_exchanges == 0 and hasattr(one_level.network, "norm"):
                summed = np.zeros((len(types), right.shape[1]))
                np.add.at(summed, index[0], right)
                right = summed * one_level.network.norm
            found = engine.evaluate_edges(vec, index, types)
            np.testing.assert_allclose(found.features, right * scale[types, None], rtol=1e-12, atol=1e-12)
            energies = found.features @ weights + shift[types] + repulsion
            np.testing.assert_allclose(energies, found.atom_energies, rtol=1e-12)
            owned = np.arange(len(types)) % 2 == 0
            masked = engine.evaluate_edges(vec, index, types, owned).features
            np.testing.assert_array_equal(masked, np.where(owned[:, None], found.features, 0))
    finally:
        hook.remove()


def test_uncertainty_is_the_length_of_r_times_the_features(one_level, engine):
    width = engine.feature_width
    factor = np.tril(np.random.default_rng(0).normal(size=(width, width)))
    features = np.random.default_rng(1).normal(size=(100, width))
    right = np.sqrt(np.einsum("nk,kl,nl->n", features, factor.T @ factor, features))
    np.testing.assert_allclose(engine.uncertainty(features), right, rtol=1e-12)
    assert engine.uncertainty(np.zeros((0, width))).shape == (0,)


def test_features_do_not_know_orientation_order_or_period(one_level, engine, structures):
    """They turn with nothing, are renumbered with the atoms, and repeat with a supercell."""
    species = one_level.species
    atoms = structures["crystal with self-images"]

    def features(atoms):
        return engine.evaluate_edges(*inputs(graph_from_atoms(atoms, species, one_level.cutoff))).features

    right = features(atoms)
    rotation = Rotation.from_rotvec([0.3, -1.2, 0.8]).as_matrix()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.T, scale_atoms=True)
    np.testing.assert_allclose(features(turned), right, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(features(atoms[::-1]), right[::-1], rtol=1e-10, atol=1e-10)
    repeated = features(atoms * (2, 1, 1))
    np.testing.assert_allclose(repeated, np.concatenate([right, right]), rtol=1e-10, atol=1e-10)
    sigma = [engine.uncertainty(rows.sum(axis=0, keepdims=True))[0] for rows in (right, repeated)]
    assert sigma[1] == pytest.approx(2 * sigma[0], rel=1e-10)  # the same atoms err in the same direction


def test_single_precision(one_level, graphs):
    dtype = one_level.dtype
    try:
        for wanted in (torch.float32, torch.float64):
            one_level.network.to(wanted)
            engine = with_factor(one_level, 1.0)
            found = [engine.evaluate_edges(*inputs(graph)).features for graph in graphs.values()]
            if wanted == torch.float32:
                single = found
        for a, b in zip(single, found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    finally:
        one_level.network.to(dtype)


def test_same_bits_with_any_number_of_threads_and_nothing_else_changes(one_level, engine):
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(*[np.arange(7)] * 3), axis=-1).reshape(-1, 3) * 1.6
    arguments = (
        grid + rng.uniform(-0.2, 0.2, grid.shape),
        np.eye(3) * 11.2,
        [True, True, True],
        rng.integers(0, 3, len(grid)),
    )
    results = []
    try:
        for threads in (1, 3):
            load_library().equipot_set_threads(threads)
            found = engine.evaluate(*arguments)
            results.append((found, engine.uncertainty(found.features)))
    finally:
        load_library().equipot_set_threads(0)
    (one, sigma), (three, other) = results
    np.testing.assert_array_equal(one.features, three.features)
    np.testing.assert_array_equal(sigma, other)
    plain = engine_of(one_level.program(), Path("model.pt"))
    assert plain.feature_width == 0
    without = plain.evaluate(*arguments)
    for field in dataclasses.fields(without)[:3]:
        np.testing.assert_array_equal(getattr(without, field.name), getattr(one, field.name))
