"""Weights carried over to other elements and levels of theory: the function stays, where it should."""

import ase
import pytest
import torch
from ase.build import molecule

from equipot.config import AllegroConfig, AllegroDenseConfig, NequIPConfig
from equipot.data import graph_from_atoms
from equipot.graph import collate
from equipot.models.build import build_potential
from equipot.models.predict import predict
from equipot.models.transfer import transfer

CUTOFF = 3.5
SMALL = {"cutoff": CUTOFF, "dtype": "float64", "l_max": 1, "layers": 2, "channels": 4}
MODELS = {
    "nequip": NequIPConfig(type="nequip", radial_hidden=(8,), **SMALL),
    "nequip, shared": NequIPConfig(
        type="nequip",
        radial_hidden=(8,),
        self_connection="shared",
        biases=True,
        trainable_bessel=True,
        **SMALL,
    ),
    "nequip, readout network": NequIPConfig(
        type="nequip", radial_hidden=(8,), readout_hidden=(5,), element_factors=True, zbl="cutoff", **SMALL
    ),
    "allegro": AllegroConfig(type="allegro", scalar_channels=8, two_body_hidden=(8,), **SMALL),
    "allegro_dense": AllegroDenseConfig(type="allegro_dense", scalar_channels=8, **SMALL),
}
SHIFT = [-13.6, -1030.0, -2040.0]
# Energies of 10³ eV carry 1e-12 eV of rounding; Allegro's first layer is rescaled, which rounds.
EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


def make(kind, species, shift, levels=()):
    torch.manual_seed(1)
    potential = build_potential(MODELS[kind], species, 6.0, shift, 1.3, levels).eval()
    for name, weight in potential.named_parameters():
        if name.endswith(".bias"):  # which are zero at first
            torch.nn.init.normal_(weight)
    return potential


def carried_over(before, kind, species, shift, levels=(), origins=(0,)):
    torch.manual_seed(2)  # what is not carried over is not what it was by accident
    after = build_potential(MODELS[kind], species, 6.0, shift, 1.3, levels).eval()
    rows = [before.species.index(s) if s in before.species else None for s in species]
    after.load_state_dict(transfer(before.state_dict(), MODELS[kind].type, rows, origins))
    return after


def results(potential, atoms, level=None):
    graph = graph_from_atoms(atoms, potential.species, CUTOFF)
    if level is not None:
        graph = with_level(graph, level)
    return predict(potential, graph)


def with_level(graph, level):
    return type(graph)(**{**vars(graph), "level": torch.tensor([level])})


@pytest.mark.parametrize("species", [["O", "N", "H", "C"], ["H", "S", "O", "N"], ["H", "O"]])
def test_known_elements_keep_their_energies_and_forces(kind, species):
    before = make(kind, ["H", "C", "O"], SHIFT)
    after = carried_over(before, kind, species, [0.0] * len(species))
    water = molecule("H2O")
    old, new = results(before, water), results(after, water)
    torch.testing.assert_close(new.atom_energies, old.atom_energies, **EXACT)
    torch.testing.assert_close(new.forces, old.forces, **EXACT)
    assert old.forces.abs().max() > 1e-3


def test_a_new_element_is_the_mean_of_the_others(kind):
    before = make(kind, ["H", "C", "O"], SHIFT)
    after = carried_over(before, kind, ["H", "C", "O", "S"], [0.0] * 4)
    assert after.scale_shift.shift[3].item() == pytest.approx(sum(SHIFT) / 3)
    sulfide = ase.Atoms("SH2", molecule("H2O").positions)
    forces = results(after, sulfide).forces
    assert forces.isfinite().all() and 1e-3 < forces.abs().max() < 1e3


def test_each_level_alone_gives_what_it_gives_among_others(kind):
    shifts = [SHIFT, [energy - 5.0 for energy in SHIFT]]
    both = make(kind, ["H", "C", "O"], shifts, ["pbe", "pbe0"])
    frames = [molecule("CH3CH2OH"), molecule("H2O")]
    graphs = [graph_from_atoms(atoms, both.species, CUTOFF) for atoms in frames]
    mixed = predict(both, collate([with_level(graphs[0], 1), with_level(graphs[1], 0)]))
    forces = []
    for graph, level in zip(graphs, (1, 0), strict=True):
        alone = carried_over(both, kind, both.species, SHIFT, ["any"], [level])
        forces.append(predict(alone, graph).forces)
        energy = predict(alone, graph).energy
        torch.testing.assert_close(mixed.energy[1 - level : 2 - level], energy, **EXACT)
    torch.testing.assert_close(mixed.forces, torch.cat(forces), **EXACT)
    other = carried_over(both, kind, both.species, SHIFT, ["any"], [0])
    assert (predict(other, graphs[0]).forces - forces[0]).abs().max() > 1e-3


def test_a_level_added_to_a_model_of_one_starts_from_it(kind):
    before = make(kind, ["H", "C", "O"], SHIFT)
    after = carried_over(before, kind, before.species, [SHIFT, SHIFT], ["old", "new"], [0, 0])
    for level in (0, 1):
        found = results(after, molecule("CH3CH2OH"), level)
        expected = results(before, molecule("CH3CH2OH"))
        torch.testing.assert_close(found.energy, expected.energy, **EXACT)
        torch.testing.assert_close(found.forces, expected.forces, **EXACT)


def test_a_level_is_never_guessed(kind):
    both = make(kind, ["H", "C", "O"], [SHIFT, SHIFT], ["pbe", "pbe0"])
    for potential in (both, torch.jit.script(both)):
        with pytest.raises(Exception, match="levels of theory: pbe, pbe0"):
            predict(potential, graph_from_atoms(molecule("H2O"), both.species, CUTOFF))
    one = make(kind, ["H", "C", "O"], SHIFT, ["pbe"])
    with pytest.raises(ValueError, match="has only one"):
        results(one, molecule("H2O"), level=0)


def test_a_strictly_local_model_in_parts_knows_each_atoms_level():
    both = make("allegro", ["H", "C", "O"], [SHIFT, [0.0, 0.0, 0.0]], ["pbe", "pbe0"])
    graphs = [graph_from_atoms(molecule(name), both.species, CUTOFF) for name in ("CH3CH2OH", "CH3OH")]
    graph = collate([with_level(graphs[0], 1), with_level(graphs[1], 0)])
    whole = predict(both, graph)
    both.edges_in_flight = {"cpu": 20}
    parts = predict(both, graph)
    torch.testing.assert_close(parts.atom_energies, whole.atom_energies, **EXACT)
    torch.testing.assert_close(parts.forces, whole.forces, **EXACT)
