"""Structures that stand for what a model knows, and its predictions for them."""

import ase.io
import numpy as np
import pytest
import torch
from ase.data import chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list

from equipot.config import config_from_dict
from equipot.data.dataset import graph_from_atoms
from equipot.deploy.replay import predict_replay, replay_structures, replay_text
from equipot.models.build import build_potential
from equipot.models.predict import predict

METALS = [s for s in chemical_symbols[1:84] if s not in "H C N O F P S Cl As Se Br Te I".split()]  # noqa: SIM905


def test_every_element_occurs_and_the_kinds_are_mixed():
    frames = replay_structures([*METALS, "O", "H", "Cl"], 80)
    found = {symbol for atoms in frames for symbol in atoms.symbols}
    assert found == {*METALS, "O", "H", "Cl"}
    kinds = [atoms.info["config_type"] for atoms in frames]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "crystal": 48, "slab": 8, "molecule": 8, "cluster": 8, "liquid": 8,
    }  # fmt: skip
    assert {len(set(a.symbols)) for a in frames if a.info["config_type"] == "crystal"} == {1, 2, 3}
    assert all(
        atoms.pbc.all() == (atoms.info["config_type"] in ("crystal", "slab", "liquid")) for atoms in frames
    )


def test_same_arguments_give_the_same_structures():
    first, again, other = (replay_text(replay_structures(METALS, 20, seed)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("species", [["Si"], ["H", "O"], ["As"], ["Cu", "Zr"], ["He"]], ids="".join)
def test_few_elements(species):
    frames = replay_structures(species, 15)
    assert len(frames) == 15 and {s for atoms in frames for s in atoms.symbols} == set(species)


def test_distances_are_those_of_bonds():
    """By covalent radii; H2 and weakly bound atoms are farther apart."""
    for atoms in replay_structures([*METALS, "C", "H", "O", "N"], 120):
        first, second, distance = neighbor_list("ijd", atoms, 7.0)
        radii = covalent_radii[atoms.numbers]
        closest = (distance / (radii[first] + radii[second])).min()
        noble = {"He", "Ne", "Ar", "Kr", "Xe"} & set(atoms.symbols)
        assert 0.75 < closest < (6.0 if noble else 1.5), atoms


def test_labels_are_predictions(tmp_path):
    model = {"type": "nequip", "cutoff": 4.0, "l_max": 1, "layers": 1, "channels": 2, "dtype": "float64"}
    config = config_from_dict({"data": {"train": "none.xyz"}, "model": model})
    torch.manual_seed(0)
    facts = {"avg_num_neighbors": 9.0, "atomic_energies": [-1.0, -2.0, -3.0], "force_rms": 1.0}
    potential = build_potential(config.model, species=["O", "Si", "Cu"], levels=[], **facts).eval()
    frames = predict_replay(potential, replay_structures(["O", "Si", "Cu"], 6))
    (tmp_path / "replay.xyz").write_text(replay_text(frames))
    for atoms in ase.io.read(tmp_path / "replay.xyz", ":"):
        direct = predict(potential, graph_from_atoms(atoms, potential.species, 4.0))
        assert atoms.get_potential_energy() == pytest.approx(float(direct.energy), rel=1e-12)
        # the file has eight digits behind the point
        np.testing.assert_allclose(atoms.get_forces(), direct.forces, rtol=0, atol=6e-9)
        if atoms.pbc.all():
            stress = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(stress, direct.stress[0], rtol=0, atol=1e-12)
