"""Tensors of any rank: symmetries of their indices, their irreps, their labels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule
from e3nn.o3 import Irreps, ReducedTensorProducts
from output_models import make_config, rotation

from equipot.cartesian import irreps_basis, permutations, symmetric, symmetrised
from equipot.data.dataset import GraphDataset
from equipot.data.frames import frame_from_atoms
from equipot.errors import ConfigError, DataError
from equipot.models.outputs import OutputSpec, basis_change
from equipot.quantities import QUANTITIES
from equipot.training.outputs import output_statistics

SYMMETRIES = ["ij", "ij=ji", "ij=-ji", "ijk", symmetric(3), "ijk=ikj", symmetric(4), "ijkl=jikl=klij"]
NEQUIP = {"type": "nequip", "l_max": 4}


def space(symmetry: str) -> np.ndarray:
    """Projector (3^rank, 3^rank) on what the basis spans."""
    rows = np.concatenate([ways.reshape(-1, ways.shape[-1]) for ways in irreps_basis(symmetry).values()])
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-12)
    return rows.T @ rows


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_irreps_are_those_of_e3nn(symmetry):
    letters = dict.fromkeys(sorted(set(symmetry) - set("=-")), "1o")
    known = ReducedTensorProducts(symmetry, **letters)
    basis = irreps_basis(symmetry)
    parity = "eo"[len(letters) % 2]
    found = "+".join(f"{len(ways)}x{degree}{parity}" for degree, ways in basis.items())
    assert Irreps(found) == known.irreps_out
    theirs = known.change_of_basis.double().numpy().reshape(known.irreps_out.dim, -1)
    np.testing.assert_allclose(space(symmetry), theirs.T @ theirs, atol=1e-6)  # theirs is float32


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "config", [{"indices": s} for s in SYMMETRIES] + [{"tensor": "traceless", "rank": 4}]
)
def test_irreps_turn_as_the_tensor_does(config, sign):
    """The change of basis takes each irrep's own rotation to R ⊗ R ⊗ ... of the Cartesian components."""
    matrix = sign * rotation(5)
    output = make_config(NEQUIP, {"t": {"per": "atom", **config}}).outputs["t"]
    change = basis_change(OutputSpec(**output.spec("t")))
    whole = np.eye(1)
    for _ in range(len(output.shape)):
        whole = np.kron(whole, matrix)
    blocks = []
    for mul, ir in Irreps(output.representation):  # component-major
        blocks.append(np.kron(ir.D_from_matrix(torch.tensor(matrix)).numpy(), np.eye(mul)))
    turned = np.concatenate([d @ part for d, part in zip(blocks, _split(change, blocks), strict=True)])
    np.testing.assert_allclose(turned, change @ whole, atol=1e-6)  # e3nn's angles are float32


def _split(change, blocks):
    return np.split(change, np.cumsum([len(block) for block in blocks])[:-1])


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_symmetric_tensors_have_the_irreps_of_polynomials(rank):
    """v ⊗ v ⊗ ... is a polynomial: harmonics of l = n, n − 2, ...; that of l = n is traceless."""
    basis = irreps_basis(symmetric(rank))
    assert {degree: len(ways) for degree, ways in basis.items()} == dict.fromkeys(
        range(rank % 2, rank + 1, 2), 1
    )
    assert len(permutations(symmetric(rank))) == math.factorial(rank)
    top = basis[rank][0].reshape(-1, *[3] * rank)
    np.testing.assert_allclose(np.trace(top, axis1=1, axis2=2), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("symmetry", "message"),
    [
        ("ij=-ij", "only 0 has this symmetry"),
        ("ij=ji=-ji", "only 0 has this symmetry"),
        ("ijk=-jik=ikj", "only 0 has this symmetry"),
        ("ij=jk", "expected 2 to 4 different letters"),
        ("i", "expected 2 to 4 different letters"),
        ("iij", "expected 2 to 4 different letters"),
    ],
)
def test_symmetries_that_are_none(symmetry, message):
    with pytest.raises(ConfigError, match=message):
        make_config(NEQUIP, {"t": {"per": "atom", "indices": symmetry}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensor": "vector", "rank": 3}, "`rank` goes with `tensor: symmetric` or `traceless`"),
        ({"tensor": "symmetric", "indices": "ij=ji"}, "give either `tensor` or `irreps`, or `indices`"),
        ({"tensor": "symmetric", "rank": 5}, "outputs.t.rank: "),
    ],
)
def test_settings_that_contradict(change, message):
    with pytest.raises(ConfigError, match=message):
        make_config(NEQUIP, {"t": {"per": "structure", **change}})


def test_labels_are_flat_or_not():
    make_config(NEQUIP, {"beta": {"per": "structure", "tensor": "symmetric", "rank": 3}})
    quantity = QUANTITIES["beta"]
    tensor = symmetrised(np.random.default_rng(1).normal(size=(3, 3, 3)), symmetric(3))
    noisy = tensor.copy()
    noisy[0, 1, 2] += 0.01 * np.abs(tensor).max()
    for value in (tensor, tensor.ravel()):
        np.testing.assert_array_equal(quantity.read(value, 5), quantity.read(tensor, 5))
        np.testing.assert_allclose(quantity.read(value, 5), tensor, atol=1e-15)
    np.testing.assert_allclose(quantity.read(noisy, 5), symmetrised(noisy, symmetric(3)), atol=1e-15)
    assert quantity.read(np.zeros(10), 5) is None and quantity.read(np.zeros((9, 3)), 5) is not None
    noisy[0, 1, 2] += 0.1 * np.abs(tensor).max()
    with pytest.raises(DataError, match="not symmetric"):
        quantity.read(noisy, 5)


def test_labels_of_atoms():
    make_config(NEQUIP, {"raman": {"per": "atom", "indices": "ijk=jik"}})
    quantity = QUANTITIES["raman"]
    tensors = symmetrised(np.random.default_rng(1).normal(size=(4, 3, 3, 3)), "ijk=jik")
    np.testing.assert_allclose(quantity.read(tensors.reshape(4, 27), 4), tensors, atol=1e-15)
    np.testing.assert_allclose(tensors, tensors.swapaxes(1, 2), atol=1e-15)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_trace_that_no_prediction_has(rank):
    config = make_config(NEQUIP, {"t": {"per": "structure", "tensor": "traceless", "rank": rank}})
    tensor = symmetrised(np.random.default_rng(1).normal(size=[3] * rank), symmetric(rank))
    frame = replace(frame_from_atoms(molecule("H2O")), values={"t": tensor})
    dataset = GraphDataset([frame], ["H", "O"], 4.0)
    with pytest.raises(DataError, match=r"outputs\.t: a label has a part that is none of its irreps 1x"):
        output_statistics(dataset, config.outputs)
