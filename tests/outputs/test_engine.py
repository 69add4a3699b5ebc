"""The engine gives what the modules give, of every kind of output."""

import copy

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from output_models import ALLEGRO, CUTOFF, NEQUIP, OUTPUTS, SPECIES, make_potential
from test_physics import MODELS
from test_response import RESPONSE

from equipot.data.dataset import graph_from_atoms
from equipot.deploy.rigidity import engine_of
from equipot.engine.library import load_library
from equipot.errors import DataError
from equipot.graph import edge_vectors
from equipot.quantities import QUANTITIES, values_by_name

# Sums of the same numbers in another order, as in tests/contract.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
FURTHER = {
    "nequip, no parity": NEQUIP | {"parity": False},
    "nequip, one layer, perceptron": NEQUIP | {"layers": 1, "readout_hidden": [6]},
    "nequip, rotations": NEQUIP | {"parity": "ignored", "element_factors": True, "self_connection": "shared"},
    "allegro, l 3": ALLEGRO | {"l_max": 3, "pair_cutoffs": {"H-H": 2.5}, "zbl": True},
}
OF_BOTH_PARITIES = {"moment", "chirality", "born_charges", "piezo", "twist"}


def structures() -> dict[str, ase.Atoms]:
    ethanol, crystal = molecule("CH3CH2OH"), bulk("CO", "zincblende", a=3.6)
    ethanol.rattle(0.1, seed=1)
    crystal.rattle(0.1, seed=2)
    return {
        "molecule": ethanol,
        "crystal with self-images": crystal,
        "dimer": ase.Atoms("HO", [[0, 0, 0], [0.6, 0.5, 0.7]]),
        "atoms alone": ase.Atoms("CHO", [[0, 0, 0], [9, 0, 0], [0, 9, 0]]),
    }


@pytest.fixture(params=[*MODELS, *FURTHER], scope="module")
def potential(request):
    model = (MODELS | FURTHER)[request.param]
    lacks = OF_BOTH_PARITIES if model.get("parity") is False or model.get("layers") == 1 else ()
    outputs = {name: o for name, o in OUTPUTS.items() if name not in lacks}
    of_elements = {"H": "2x0e", "C": "1x0e+2x1o", "O": "1x1o+1x2e"}
    potential = make_potential(model, outputs | {"by_element": {"per": "atom", "irreps": of_elements}})
    for key, weight in potential.named_parameters():
        if key.endswith((".bias", ".factors")):  # which are zero or one at first
            torch.nn.init.normal_(weight)
    return potential.requires_grad_(False)


def edges_of(atoms: ase.Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    graph = graph_from_atoms(atoms, SPECIES, CUTOFF)
    return edge_vectors(graph).numpy(), graph.edge_index.numpy(), graph.atom_types.numpy()


def by_torch(potential, edges, owned) -> list[np.ndarray]:
    return [rows.numpy() for rows in potential(*map(torch.as_tensor, (*edges, owned)))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_engine(potential, dtype, tmp_path):
    potential = copy.deepcopy(potential)
    potential.network.to(dtype)
    engine = engine_of(potential.program(), tmp_path)
    assert list(engine.output_facts) == potential.output_names and not engine.feels_field
    tolerance = TOLERANCE[dtype]
    for name, atoms in structures().items():
        edges = edges_of(atoms)
        all_owned = np.ones(len(atoms), bool)
        some = np.arange(len(atoms)) < len(atoms) // 2
        for owned in (all_owned, some, ~some):
            right = by_torch(potential, edges, owned)
            found = engine.evaluate_edges(*edges, owned)
            for a, b in zip((found.atom_energies, found.forces, found.atom_virials), right[:3], strict=True):
                scale = max(1.0, np.abs(right[1]).max(initial=0))
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale, err_msg=name)
            values, expected = (values_by_name(v, potential.output_names) for v in (found.outputs, right[3]))
            for output, value in expected.items():
                scale = tolerance * max(1.0, np.abs(value).max(initial=0))
                np.testing.assert_allclose(values[output], value, rtol=0, atol=scale, err_msg=output)
            assert (found.outputs[~owned] == 0).all()
    searched = engine.evaluate(np.zeros((0, 3)), np.eye(3), (0, 0, 0), [])
    assert searched.outputs.shape == (0, engine.output_width)


def test_scripted_module_is_the_same(potential, ethanol):
    edges, owned = edges_of(ethanol), np.ones(len(ethanol), bool)
    for a, b in zip(
        by_torch(torch.jit.script(potential), edges, owned), by_torch(potential, edges, owned), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("model", [NEQUIP, ALLEGRO, NEQUIP | {"layers": 1, "readout_hidden": []}])
def test_models_without_energies(model, tmp_path):
    lacks = OF_BOTH_PARITIES if model.get("layers") == 1 else ()
    outputs = {name: output for name, output in OUTPUTS.items() if name not in lacks}
    potential = make_potential(model | {"energy": False}, outputs).requires_grad_(False)
    engine = engine_of(potential.program(), tmp_path)
    assert not engine.has_energy and not engine.feature_width
    for atoms in structures().values():
        edges, owned = edges_of(atoms), np.arange(len(atoms)) > 0
        [right] = by_torch(potential, edges, owned)
        found = engine.evaluate_edges(*edges, owned, heat=True)
        np.testing.assert_allclose(found.outputs, right, rtol=1e-12, atol=1e-11)
        assert not found.forces.any() and not found.atom_energies.any() and not found.atom_virials.any()


@pytest.mark.parametrize("model", [NEQUIP, ALLEGRO])
def test_energies_have_the_same_bits_without_outputs(model, ethanol, tmp_path):
    """Of a plain model, and of one whose outputs nobody asks for."""
    potential = make_potential(model, {"charges": OUTPUTS["charges"]})
    program = potential.program()
    with_outputs = engine_of(program, tmp_path)
    assert program.facts["version"] == 4
    program.facts.pop("outputs"), program.facts.update(version=1)
    last = program.output_rows
    program.steps = [step for step in program.steps if step["out"] != last and step["do"] != "weighted_sum"]
    plain = engine_of(program, tmp_path)
    assert plain.output_width == 0
    arguments = edges_of(ethanol)
    one, other = (engine.evaluate_edges(*arguments) for engine in (plain, with_outputs))
    for name in ("atom_energies", "forces", "atom_virials"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.outputs is None and other.outputs.shape == (len(ethanol), 1)


def test_same_bits_with_any_number_of_threads(potential, tmp_path):
    engine = engine_of(potential.program(), tmp_path)
    atoms = structures()["crystal with self-images"] * (4, 4, 4)
    edges, found = edges_of(atoms), []
    try:
        for threads in (1, 2, 3):
            load_library().equipot_set_threads(threads)
            found.append(engine.evaluate_edges(*edges).outputs)
    finally:
        load_library().equipot_set_threads(0)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_what_the_engine_says_of_outputs(tmp_path):
    """By the C interface, in whose order they are."""
    potential = make_potential(NEQUIP)
    engine = engine_of(potential.program(), tmp_path)
    assert list(engine.output_facts) == list(OUTPUTS)
    for name, facts in engine.output_facts.items():
        quantity = QUANTITIES[name]
        assert facts == (quantity.unit, quantity.shape, quantity.per_atom, quantity.mean, False)


def test_outputs_that_are_not_there(tmp_path, ethanol):
    engine = engine_of(make_potential(NEQUIP).program(), tmp_path)
    with pytest.raises(DataError, match="its energy does not depend on an electric field"):
        engine.evaluate_edges(*edges_of(ethanol), field=[0, 0, 0.1])
    with pytest.raises(DataError, match=r"field must be \(3,\), but are \(2,\)"):
        engine.evaluate_edges(*edges_of(ethanol), field=[0, 0.1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"array": "linear_99"}, "a step reads 'linear_99', which no step before it makes"),
        ({"scale": "shift"}, r"the weights 'shift' are 3 numbers, expected \d+"),
        ({"basis": "shift"}, r"the weights 'shift' are 3 numbers, expected \d+"),
        ({"array": "embedding_0"}, r"the weights 'outputs.scale' are \d+ numbers, expected 12"),
    ],
)
def test_damaged_programs(change, message, tmp_path):
    program = make_potential(NEQUIP).program()
    program.facts["outputs"] |= change
    with pytest.raises(Exception, match=message):
        engine_of(program, tmp_path)


FIELD = np.array([0.3, -0.2, 0.1])
UNITS = {"dipole": 0.5, "alpha": 2.0}  # in e Å and e²Å²/eV


def in_a_field(potential, dtype=torch.float64):
    """Its engine's program, with what `model.field` and an output `derivative_of: dipole` add to it."""
    potential = copy.deepcopy(potential)
    potential.network.to(dtype)
    program = potential.program()
    (vector, unit), (tensor, other) = UNITS.items()
    program.facts["field"] = {"vector": vector, "vector_unit": unit, "tensor": tensor, "tensor_unit": other}
    born = {
        "name": "born",
        "derivative_of": "dipole",
        "factor": 0.5,
        "shape": [3, 3],
        "unit": "",
        "per_atom": True,
    }
    program.facts["outputs"]["values"].append(born | {"mean": False, "positive": False})
    return program


def torch_in_a_field(potential, edges, owned) -> dict[str, np.ndarray]:
    """E − P·F − F·α·F/2 and P + α F, summed over atoms, and their derivatives by positions, all by torch."""
    vec, index, types = map(torch.as_tensor, edges)
    vec, own, field = vec.clone().requires_grad_(), torch.as_tensor(owned).double(), torch.as_tensor(FIELD)
    energies = potential.atom_energies(vec, index, types)
    values = potential.values(vec, index, types, torch.as_tensor(owned))
    found = values_by_name(values, potential.output_names)
    p, alpha = (found[name] * unit for name, unit in UNITS.items())
    energies = energies - p @ field - 0.5 * torch.einsum("nab,a,b->n", alpha, field, field)
    p = (found["dipole"] + alpha @ field / UNITS["dipole"]) * own[:, None]
    energies = energies * own

    def slopes(total):  # by the atoms' positions
        by_edge = torch.autograd.grad(total, vec, retain_graph=True)[0]
        by_atom = torch.zeros(len(types), 3, dtype=torch.float64)
        return by_atom.index_add(0, index[1], by_edge).index_add(0, index[0], -by_edge)

    born = 0.5 * torch.stack([slopes(p[:, axis].sum()) for axis in range(3)], dim=1)
    rows = {"energies": energies, "forces": -slopes(energies.sum()), "dipole": p, "born": born}
    return {name: value.detach().numpy() for name, value in rows.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fields_and_derivatives(potential, dtype, tmp_path):
    engine = engine_of(in_a_field(potential, dtype), tmp_path)
    assert engine.feels_field and engine.derivative_width == 9 and engine.output_facts["born"].is_derivative
    single = copy.deepcopy(potential)
    single.network.to(dtype)
    for name, atoms in structures().items():
        if not len(edges_of(atoms)[0]):
            continue
        edges = edges_of(atoms)
        for owned in (np.ones(len(atoms), bool), np.arange(len(atoms)) < len(atoms) // 2):
            right = torch_in_a_field(single, edges, owned)
            found = engine.evaluate_edges(*edges, owned, field=FIELD, heat=True)
            dipole = values_by_name(found.outputs, potential.output_names)["dipole"]
            pairs = {"energies": found.atom_energies, "forces": found.forces, "dipole": dipole}
            pairs["born"] = found.derivatives.reshape(-1, 3, 3)
            for key, value in pairs.items():
                scale = max(1.0, np.abs(right[key]).max(), np.abs(right["forces"]).max())
                np.testing.assert_allclose(
                    value,
                    right[key],
                    rtol=TOLERANCE[dtype],
                    atol=TOLERANCE[dtype] * scale,
                    err_msg=f"{name} {key}",
                )
            # Alone, they are the same bits.
            alone = engine.evaluate_edges(*edges, owned, field=FIELD, derivatives=False)
            assert alone.derivatives is None
            np.testing.assert_array_equal(alone.forces, found.forces)
            np.testing.assert_array_equal(
                engine.evaluate_edges(*edges, owned, field=FIELD).derivatives, found.derivatives
            )


@pytest.mark.parametrize("model", [NEQUIP, ALLEGRO])
def test_model_with_a_field(model, ethanol, tmp_path):
    """As `model.field` and `derivative_of` say it, by their own modules."""
    potential = make_potential(model | {"field": True}, RESPONSE).requires_grad_(False)
    engine = engine_of(potential.program(), tmp_path)
    assert list(engine.output_facts) == potential.output_names
    edges, owned = edges_of(ethanol), np.arange(len(ethanol)) < 6
    for field in (None, FIELD):
        inputs = [torch.as_tensor(x) for x in (*edges, owned)]
        right = potential(*inputs, field=None if field is None else torch.as_tensor(field))
        found = engine.evaluate_edges(*edges, owned, field=field)
        rows = (found.atom_energies, found.forces, found.atom_virials, found.values)
        for a, b in zip(rows, right, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("model", [NEQUIP, ALLEGRO])
def test_slopes_by_finite_differences(model, ethanol, tmp_path):
    """Of energies by positions and field, and of the dipole by positions, which forces are by the field."""
    engine = engine_of(in_a_field(make_potential(model).requires_grad_(False)), tmp_path)
    types = edges_of(ethanol)[2]

    def at(moved=0.0, field=FIELD):
        positions = ethanol.positions.copy()
        positions[2, 1] += moved
        return engine.evaluate(positions, np.eye(3), (0, 0, 0), types, field=field)

    here, step = at(), 1e-4
    there, back = at(step), at(-step)
    slope = (there.atom_energies.sum() - back.atom_energies.sum()) / (2 * step)
    assert -here.forces[2, 1] == pytest.approx(slope, rel=1e-6)
    total = [values_by_name(f.outputs, list(OUTPUTS))["dipole"].sum(axis=0) for f in (there, back)]
    born = here.derivatives.reshape(-1, 3, 3)
    np.testing.assert_allclose(born[2, :, 1], 0.5 * (total[0] - total[1]) / (2 * step), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(born.sum(axis=0), 0, atol=1e-11)  # moved as a whole, nothing changes
    ahead, behind = (at(field=FIELD + sign * np.array([0, 0, 0.1])) for sign in (1, -1))
    by_field = (ahead.atom_energies.sum() - behind.atom_energies.sum()) / 0.2
    dipole = values_by_name(here.outputs, list(OUTPUTS))["dipole"].sum(axis=0)
    assert -by_field == pytest.approx(UNITS["dipole"] * dipole[2], rel=1e-9)
    # ∂F/∂E: the energy is of second order in the field, so this difference is exact.
    np.testing.assert_allclose((ahead.forces - behind.forces) / 0.2, born[:, 2], atol=1e-9)
