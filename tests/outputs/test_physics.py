"""What every output of every architecture must do: turn with space, add up, depend on nothing else."""

import itertools

import numpy as np
import pytest
import torch
from e3nn.o3 import Irreps
from output_models import ALLEGRO, CUTOFF, NEQUIP, OUTPUTS, SPECIES, make_config, make_potential, rotation

from equipot.data.dataset import graph_from_atoms
from equipot.errors import ConfigError
from equipot.graph import collate, edge_vectors
from equipot.models.build import build_potential
from equipot.models.predict import predict
from equipot.quantities import QUANTITIES

MODELS = {
    "nequip": NEQUIP,
    "nequip, radial network": NEQUIP | {"radial_intervals": None, "xplor_start": 3.2, "biases": True},
    "allegro": ALLEGRO,
}


@pytest.fixture(params=MODELS)
def potential(request):
    return make_potential(MODELS[request.param])


def outputs_of(potential, atoms) -> dict[str, np.ndarray]:
    found = predict(potential, graph_from_atoms(atoms, SPECIES, CUTOFF)).outputs
    return {name: value.numpy() for name, value in found.items()}


def turned(name: str, value: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """What the transformation of space makes of a value, written for each kind anew."""
    sign = np.linalg.det(matrix)
    match name if "indices" in OUTPUTS[name] else OUTPUTS[name].get("tensor"):
        case "symmetric" | "traceless" if OUTPUTS[name].get("rank") == 3:
            return np.einsum("ia,jb,kc,nabc->nijk", matrix, matrix, matrix, value)
        case "piezo":
            return np.einsum("ia,jb,kc,nabc->nijk", matrix, matrix, matrix, value)
        case "twist":
            return np.einsum("ia,jb,nsab->nsij", matrix, matrix, value)
        case "vector":
            return value @ matrix.T
        case "pseudovector":
            return sign * value @ matrix.T
        case "pseudoscalar":
            return sign * value
        case "symmetric" | "traceless" | "matrix":
            return np.einsum("ia,nab,jb->nij", matrix, value, matrix)
        case None:
            blocks = [Irreps("0e")] * 2 + [Irreps("1o")] + [Irreps("2e")] * 3
            parts = np.split(value, np.cumsum([block.dim for block in blocks])[:-1], axis=1)
            turn = [block.D_from_matrix(torch.tensor(matrix)).numpy().T for block in blocks]
            return np.concatenate([part @ d for part, d in zip(parts, turn, strict=True)], axis=1)
    return value


@pytest.mark.parametrize("sign", [1, -1])
def test_outputs_turn_with_the_structure(potential, ethanol, sign):
    matrix = sign * rotation()
    moved = ethanol.copy()
    moved.positions = ethanol.positions @ matrix.T + [1.0, -2.0, 0.5]
    before, after = outputs_of(potential, ethanol), outputs_of(potential, moved)
    assert list(before) == list(OUTPUTS)
    for name, value in before.items():
        assert np.abs(value).max() > 1e-8, name  # otherwise nothing would be tested
        np.testing.assert_allclose(
            after[name], turned(name, value, matrix), atol=1e-6 * np.abs(value).max() + 1e-13
        )


def test_tensors_have_the_symmetry_they_claim(potential, ethanol):
    found = outputs_of(potential, ethanol)
    for name in ("alpha", "quadrupole"):
        np.testing.assert_allclose(found[name], found[name].swapaxes(1, 2), atol=1e-12)
    assert np.trace(found["quadrupole"][0]) == pytest.approx(0, abs=1e-12)
    assert abs(np.trace(found["alpha"][0])) > 1e-3
    born = found["born_charges"]
    assert np.abs(born - born.swapaxes(1, 2)).max() > 1e-3
    assert (found["spectrum"] > 0).all()
    for axes in itertools.permutations((1, 2, 3)):
        for name in ("beta", "octupole"):
            np.testing.assert_allclose(found[name], found[name].transpose(0, *axes), atol=1e-12)
    np.testing.assert_allclose(np.trace(found["octupole"], axis1=1, axis2=2), 0, atol=1e-12)
    assert np.abs(np.trace(found["beta"], axis1=1, axis2=2)).max() > 1e-3
    np.testing.assert_allclose(found["piezo"], found["piezo"].swapaxes(2, 3), atol=1e-12)
    assert np.abs(found["piezo"] - found["piezo"].swapaxes(1, 2)).max() > 1e-3
    np.testing.assert_allclose(found["twist"], -found["twist"].swapaxes(2, 3), atol=1e-12)


def test_atoms_in_another_order(potential, ethanol):
    order = np.random.default_rng(2).permutation(len(ethanol))
    before, after = outputs_of(potential, ethanol), outputs_of(potential, ethanol[order])
    for name, value in before.items():
        expected = value[order] if QUANTITIES[name].per_atom else value
        np.testing.assert_allclose(after[name], expected, atol=1e-10)


def test_two_copies_have_twice_what_is_extensive(potential, ethanol):
    pair = ethanol.copy()
    pair.extend(ethanol)
    pair.positions[len(ethanol) :] += 50.0
    one, two = outputs_of(potential, ethanol), outputs_of(potential, pair)
    for name, value in one.items():
        quantity = QUANTITIES[name]
        expected = (
            np.concatenate([value, value]) if quantity.per_atom else value * (1 if quantity.mean else 2)
        )
        np.testing.assert_allclose(two[name], expected, atol=1e-9)


def test_batch_is_as_single(potential, ethanol):
    other = ethanol[:5]
    joined = predict(
        potential, collate([graph_from_atoms(a, SPECIES, CUTOFF) for a in (ethanol, other)])
    ).outputs
    for name, value in joined.items():
        single = [outputs_of(potential, atoms)[name] for atoms in (ethanol, other)]
        np.testing.assert_allclose(value.numpy(), np.concatenate(single), atol=1e-10)


def test_atoms_of_others_count_nothing(potential, ethanol):
    graph = graph_from_atoms(ethanol, SPECIES, CUTOFF)
    owned = torch.arange(len(ethanol)) < 4
    whole, part = (
        potential(edge_vectors(graph), graph.edge_index, graph.atom_types, own)[3]
        for own in (torch.ones_like(owned), owned)
    )
    torch.testing.assert_close(part[:4], whole[:4])
    assert (part[4:] == 0).all()


def test_large_systems_in_parts(ethanol):
    potential = make_potential(ALLEGRO)
    whole = outputs_of(potential, ethanol)
    potential.edges_in_flight = {"cpu": 10, "cuda": 10}
    for name, value in outputs_of(potential, ethanol).items():
        np.testing.assert_allclose(value, whole[name], atol=1e-12)


def test_energies_are_as_without_outputs(ethanol):
    """Scalars add nothing to the last layer: with the same weights energies are those of a plain model."""
    potential = make_potential(NEQUIP, {"charges": OUTPUTS["charges"]})
    plain = build_potential(
        make_config(NEQUIP, {}).model, SPECIES, 6.0, [-13.6, -1030.0, -2040.0], 1.3
    ).eval()
    weights = potential.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    graph = graph_from_atoms(ethanol, SPECIES, CUTOFF)
    for field in ("energy", "forces"):
        torch.testing.assert_close(
            getattr(predict(potential, graph), field), getattr(predict(plain, graph), field)
        )


def test_values_fade_out_at_the_cutoff(potential, ethanol):
    """An atom that passes the cutoff of all others changes no output by a step."""

    def at(distance: float) -> dict[str, np.ndarray]:
        atoms = ethanol.copy()
        far = atoms.positions[:, 0].max()
        atoms.append("H")
        atoms.positions[-1] = [far + distance, *atoms.positions[atoms.positions[:-1, 0].argmax(), 1:]]
        return outputs_of(potential, atoms)

    inside, outside = at(CUTOFF - 1e-4), at(CUTOFF + 1e-4)
    for name, value in inside.items():
        np.testing.assert_allclose(value, outside[name], atol=1e-6)


@pytest.mark.parametrize(
    ("model", "output", "irrep"),
    [
        (NEQUIP | {"l_max": 1}, "alpha", "2e"),
        (NEQUIP | {"parity": False}, "moment", "1e"),
        (NEQUIP | {"layers": 1}, "chirality", "0o"),
        (ALLEGRO | {"parity": False}, "born_charges", "1e"),
    ],
)
def test_features_that_cannot_give_an_output(model, output, irrep):
    with pytest.raises(ConfigError, match=f"need the irreps {irrep}, but the features they are read from"):
        make_potential(model, {output: OUTPUTS[output]})


def test_models_that_ignore_parity_turn(ethanol):
    potential = make_potential(NEQUIP | {"parity": "ignored"})
    matrix = rotation(4)
    moved = ethanol.copy()
    moved.positions = ethanol.positions @ matrix.T
    before, after = outputs_of(potential, ethanol), outputs_of(potential, moved)
    for name, value in before.items():
        np.testing.assert_allclose(
            after[name], turned(name, value, matrix), atol=1e-6 * np.abs(value).max() + 1e-13
        )
