"""Folders of members, their standard deviations, and what does not belong together."""

import numpy as np
import pytest
from standin import write_standin

from equipot.deploy.ensemble import deviation, find_members, load_members
from equipot.deploy.load import load_deployed
from equipot.errors import ConfigError, ModelFileError


@pytest.fixture
def folder(tmp_path):
    def make(*names):
        for name in names:
            (tmp_path / name).mkdir()
        return tmp_path

    return make


def test_members_are_found_in_the_order_of_their_numbers(folder):
    path = folder(*(f"member_{i}" for i in range(11)), "plots")
    assert [member.name for member in find_members(path)] == [f"member_{i}" for i in range(11)]


def test_what_is_no_ensemble_has_no_members(folder, tmp_path):
    assert find_members(folder("checkpoints")) == []
    assert find_members(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("names", "words"),
    [(("member_0", "member_2"), "member_0, member_2, but no member_1"), (("member_0",), "one member only")],
)
def test_part_of_an_ensemble_is_refused(folder, names, words):
    with pytest.raises(ModelFileError, match=words):
        find_members(folder(*names))


def test_deviation_is_that_of_numbers_and_of_vectors():
    assert deviation(np.array([[1.0, 5.0], [3.0, 5.0]])) == pytest.approx([np.sqrt(2), 0.0])
    vectors = np.array([[[1.0, 0, 0]], [[-1.0, 0, 0]], [[0, 2.0, 0]]])
    mean = vectors.mean(axis=0)
    expected = np.sqrt((np.linalg.norm(vectors - mean, axis=2) ** 2).sum() / 2)
    assert deviation(vectors) == pytest.approx([expected])


def test_members_must_agree_on_species_and_cutoff(tmp_path):
    write_standin(tmp_path / "a.pt")
    write_standin(tmp_path / "b.pt", cutoff=4.5)
    assert len(load_members([tmp_path / "a.pt", tmp_path / "a.pt"], "cpu")) == 2
    assert len(load_members(load_deployed(tmp_path / "a.pt", "cpu"), "cpu")) == 1
    with pytest.raises(
        ModelFileError, match=r"b\.pt \(H C O, 4\.5 Å\) are not those of .*a\.pt \(H C O, 4 Å\)"
    ):
        load_members([tmp_path / "a.pt", tmp_path / "b.pt"], "cpu")
    with pytest.raises(ModelFileError, match="list is empty"):
        load_members([], "cpu")
    for wrong in (None, [None], 3):
        with pytest.raises(ConfigError, match="Expected a model file, a folder, or a list"):
            load_members(wrong, "cpu")
