"""Structures that a model knows nothing of: said once, or refused, with the IDs of the atoms."""

import json
import logging
import re

import numpy as np
import pytest
from lammps_input import oxide, rewrite, setup, write_data

from equipot import EquipotCalculator


def with_distances(model, target, shortest):
    """A copy of a model file that says what its training set has, Å by pair of elements."""

    def change(name: str, _) -> bytes | None:
        return json.dumps(shortest).encode() if name.endswith("extra/shortest_distances") else None

    return rewrite(model, target, change)


def closest(atoms, one: str, other: str) -> float:
    distances = atoms.get_all_distances(mic=True) + 99 * np.eye(len(atoms))
    symbols = np.array(atoms.get_chemical_symbols())
    return distances[np.ix_(symbols == one, symbols == other)].min()


def warnings(result) -> list[str]:
    return [line.partition("equipot: ")[2] for line in result.output.splitlines() if "closer than" in line]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", ["nequip", "allegro"])
def test_closer_than_in_training(lammps, model_file, tmp_path, caplog, name, ranks):
    """Once for each pair of elements in all runs; ASE says the same of the same atoms."""
    atoms = oxide()
    write_data(tmp_path / "atoms.data", atoms)
    seen = {"O-Si": closest(atoms, "O", "Si") + 0.01, "O-O": closest(atoms, "O", "O") + 0.01}
    model = with_distances(model_file(name), tmp_path / "watched.pt", seen)
    script = setup(model) + "velocity all create 600 1 loop geom\nfix 1 all nve\nrun 3\nrun 3\n"
    said = warnings(lammps(script, ranks))
    found = {re.search(r"\((.*?)\)", line)[1]: line for line in said}
    assert len(said) == len(found) == 3
    assert "shortest in the training set: no such pair is within the cutoff" in found["Si-Si"]
    for pair, distance in seen.items():
        expected = f"are {distance - 0.01:.3f} A apart; shortest in the training set: {distance:.3f} A"
        assert expected in found[pair]
    with caplog.at_level(logging.WARNING, "equipot"):
        EquipotCalculator(model, device="cpu").get_potential_energy(atoms)
    in_ase = [record.message.replace("Å", "A").removesuffix(".") for record in caplog.records]
    assert sorted(map(without_order, said)) == sorted(without_order(line, 1) for line in in_ase)


def without_order(message: str, first: int = 0) -> tuple[str, list[int]]:
    """The text, and the two atoms, which ASE counts from 0."""
    message = message.partition(" (src")[0].partition(" (/")[0]  # where LAMMPS says it
    pattern = r"atoms (\d+) and (\d+)"
    return re.sub(pattern, "", message).lower(), sorted(
        int(n) + first for n in re.search(pattern, message).groups()
    )


def test_nothing_is_said_without_a_reason(lammps, model_file, tmp_path):
    """Of files that do not know what they were trained on, and of distances that were seen."""
    atoms = oxide()
    write_data(tmp_path / "atoms.data", atoms)
    assert warnings(lammps(setup(model_file("allegro")) + "run 0\n", 2)) == []
    seen = {pair: closest(atoms, *pair.split("-")) for pair in ("O-Si", "O-O", "Si-Si")}
    model = with_distances(model_file("allegro"), tmp_path / "watched.pt", seen)
    assert warnings(lammps(setup(model) + "run 0\n", 2)) == []


def test_an_ensemble_has_seen_what_any_member_has(lammps, model_file, tmp_path):
    atoms = oxide()
    write_data(tmp_path / "atoms.data", atoms)
    near = closest(atoms, "O", "Si") - 0.01
    files = [
        with_distances(model_file("allegro"), tmp_path / "one.pt", {"O-Si": near}),
        with_distances(model_file("allegro"), tmp_path / "two.pt", {"O-Si": 3.0, "O-O": 2.0}),
        model_file("allegro"),
    ]
    pair = f"pair_style equipot\npair_coeff * * {' '.join(map(str, files))} O Si\n"
    (only,) = warnings(lammps(setup(files[0], pair=pair) + "run 0\n", 2))
    assert "(Si-Si)" in only


def test_atoms_are_named_by_their_ids(lammps, model_file, tmp_path):
    """Not by their place in the memory of some rank."""
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(model_file("nequip")) + "group gone id 1:20\ndelete_atoms group gone compress no\n"
    close = "create_atoms 1 single 6 6.9 6\ncreate_atoms 2 single 6.05 6.9 6\nrun 0\n"
    result = lammps(script + close, 2, expect=None)
    assert result.returncode != 0
    assert "atoms 65 and 66 are 0.05 A apart; expected at least 0.1" in result.output

    def broken(name: str, content: bytes) -> bytes | None:
        return content[:-4000] + b"\xff" * 4000 if name.endswith("weights.safetensors") else None

    rewrite(model_file("allegro"), tmp_path / "broken.pt", broken)
    script = setup("broken.pt").replace("pair_style equipot", "pair_style equipot skip_check")
    result = lammps(script + "run 0\n", expect=None)
    assert result.returncode != 0 and "results are not finite" in result.output
