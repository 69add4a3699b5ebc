"""The physics every model must obey, in float64 (DESIGN: the contract every model passes).

Energies are of order 1 eV beside shifts of 10³ eV, so 1e-16 relative rounding is about 1e-12 eV; forces
are derivatives of the network alone. ``EXACT`` leaves two orders of magnitude for sums in another order.
"""

import dataclasses

import ase
import numpy as np
import pytest
import torch

from equipot.data import graph_from_atoms
from equipot.graph import collate, edge_vectors
from equipot.models.allegro import Allegro
from equipot.models.predict import predict

EXACT = 1e-10
SPECIES, CUTOFF = ["H", "C", "O"], 3.5


def close(a, b, tolerance=EXACT):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def random_rotation(seed: int) -> torch.Tensor:
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = torch.linalg.qr(matrix)[0]
    return q * torch.linalg.det(q)


def transformed(graph, matrix):
    return dataclasses.replace(graph, positions=graph.positions @ matrix.T, cell=graph.cell @ matrix.T)


@pytest.mark.parametrize("inversion", [False, True], ids=["rotation", "rotoinversion"])
def test_rotation_and_inversion(potential, graphs, inversion):
    matrix = random_rotation(3) * (-1 if inversion else 1)
    if inversion and getattr(potential.network, "parity", None) == "ignored":
        graph = graphs["molecule"]
        before, after = predict(potential, graph), predict(potential, transformed(graph, matrix))
        assert (after.energy - before.energy).abs().max() > 1e-4  # mirror images are told apart
        return
    for graph in graphs.values():
        before, after = predict(potential, graph), predict(potential, transformed(graph, matrix))
        close(after.atom_energies, before.atom_energies)
        close(after.forces, before.forces @ matrix.T)
        close(after.atom_virials, matrix @ before.atom_virials @ matrix.T)
        expected = matrix @ before.stress @ matrix.T
        torch.testing.assert_close(after.stress, expected, rtol=0, atol=EXACT, equal_nan=True)
        assert before.forces.abs().max() > 1e-3  # a model without forces would pass all of the above


def test_translation(potential, structures, graphs):
    """Atoms that leave the cell on one side are the same structure."""
    for name, atoms in structures.items():
        moved = atoms.copy()
        moved.translate([1.7, -23.1, 0.4])
        after = predict(potential, graph_from_atoms(moved, SPECIES, CUTOFF))
        before = predict(potential, graphs[name])
        close(after.atom_energies, before.atom_energies)
        close(after.forces, before.forces)


def test_permutation(potential, structures, graphs):
    for name, atoms in structures.items():
        order = np.random.default_rng(0).permutation(len(atoms))
        after = predict(potential, graph_from_atoms(atoms[order], SPECIES, CUTOFF))
        before = predict(potential, graphs[name])
        close(after.atom_energies, before.atom_energies[order])
        close(after.forces, before.forces[order])
        torch.testing.assert_close(after.stress, before.stress, rtol=0, atol=EXACT, equal_nan=True)


def test_batch_equals_single(potential, graphs):
    joined = predict(potential, collate(list(graphs.values())))
    single = [predict(potential, graph) for graph in graphs.values()]
    close(joined.energy, torch.cat([p.energy for p in single]))
    close(joined.forces, torch.cat([p.forces for p in single]))
    stress = torch.cat([p.stress for p in single])
    torch.testing.assert_close(joined.stress, stress, rtol=0, atol=EXACT, equal_nan=True)
    assert stress.isnan().any() and not stress.isnan().all()


def test_size_extensivity(potential, structures, graphs):
    """Two molecules far apart have twice the energy; so has a doubled cell, with the same stress."""
    molecule = structures["molecule"]
    far = molecule.copy()
    far.translate([50.0, 0, 0])
    pair = predict(potential, graph_from_atoms(molecule + far, SPECIES, CUTOFF))
    close(pair.energy, 2 * predict(potential, graphs["molecule"]).energy)

    crystal = structures["crystal with self-images"]
    doubled = predict(potential, graph_from_atoms(crystal.repeat((1, 2, 1)), SPECIES, CUTOFF))
    single = predict(potential, graphs["crystal with self-images"])
    close(doubled.energy, 2 * single.energy)
    close(doubled.forces, single.forces.repeat(2, 1))
    close(doubled.stress, single.stress)


def test_isolated_atom(potential):
    """Finite energy, no force; the same alone as beside another molecule out of reach."""
    alone = predict(potential, graph_from_atoms(ase.Atoms("C"), SPECIES, CUTOFF))
    beside = predict(
        potential, graph_from_atoms(ase.Atoms("CHH", [[0, 0, 0], [9, 0, 0], [9, 0, 0.8]]), SPECIES, CUTOFF)
    )
    assert alone.energy.isfinite().all()
    assert (alone.forces == 0).all() and (beside.forces[0] == 0).all()
    close(alone.atom_energies[0], beside.atom_energies[0])
    if isinstance(potential.network, Allegro):  # a sum over pairs: the reference energy exactly
        # Of the last level, or the only one.
        shift = potential.scale_shift.shift.reshape(-1, len(SPECIES))[-1]
        close(alone.energy, shift[SPECIES.index("C")].reshape(1))


def test_smooth_at_cutoff(potential):
    """Energy, forces and the force's slope are continuous when a neighbor crosses the cutoff.

    A carbon atom leaves the oxygen's sphere while the hydrogen still sees it. Across a window δ a smooth
    quantity changes in proportion to δ: ten times less in a window ten times narrower. A jump would not
    shrink. Factor 5 instead of 10 leaves room for curvature; 1e-9 for rounding at energies of 10³ eV.
    """

    def change(width: float, quantity) -> float:
        ends = []
        for x in (CUTOFF - width / 2, CUTOFF + width / 2):
            atoms = ase.Atoms("OHC", [[0, 0, 0], [0.95, 0, 0], [x, 0.0, 0.0]])
            ends.append(quantity(predict(potential, graph_from_atoms(atoms, SPECIES, CUTOFF))))
        return (ends[1] - ends[0]).abs().max().item()

    for quantity in (lambda p: p.energy, lambda p: p.forces):
        wide, narrow = change(1e-2, quantity), change(1e-3, quantity)
        assert narrow <= wide / 5 + 1e-9
    # Alone with the oxygen, the atom's interaction vanishes as the cube of the distance to the cutoff, with
    # X-PLOR's envelope as its square.
    forces = []
    for gap in (1e-1, 1e-2):
        pair = ase.Atoms("OC", [[0, 0, 0], [CUTOFF - gap, 0, 0]])
        forces.append(predict(potential, graph_from_atoms(pair, SPECIES, CUTOFF)).forces.abs().max().item())
    kink = getattr(potential.network, "kink", None)
    assert 0 < forces[1] < forces[0] / (30 if kink is None else 5)


def test_forces_are_minus_the_gradient(potential, structures):
    """Central differences with step h = 1e-4 Å: error h²/6·E''' + ε·10³ eV/h ≈ 1e-7 + 2e-9 eV/Å."""
    for atoms in structures.values():
        check_forces(potential, atoms)


def check_forces(potential, atoms, step=1e-4):
    forces = predict(potential, graph_from_atoms(atoms, SPECIES, CUTOFF)).forces
    for atom, axis in [(0, 0), (1, 1), (len(atoms) - 1, 2)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(predict(potential, graph_from_atoms(moved, SPECIES, CUTOFF)).energy.item())
        numerical = -(energies[0] - energies[1]) / (2 * step)
        assert forces[atom, axis].item() == pytest.approx(numerical, abs=2e-6, rel=1e-6)


def test_stress_is_the_strain_derivative(potential, structures):
    """Central differences in the strain, h = 1e-5: errors as for the forces, divided by the volume."""
    atoms, step = structures["crystal with self-images"], 1e-5
    stress = predict(potential, graph_from_atoms(atoms, SPECIES, CUTOFF)).stress[0]
    assert stress.abs().max() > 1e-4
    for a, b in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]:
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * step
            strain[b, a] += 0.5 * sign * step
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            energies.append(predict(potential, graph_from_atoms(strained, SPECIES, CUTOFF)).energy.item())
        numerical = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        assert stress[a, b].item() == pytest.approx(numerical, abs=2e-6, rel=1e-6)


def test_virials_add_up_and_forces_cancel(potential, graphs):
    for graph in graphs.values():
        prediction = predict(potential, graph)
        close(prediction.forces.sum(dim=0), torch.zeros(3, dtype=torch.float64))
        virial = prediction.atom_virials.sum(dim=0)
        close(virial, virial.T)  # no net torque: the energy is invariant under rotations


def test_atomic_virials_carry_the_heat(potential, structures):
    """For a strictly local model Σ W_i v_i = d/dt Σ r_i E_i − Σ v_i E_i = Σ r_i dE_i/dt, without pbc.

    E_i = m v_i²/2 + U_i, so dE_i/dt = F_i v_i + dU_i/dt; source: Fan et al., Phys. Rev. B 92, 094301 (2015),
    eq. 32. dU_i/dt: central differences of the atomic energies, all atoms moving along their velocities,
    h = 1e-5: error h²/6·U''' + ε·10³ eV/h ≈ 1e-9 + 2e-8, times coordinates of 3 Å, summed over 7 atoms.
    """
    if potential.num_exchanges > 0:
        pytest.skip("with message passing Σ W_i v_i is not the heat current")
    atoms, step = structures["molecule"], 1e-5
    velocities = np.random.default_rng(5).standard_normal(atoms.positions.shape)
    there, later, earlier = (
        predict(potential, graph_from_atoms(moved, SPECIES, CUTOFF))
        for moved in (atoms, _displaced(atoms, step * velocities), _displaced(atoms, -step * velocities))
    )
    potential_power = (later.atom_energies - earlier.atom_energies).numpy() / (2 * step)
    power = (there.forces.numpy() * velocities).sum(axis=1) + potential_power
    assert power.sum() == pytest.approx(0.0, abs=1e-6)  # energy is conserved
    carried = np.einsum("nab,nb->a", there.atom_virials.numpy(), velocities)
    np.testing.assert_allclose(carried, power @ atoms.positions, rtol=0, atol=1e-6)
    assert np.abs(carried).max() > 0.1


def _displaced(atoms: ase.Atoms, by: np.ndarray) -> ase.Atoms:
    moved = atoms.copy()
    moved.positions += by
    return moved


def test_ghosts_equal_periodic_images(potential, structures, graphs):
    """What LAMMPS does: images become atoms of their own that are not owned; nothing else changes.

    Ghosts within layers × cutoff, edges for ghost centers too, energy of owned atoms only, ghost forces
    added back to their owners.
    """
    atoms = structures["crystal with self-images"]
    reach = CUTOFF * (1 + potential.num_exchanges) + 0.1
    repeats = [int(np.ceil(reach / height)) for height in _heights(atoms.cell.array)]
    shifts = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in repeats], indexing="ij"), -1).reshape(-1, 3)
    shifts = np.concatenate([np.zeros((1, 3), int), shifts[np.abs(shifts).sum(1) > 0]])
    positions = np.concatenate([atoms.positions + shift @ atoms.cell.array for shift in shifts])
    cluster = ase.Atoms(list(atoms.symbols) * len(shifts), positions)
    graph = graph_from_atoms(cluster, SPECIES, CUTOFF)
    owned = torch.arange(len(cluster)) < len(atoms)
    energies, forces, virials = potential(edge_vectors(graph), graph.edge_index, graph.atom_types, owned)

    expected = predict(potential, graphs["crystal with self-images"])
    owner = torch.arange(len(cluster)) % len(atoms)
    close(energies[: len(atoms)], expected.atom_energies)
    assert (energies[len(atoms) :] == 0).all()
    close(torch.zeros(len(atoms), 3, dtype=torch.float64).index_add(0, owner, forces), expected.forces)
    at_owners = torch.zeros(len(atoms), 3, 3, dtype=torch.float64).index_add(0, owner, virials)
    close(at_owners, expected.atom_virials)


def _heights(cell: np.ndarray) -> np.ndarray:
    return 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)


def test_torchscript_equals_eager(potential, graphs):
    """The same operations in the same order; the executor may fuse, so rounding is allowed."""
    scripted = torch.jit.script(potential)
    for graph in graphs.values():
        for _ in range(3):  # the executor specialises on the first calls
            after = predict(scripted, graph)
        before = predict(potential, graph)
        close(after.atom_energies, before.atom_energies)
        close(after.forces, before.forces)
        close(after.atom_virials, before.atom_virials)


def test_parameter_gradients_of_a_force_loss(potential, graphs):
    """Training differentiates forces by the weights; checked against differences of the loss itself.

    Step 1e-5 in a weight of order 1: error ≈ h²·L'''/6 + ε·L/h, below 1e-6 relative to the largest.
    """
    graph = collate(list(graphs.values()))
    target = torch.ones_like(graph.positions)

    def loss():
        prediction = predict(potential, graph)
        return (prediction.forces - target).square().mean() + prediction.stress[1].square().sum()

    potential.train()
    parameters = [p for p in potential.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss(), parameters)
    largest = max(g.abs().max().item() for g in gradients)
    with torch.no_grad():
        for parameter, gradient in list(zip(parameters, gradients, strict=True))[::3]:
            index = int(gradient.abs().argmax())
            flat, original = parameter.view(-1), parameter.view(-1)[index].item()
            values = []
            for sign in (1, -1):
                flat[index] = original + sign * 1e-5
                values.append(loss().item())
            flat[index] = original
            numerical = (values[0] - values[1]) / 2e-5
            assert gradient.reshape(-1)[index].item() == pytest.approx(
                numerical, abs=1e-6 * largest, rel=1e-5
            )
    potential.eval()


def test_every_parameter_is_used(potential, graphs):
    """A weight without a gradient is dead weight, and an error under distributed training."""
    potential.train()
    prediction = predict(potential, collate(list(graphs.values())))
    (prediction.energy.sum() + prediction.forces.square().sum()).backward()
    unused = [n for n, p in potential.named_parameters() if p.requires_grad and p.grad is None]
    potential.zero_grad(set_to_none=True)
    potential.eval()
    assert unused == []


def test_a_flipped_sign_is_noticed(potential, structures, monkeypatch):
    """The checks above can fail: a gradient with one flipped component does not pass finite differences."""
    original = torch.autograd.grad

    def faulty(outputs, inputs, **options):
        (gradient,) = original(outputs, inputs, **options)
        return (gradient * torch.tensor([1.0, 1.0, -1.0], dtype=gradient.dtype),)

    monkeypatch.setattr(torch.autograd, "grad", faulty)
    with pytest.raises(AssertionError):
        check_forces(potential, structures["molecule"])
