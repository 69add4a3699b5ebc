"""Response to a field: what is a derivative of the energy or of a dipole is one, by finite differences."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from output_models import ALLEGRO, CUTOFF, NEQUIP, SPECIES, make_config, make_potential, rotation

from equipot.data.dataset import graph_from_atoms
from equipot.errors import ConfigError
from equipot.graph import Label, Labels, collate, nearest_branch
from equipot.models.predict import predict
from equipot.properties.born import born_of
from equipot.properties.supercells import to_phonopy
from equipot.training.loss import label_errors

RESPONSE = {
    "charges": {"per": "atom", "tensor": "scalar", "unit": "e"},
    "born_charges": {"per": "atom", "tensor": "matrix", "unit": "e", "derivative_of": "polarization"},
    "polarization": {"per": "structure", "tensor": "vector", "unit": "e*Ang", "modulo": "cell"},
    "polarizability": {"per": "structure", "tensor": "symmetric", "unit": "e^2*Ang^2/eV"},
}
STEP = 1e-4  # Å or V/Å: differences are off by its square times third derivatives


@pytest.fixture(params=[NEQUIP, ALLEGRO], ids=["nequip", "allegro"])
def potential(request):
    return make_potential(request.param | {"field": True}, RESPONSE)


@pytest.fixture
def crystal():
    atoms = Atoms("HCOH", cell=[[4.0, 0, 0], [0.7, 4.4, 0], [0.2, -0.4, 3.9]], pbc=True)
    corners = np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2]])
    atoms.positions = corners + np.random.default_rng(5).uniform(0, 1, (4, 3))
    return atoms


def at(potential, atoms, field=None):
    field = None if field is None else torch.tensor(np.array([field]))
    return predict(potential, graph_from_atoms(atoms, SPECIES, CUTOFF), field)


def differences(function, size: int) -> np.ndarray:
    """Derivatives of an array by each of three numbers, the last axis."""
    return np.stack([(function(step) - function(-step)) / (2 * size) for step in size * np.eye(3)], axis=-1)


FIELD = np.array([0.02, -0.05, 0.03])


@pytest.mark.parametrize("field", [None, FIELD])
def test_born_charges_are_the_derivative_of_the_polarization(potential, crystal, field):
    born = at(potential, crystal, field).outputs["born_charges"].numpy()
    assert np.abs(born - born.swapaxes(1, 2)).max() > 1e-3  # or the order of indices would not be tested
    for index in range(len(crystal)):

        def moved(step, index=index):
            other = crystal.copy()
            other.positions[index] += step
            return at(potential, other, field).outputs["polarization"].numpy()[0]

        np.testing.assert_allclose(born[index], differences(moved, STEP), atol=1e-6)
    np.testing.assert_allclose(born.sum(0), 0, atol=1e-12)  # the acoustic sum rule


def test_response_is_the_derivative_of_the_energy_and_forces_by_the_field(potential, crystal):
    here = at(potential, crystal, FIELD)

    def of(name):
        return lambda step: getattr(at(potential, crystal, FIELD + step), name).numpy()

    polarization = here.outputs["polarization"].numpy()
    np.testing.assert_allclose(-differences(of("energy"), STEP), polarization, atol=1e-7)
    forces = differences(of("forces"), STEP)  # (N, 3, 3): displacement, field
    np.testing.assert_allclose(forces.swapaxes(1, 2), here.outputs["born_charges"].numpy(), atol=1e-7)
    by_field = differences(
        lambda step: at(potential, crystal, FIELD + step).outputs["polarization"].numpy(), STEP
    )
    np.testing.assert_allclose(by_field, here.outputs["polarizability"].numpy(), atol=1e-7)
    assert np.abs(by_field).max() > 1e-2


def test_forces_and_stress_in_a_field_are_derivatives_of_the_energy(potential, crystal):
    here = at(potential, crystal, FIELD)
    for index in range(len(crystal)):

        def moved(step, index=index):
            other = crystal.copy()
            other.positions[index] += step
            return at(potential, other, FIELD).energy.numpy()[0]

        np.testing.assert_allclose(-differences(moved, STEP), here.forces.numpy()[index], atol=1e-6)

    def stretched(step):
        other = crystal.copy()
        other.set_cell(crystal.cell.array @ (np.eye(3) + np.outer(step, [1, 0, 0])), scale_atoms=True)
        other.set_cell(other.cell, scale_atoms=False)
        return at(potential, other, FIELD).energy.numpy()[0]

    slope = differences(stretched, STEP) / crystal.get_volume()
    np.testing.assert_allclose(slope[0], here.stress.numpy()[0, 0, 0], atol=1e-7)


@pytest.mark.parametrize("sign", [1, -1])
def test_field_turns_with_the_structure(potential, crystal, sign):
    matrix = sign * rotation(2)
    turned = crystal.copy()
    turned.set_cell(crystal.cell.array @ matrix.T)
    turned.positions = crystal.positions @ matrix.T + [0.3, -1, 2]
    one, other = at(potential, crystal, FIELD), at(potential, turned, matrix @ FIELD)
    np.testing.assert_allclose(other.energy, one.energy, atol=1e-9)
    np.testing.assert_allclose(other.forces, one.forces.numpy() @ matrix.T, atol=1e-7)
    expected = np.einsum("ia,nab,jb->nij", matrix, one.outputs["born_charges"], matrix)
    np.testing.assert_allclose(other.outputs["born_charges"], expected, atol=1e-7)


def test_each_structure_has_its_field(potential, crystal, ethanol):
    graph = collate([graph_from_atoms(atoms, SPECIES, CUTOFF) for atoms in (crystal, ethanol)])
    both = predict(potential, graph, torch.tensor(np.stack([FIELD, -2 * FIELD])))
    for index, (atoms, field) in enumerate([(crystal, FIELD), (ethanol, -2 * FIELD)]):
        single = at(potential, atoms, field)
        assert both.energy[index] == pytest.approx(single.energy.item(), abs=1e-9)
        np.testing.assert_allclose(both.forces[graph.structure == index], single.forces, atol=1e-10)


def test_in_parts_and_without_derivatives(ethanol):
    potential = make_potential(ALLEGRO | {"field": True}, RESPONSE)
    whole = at(potential, ethanol, FIELD)
    potential.edges_in_flight = {"cpu": 10, "cuda": 10}
    parts = at(potential, ethanol, FIELD)
    np.testing.assert_allclose(parts.forces, whole.forces, atol=1e-12)
    for name, value in whole.outputs.items():
        np.testing.assert_allclose(parts.outputs[name], value, atol=1e-12)


def test_born_charges_can_be_trained(crystal):
    """Their gradient by the weights is that of finite differences."""
    potential = make_potential(NEQUIP | {"field": True}, RESPONSE).train()
    graph = graph_from_atoms(crystal, SPECIES, CUTOFF)
    target = torch.randn(4, 3, 3, dtype=torch.float64)
    weights = [weight for weight in potential.parameters() if weight.requires_grad]

    def loss():
        return ((predict(potential, graph).outputs["born_charges"] - target) ** 2).sum()

    gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    direction = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
    slope = sum((g**2).sum() for g in direction).item()
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, along in zip(weights, direction, strict=True):
                weight += sign * 1e-6 / slope**0.5 * along
        ends.append(loss().item())
        with torch.no_grad():
            for weight, along in zip(weights, direction, strict=True):
                weight -= sign * 1e-6 / slope**0.5 * along
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope**0.5, rel=1e-5)


def test_units_of_dipoles_and_their_derivatives(ethanol):
    """A dipole in Debye has charges in e, and the field knows it."""
    outputs = {
        "dipole": {"per": "structure", "tensor": "vector", "unit": "Debye"},
        "charges": {"per": "atom", "tensor": "matrix", "unit": "e", "derivative_of": "dipole"},
        "polarizability": {"per": "structure", "tensor": "symmetric", "unit": "Bohr^3"},
    }
    here = at(make_potential(NEQUIP | {"field": True}, outputs), ethanol, FIELD)
    potential = make_potential(NEQUIP | {"field": True}, outputs)

    def along(step):
        return at(potential, ethanol, FIELD + step)

    debye = 0.2081943  # e Å
    slope = -differences(lambda step: along(step).energy.numpy()[0], STEP)
    np.testing.assert_allclose(slope, debye * here.outputs["dipole"].numpy()[0], rtol=1e-5)
    forces = differences(lambda step: along(step).forces.numpy(), STEP).swapaxes(1, 2)
    np.testing.assert_allclose(forces, here.outputs["charges"].numpy(), atol=1e-6)
    second = differences(lambda step: debye * along(step).outputs["dipole"].numpy()[0], STEP)
    hartree, bohr = 27.211386, 0.5291772  # of a volume of Bohr³ in atomic units, e² Bohr² / Hartree
    np.testing.assert_allclose(
        second, here.outputs["polarizability"].numpy()[0] * bohr**2 / hartree, rtol=1e-5
    )


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 0, 1), (0, 0, 0)])
def test_nearest_branch_is_the_nearest(crystal, pbc):
    """Of all within four turns, searched one by one; only along periodic directions."""
    crystal.set_cell([[4.0, 0, 0], [3.1, 1.5, 0], [0.2, -2.9, 3.0]])  # skew
    crystal.pbc = pbc
    graph, quantum = collate([graph_from_atoms(crystal, SPECIES, CUTOFF)] * 40), 1.3
    near, value = np.random.default_rng(0).normal(scale=3.0, size=(2, 40, 3))
    found = nearest_branch(torch.tensor(value), torch.tensor(near), graph, quantum).numpy()
    steps = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * pbc
    for mine, start, target in zip(found, value, near, strict=True):
        all_of_them = start + quantum * steps @ crystal.cell.array
        nearest = all_of_them[np.linalg.norm(all_of_them - target, axis=1).argmin()]
        np.testing.assert_allclose(mine, nearest, atol=1e-9)


def test_errors_do_not_see_the_branch(potential, crystal, ethanol):
    """A label that is off by a quantum has the same error; that of a molecule has none to be off by."""
    graphs = [graph_from_atoms(atoms, SPECIES, CUTOFF) for atoms in (crystal, ethanol)]
    errors = []
    for turns in ([0, 0, 0], [5, -1, 2]):
        labelled = []
        for graph in graphs:
            value = torch.tensor([[0.3, -0.2, 0.5]]) + torch.tensor([turns]).double() @ graph.cell[0]
            label = Label(value, torch.tensor([True]))
            labelled.append(vars(graph) | {"labels": Labels({"polarization": label})})
        graph = collate([type(graphs[0])(**one) for one in labelled])
        prediction = predict(potential, graph)
        errors.append(label_errors(prediction, graph)["polarization"].error.detach())
    torch.testing.assert_close(errors[0], errors[1])
    expected = prediction.outputs["polarization"][1] - torch.tensor([0.3, -0.2, 0.5])
    torch.testing.assert_close(errors[0][1], expected.detach())


P, A, Z = (RESPONSE[name] for name in ("polarization", "polarizability", "born_charges"))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"polarizability": A}, "`field: true` needs one output `polarization` or `dipole`.*found none"),
        ({"polarization": P, "dipole": P}, "needs one output.*found polarization, dipole"),
        ({"polarization": P | {"per": "atom", "modulo": None}}, "which must be a structure's vector"),
        ({"polarization": P | {"unit": "Ang", "modulo": None}}, "polarization: expected a unit such as e"),
        ({"polarization": P | {"unit": ""}}, "`modulo: cell` goes with .* such as e.Ang; found the unit ''"),
        (
            {"polarization": P, "polarizability": A | {"tensor": "matrix"}},
            "needs outputs.polarizability ",
        ),
        ({"polarization": P, "polarizability": A | {"unit": "e"}}, "polarizability: expected a unit such as"),
        ({"polarization": P, "z": Z | {"unit": "Debye"}}, "in e.Ang, by positions cannot be in Debye"),
        (
            {"polarization": P, "z": Z | {"tensor": "symmetric"}},
            "`derivative_of` goes with `per: atom`, ",
        ),
        (
            {"polarization": P, "z": Z | {"derivative_of": "p"}},
            "`derivative_of: p` must .* there is none",
        ),
        (
            {"polarization": P, "z": Z, "y": Z | {"derivative_of": "z"}},
            "`derivative_of: z` must .* it is none",
        ),
    ],
)
def test_wrong_settings(outputs, message):
    with pytest.raises(ConfigError, match=message):
        make_config(NEQUIP | {"field": True}, outputs)


class InField(Calculator):
    """A potential in ASE, by `predict` alone."""

    implemented_properties = ("energy", "forces", *RESPONSE)

    def __init__(self, potential):
        super().__init__()
        self.potential, self.in_field = potential, None

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        found = at(self.potential, atoms, self.in_field)
        self.results = {"energy": found.energy.item(), "forces": found.forces.numpy()}
        for name, value in found.outputs.items():
            self.results[name] = value.numpy() if name in ("charges", "born_charges") else value.numpy()[0]


def test_splitting_is_that_of_forces_at_constant_displacement_field(crystal):
    """Γ of phonopy with the model's charges against forces in the depolarizing field, where D = 0 along q.

    There ε₀ F + P(u, F) · q / V = 0, so F = −P(u) · q / (ε₀ V + q · α · q) along q.
    """
    from phonopy import Phonopy

    potential = make_potential(NEQUIP | {"field": True}, RESPONSE)
    potential.outputs.shift.data[:, 4] = 0.3  # an isotropic part of α that makes ε > 0
    calculator, num = InField(potential), len(crystal)
    crystal.calc = calculator
    phonon = Phonopy(to_phonopy(crystal), np.eye(3), np.eye(3))
    phonon.nac_params = born_of("model", phonon, 1e-5, calculator)
    assert phonon.nac_params["dielectric"].trace() > 3
    along = np.array([0.0, 0.0, 1.0])  # q, Cartesian
    vacuum = 5.526349e-3 * crystal.get_volume()  # ε₀ V, e Å / V, times Å
    polarization, alpha = (
        crystal.calc.get_property(name, crystal) for name in ("polarization", "polarizability")
    )

    def force_constants(closed: bool) -> np.ndarray:
        """(3N, 3N) eV/Å², without (closed) and with the field; all atoms of a kind move with their images."""
        rows = np.zeros((3 * num, 3 * num))
        for column in range(3 * num):
            forces = []
            for sign in (1, -1):
                moved = crystal.copy()
                moved.calc = calculator
                moved.positions[column // 3, column % 3] += sign * STEP
                calculator.in_field = None
                if not closed:
                    change = moved.calc.get_property("polarization", moved) - polarization
                    calculator.in_field = -along * (change @ along) / (vacuum + along @ alpha @ along)
                calculator.reset()
                forces.append(moved.get_forces())
            rows[column] = -(forces[0] - forces[1]).ravel() / (2 * STEP)
        calculator.in_field = None
        return rows

    phonon.force_constants = force_constants(True).reshape(num, 3, num, 3).swapaxes(1, 2)
    scale = np.repeat(crystal.get_masses(), 3) ** -0.5
    expected = np.linalg.eigvalsh(_symmetric(force_constants(False) * np.outer(scale, scale)))
    q = crystal.cell.array @ along  # reduced
    phonon.run_qpoints([[0, 0, 0]], nac_q_direction=q, with_dynamical_matrices=True)
    found = np.linalg.eigvalsh(phonon.qpoints.dynamical_matrices[0])
    plain = np.linalg.eigvalsh(_symmetric(force_constants(True) * np.outer(scale, scale)))
    assert np.abs(found - plain).max() > 1e-3 * np.abs(plain).max()
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(plain).max())


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return 0.5 * (matrix + matrix.T)


def test_charges_of_models_without_them(crystal):
    from ase.calculators.lj import LennardJones
    from phonopy import Phonopy

    phonon = Phonopy(to_phonopy(crystal), np.eye(3), np.eye(3))
    with pytest.raises(ConfigError, match=r"--born model needs .* this one has no born_charges"):
        born_of("model", phonon, 1e-5, LennardJones())
