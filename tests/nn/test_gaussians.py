"""Gaussian functions on atoms against integrals by quadrature and by hand, and against PySCF where it is."""

import math

import numpy as np
import pytest
import torch
from e3nn import o3

from equipot.nn.gaussians import GaussianBasis

BASIS = {
    "H": [{"l": 0, "exponents": [1.3, 0.4], "coefficients": [[0.6, 0.7], [0.9, -0.8]]}],
    "O": [
        {"l": 0, "exponents": [2.0, 0.9, 0.5], "coefficients": None},
        {"l": 2, "exponents": [0.9], "coefficients": None},
        {"l": 1, "exponents": [1.1, 0.4], "coefficients": [[0.5, 0.5]]},
        {"l": 3, "exponents": [0.7], "coefficients": None},
    ],
}
IRREPS, SPECIES = "3x0e+1x1o+1x2e+1x3o", ["H", "O"]
WIDTH, COUNTS = 18, {"H": 2, "O": 18}
POSITIONS = torch.tensor([[0.0, 0.0, 0.0], [1.1, -0.4, 0.7], [-0.3, 1.6, 0.2]], dtype=torch.float64)
TYPES = torch.tensor([1, 0, 1])


@pytest.fixture
def basis() -> GaussianBasis:
    return GaussianBasis(BASIS, IRREPS, SPECIES)


def random_rows(seed: int = 0) -> torch.Tensor:
    """Coefficients of what each atom has; zero where it has nothing."""
    rows = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for row, kind in zip(rows, TYPES, strict=True):
        row[COUNTS[SPECIES[kind]] :] = 0
    return rows


def box(step: float = 0.25, reach: float = 7.0) -> tuple[torch.Tensor, float]:
    """Points and volume of each: sums of smooth functions that vanish outside are then exact."""
    axis = torch.arange(-reach, reach + 0.5 * step, step, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis, axis), step**3


def overlap(basis, left, right, structure=(0, 0, 0)) -> float:
    return float((left * basis.times_overlap(right, POSITIONS, TYPES, torch.tensor(structure))).sum())


def test_overlaps_are_integrals_of_products(basis):
    points, volume = box()
    left, right = random_rows(1), random_rows(2)
    products = basis.density(points, left, POSITIONS, TYPES) * basis.density(points, right, POSITIONS, TYPES)
    assert overlap(basis, left, right) == pytest.approx(float(products.sum() * volume), rel=1e-6)


def test_every_function_has_norm_one(basis):
    for column in range(WIDTH):
        row = torch.zeros(3, WIDTH, dtype=torch.float64)
        row[0, column] = 1.0
        assert overlap(basis, row, row) == pytest.approx(1, abs=1e-12)


def test_structures_do_not_overlap(basis):
    rows = random_rows()
    alone = sum(overlap(basis, r, r) for r in (rows * mask[:, None] for mask in torch.eye(3)))
    assert overlap(basis, rows, rows, (0, 1, 2)) == pytest.approx(alone)
    assert abs(overlap(basis, rows, rows) - alone) > 0.1


def test_moments_are_integrals(basis):
    points, volume = box()
    rows = random_rows()
    density = basis.density(points, rows, POSITIONS, TYPES) * volume
    charges, dipole = basis.moments(rows, POSITIONS, TYPES)
    assert float(charges.sum()) == pytest.approx(float(density.sum()), rel=1e-5)
    np.testing.assert_allclose(dipole, density @ points, rtol=1e-5)


def test_integral_of_one_gaussian():
    """A primitive of norm 1 is (2a/π)^(3/4) exp(−a r²), whose integral is (2π/a)^(3/4)."""
    one = GaussianBasis({"H": [{"l": 0, "exponents": [0.8], "coefficients": None}]}, "1x0e", ["H"])
    at = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]]).double()
    row, center, kind = torch.ones(1, 1).double(), torch.zeros(1, 3).double(), torch.tensor([0])
    values = (1.6 / math.pi) ** 0.75 * np.exp([0, -0.8 * 4])
    np.testing.assert_allclose(one.density(at, row, center, kind), values)
    assert float(one.moments(row, center, kind)[0]) == pytest.approx((2 * math.pi / 0.8) ** 0.75)


def test_densities_turn_with_the_molecule(basis):
    """Coefficients turned by e3nn's matrices are those of the turned density."""
    matrix = o3.angles_to_matrix(*torch.tensor([0.3, 1.1, -0.7], dtype=torch.float64))
    points, rows = torch.randn(20, 3, dtype=torch.float64), random_rows()
    turned = rows @ o3.Irreps(IRREPS).D_from_matrix(matrix).T
    np.testing.assert_allclose(
        basis.density(points @ matrix.T, turned, POSITIONS @ matrix.T, TYPES),
        basis.density(points, rows, POSITIONS, TYPES),
        atol=1e-5,  # e3nn's matrices are in single precision
    )


def test_against_pyscf():
    gto = pytest.importorskip("pyscf.gto", reason="pyscf is not installed")
    from pyscf.dft.numint import eval_ao

    atoms = "O 0 0 0; H 0.76 0.59 0.1; H -0.76 0.59 0"
    shells = [
        [0, [8.0, 0.4], [1.5, 0.7]],
        [0, [0.4, 1.0]],
        [1, [1.1, 1.0]],
        [2, [0.9, 0.3], [0.5, 0.8]],
        [3, [0.7, 1.0]],
    ]
    mol = gto.M(atom=atoms, basis={"O": shells, "H": shells})
    ours = [
        {"l": degree, "exponents": [e for e, _ in rows], "coefficients": [[c for _, c in rows]]}
        for degree, *rows in shells
    ]
    basis = GaussianBasis({"X": ours}, "2x0e+1x1o+1x2e+1x3o", ["X"])
    points, positions = np.random.default_rng(0).normal(size=(300, 3)), torch.from_numpy(mol.atom_coords())
    where = torch.from_numpy(points), positions, torch.zeros(3, dtype=torch.int64)
    rows = torch.eye(3 * WIDTH_OF_X, dtype=torch.float64).reshape(-1, 3, WIDTH_OF_X)
    values = np.stack([basis.density(where[0], row, *where[1:]).numpy() for row in rows], axis=1)
    change = np.linalg.lstsq(values, eval_ao(mol, points), rcond=None)[0]  # orders of the components
    np.testing.assert_allclose(values @ change, eval_ao(mol, points), atol=1e-12)
    np.testing.assert_allclose(change @ change.T, np.eye(len(change)), atol=1e-10)  # all have norm 1
    structure = torch.zeros(3, dtype=torch.int64)
    matrix = [basis.times_overlap(row, *where[1:], structure).numpy().ravel() for row in rows]
    np.testing.assert_allclose(change.T @ matrix @ change, mol.intor("int1e_ovlp"), atol=1e-10)


WIDTH_OF_X = 17
