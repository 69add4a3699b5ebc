"""Whole models: the kernels give what plain torch gives."""

import contextlib

import pytest
import torch

from equipot.config import AllegroConfig, NequIPConfig
from equipot.data import graph_from_atoms
from equipot.models.build import build_potential
from equipot.models.predict import predict
from equipot.ops.build import kernels_available
from equipot.ops.operators import plain_operators

MODELS = {
    "nequip": NequIPConfig(type="nequip", dtype="float64", cutoff=4.0, layers=3, channels=8),
    "nequip-radial-network": NequIPConfig(
        type="nequip", dtype="float64", cutoff=4.0, layers=2, channels=8, radial_intervals=None
    ),
    # The third of six layers gives pseudoscalars (0o), which pass through tanh.
    "nequip-odd-scalars": NequIPConfig(type="nequip", dtype="float64", cutoff=4.0, layers=6, channels=8),
    "allegro": AllegroConfig(type="allegro", dtype="float64", cutoff=4.0, channels=8),
}


@pytest.fixture
def crystal():
    """Eight atoms of two elements in a cell hardly larger than the cutoff.

    Rattled by half an Å: pseudoscalars measure how far a structure is from its mirror image.
    """
    from ase.build import bulk

    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.5, seed=0)
    return graph_from_atoms(atoms, ["Na", "Cl"], 4.0)


@pytest.mark.parametrize("name", MODELS)
def test_energy_forces_stress_and_parameter_gradients(name, crystal):
    if not kernels_available():
        pytest.skip("the kernels are off or cannot be compiled here")
    torch.manual_seed(0)
    potential = build_potential(MODELS[name], ["Na", "Cl"], 10.0, [-1.0, -2.0], 1.0).train()
    results = []
    for operators in (contextlib.nullcontext, plain_operators):
        with operators():
            prediction = predict(potential, crystal)
        loss = prediction.energy.sum() + prediction.forces.square().sum() + prediction.stress.square().sum()
        gradients = torch.autograd.grad(loss, [p for p in potential.parameters() if p.requires_grad])
        outputs = [prediction.energy, prediction.forces, prediction.stress]
        results.append([*outputs, *gradients])
    assert any((a != b).any() for a, b in zip(*results, strict=True))  # two ways of computing
    assert len(results[0]) > 10
    for found, expected in zip(*results, strict=True):
        # Sums of up to some thousand terms in another order: 1e-16 each, far below what training can see.
        assert float((found - expected).detach().abs().max() / expected.detach().abs().max()) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_energy_forces_and_stress_in_eval_mode(name, crystal):
    """Kernels of inference against plain torch in train mode, which has none of them."""
    if not kernels_available():
        pytest.skip("the kernels are off or cannot be compiled here")
    torch.manual_seed(0)
    potential = build_potential(MODELS[name], ["Na", "Cl"], 10.0, [-1.0, -2.0], 1.0)
    found = predict(potential.eval(), crystal)
    with plain_operators():
        expected = predict(potential.train(), crystal)
    for key in ("atom_energies", "forces", "stress", "atom_virials"):
        a, b = getattr(found, key), getattr(expected, key).detach()
        assert float((a - b).abs().max() / b.abs().max()) < 1e-10, key  # as above
