"""Errors of outputs by irrep and by component."""

import numpy as np
import pytest
from output_models import make_config, rotation

from equipot.evaluation.metrics import by_irrep, component_errors, error_rows
from equipot.evaluation.predict import Comparison, FrameOrigin
from equipot.quantities import QUANTITIES

OUTPUTS = {
    "dipole": {"per": "structure", "tensor": "vector"},
    "alpha": {"per": "structure", "tensor": "symmetric"},
    "born": {"per": "atom", "tensor": "matrix"},
    "density": {"per": "atom", "irreps": "2x0e+1x1o+1x0e"},
}


def compared(errors):
    make_config({"type": "nequip"}, OUTPUTS)
    structures, atoms = 4, 8
    values = {
        name: errors.normal(
            size=(atoms if QUANTITIES[name].per_atom else structures, *QUANTITIES[name].shape)
        )
        for name in OUTPUTS
    }
    values["alpha"] += values["alpha"].swapaxes(1, 2)
    sources = [FrameOrigin("x.xyz", i) for i in range(structures)]
    zeros = {name: np.zeros_like(value) for name, value in values.items()}
    return Comparison(sources, np.full(structures, 2), np.full(atoms, 6), values, zeros)


def test_irreps_of_errors():
    """Traces, antisymmetric parts and the rest, as taken out by hand; squares add up."""
    comparison = compared(np.random.default_rng(0))
    rows = {row.quantity: row for row in error_rows(comparison)}
    assert list(rows) == [
        *("dipole", "alpha", "alpha 0e", "alpha 2e", "born", "born 0e", "born 1e", "born 2e"),
        *("density", "density 0e", "density 1o"),
    ]
    alpha, born, density = (comparison.values[name] for name in ("alpha", "born", "density"))
    trace = np.trace(alpha, axis1=1, axis2=2) / 3**0.5
    assert rows["alpha 0e"].mae == pytest.approx(np.abs(trace).mean())
    antisymmetric = (born - born.swapaxes(1, 2)) / 2
    assert rows["born 1e"].rmse == pytest.approx(np.sqrt((antisymmetric**2).sum(axis=(1, 2)).mean() / 3))
    assert rows["density 0e"].largest == pytest.approx(np.abs(density[:, [0, 1, 5]]).max())
    for name, parts in (("alpha", {"0e": 1, "2e": 5}), ("born", {"0e": 1, "1e": 3, "2e": 5})):
        squares = sum(size * rows[f"{name} {ir}"].rmse ** 2 for ir, size in parts.items())
        assert squares == pytest.approx(9 * rows[name].rmse ** 2)


def test_what_irreps_are_of_does_not_depend_on_axes():
    born = compared(np.random.default_rng(1)).values["born"]
    turn = rotation()
    turned = np.einsum("ia,jb,nab->nij", turn, turn, born)
    before, after = (by_irrep(QUANTITIES["born"], values) for values in (born, turned))
    for irrep in before:
        norms = [np.linalg.norm(parts[irrep], axis=1) for parts in (before, after)]
        np.testing.assert_allclose(*norms, rtol=1e-12)


def test_components():
    comparison = compared(np.random.default_rng(2))
    comparison.reference["dipole"][0] = np.nan
    found = component_errors(comparison)
    expected = np.abs(comparison.values["dipole"][1:]).mean(axis=0)
    np.testing.assert_allclose(found["dipole"]["mae"], expected)
    assert np.shape(found["born"]["rmse"]) == (3, 3) and np.shape(found["density"]["mae"]) == (6,)
