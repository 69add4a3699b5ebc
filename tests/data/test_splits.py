"""Splits: drawn from a seed, disjoint, nested, saved and loaded."""

import json

import pytest

from equipot.data import Split, select, split_frames
from equipot.data.splits import check_unchanged, shared_structures
from equipot.errors import DataError


@pytest.fixture
def frames(make_frame, tmp_path):
    """30 frames of two files, each at its own distance."""
    made = []
    for file, number in (("a.xyz", 20), ("b.xyz", 10)):
        (tmp_path / file).write_text(file)
        for i in range(number):
            positions = [[0, 0, 0], [0, 0, 1 + 0.01 * len(made)]]
            made.append(make_frame("H2", positions, file=str(tmp_path / file), index=i))
    return made


def test_number_of_validation_frames(frames):
    split = split_frames(frames, 7)
    assert (len(split.train), len(split.validation), len(split.test)) == (23, 7, 0)
    assert set(split.train) | set(split.validation) == {(f.file, f.index) for f in frames}
    assert not set(split.train) & set(split.validation)


@pytest.mark.parametrize(("fraction", "drawn"), [(0.1, 3), (0.5, 15), (0.001, 1)])
def test_fraction_of_validation_frames(frames, fraction, drawn):
    assert len(split_frames(frames, fraction).validation) == drawn


def test_seed_decides(frames):
    assert split_frames(frames, 7, seed=1) == split_frames(frames, 7, seed=1)
    assert split_frames(frames, 7, seed=1).validation != split_frames(frames, 7, seed=2).validation


def test_sets_are_in_file_order(frames):
    order = [(f.file, f.index) for f in frames]
    split = split_frames(frames, 7, train_frames=10)
    for ids in (split.train, split.validation):
        assert list(ids) == [i for i in order if i in ids]


def test_training_subsets_are_nested_and_validation_is_common(frames):
    splits = [split_frames(frames, 7, train_frames=n) for n in (5, 10, 23)]
    assert [len(split.train) for split in splits] == [5, 10, 23]
    assert set(splits[0].train) < set(splits[1].train) < set(splits[2].train)
    assert len({split.validation for split in splits}) == 1


def test_given_validation_and_test_frames(frames):
    split = split_frames(frames[:20], frames[20:25], frames[25:])
    assert [len(ids) for ids in (split.train, split.validation, split.test)] == [20, 5, 5]
    assert split.validation[0] == (frames[20].file, 0)


@pytest.mark.parametrize(
    ("validation", "train_frames", "message"),
    [
        (30, None, "No frame is left to train on: 30 of the 30"),
        (31, None, "data.validation asks for 31 frames, but the training files have 30"),
        (1.5, None, "a fraction must lie between 0 and 1"),
        (10, 21, "data.train_frames asks for 21 training frames, but 20 are left of the 30"),
    ],
)
def test_not_enough_frames(frames, validation, train_frames, message):
    with pytest.raises(DataError, match=message):
        split_frames(frames, validation, train_frames=train_frames)


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (slice(0, 2), slice(0), "train and the validation"),
        (5, slice(20, 30), "(train|validation) and the test"),
    ],
)
def test_frame_in_two_sets(frames, validation, test, message):
    validation = frames[validation] if isinstance(validation, slice) else validation
    with pytest.raises(DataError, match=message):
        split_frames(frames, validation, frames[test])


def test_save_and_load(frames, tmp_path):
    split = split_frames(frames[:25], 7, frames[25:], train_frames=12, seed=5)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split
    content = json.loads((tmp_path / "split.json").read_text())
    assert content["seed"] == 5
    assert content["test"] == {frames[25].file: [5, 6, 7, 8, 9]}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 99}', '{"format": 1, "seed": 0}'])
def test_split_file_that_is_none(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match=r"split\.json"):
        Split.load(tmp_path / "split.json")


def test_missing_split_file(tmp_path):
    with pytest.raises(DataError, match="There is no split file"):
        Split.load(tmp_path / "split.json")


def test_select(frames):
    split = split_frames(frames, 7)
    assert [(f.file, f.index) for f in select(frames, split.validation)] == list(split.validation)
    with pytest.raises(DataError, match=r"The split names frame 99 of c\.xyz"):
        select(frames, [("c.xyz", 99)])


def test_changed_or_missing_file(frames, tmp_path):
    split = split_frames(frames, 7)
    check_unchanged(split)
    (tmp_path / "a.xyz").write_text("other")
    with pytest.raises(DataError, match=r"a.xyz changed since the split was drawn"):
        check_unchanged(split)
    (tmp_path / "a.xyz").unlink()
    with pytest.raises(DataError, match=r"a.xyz, which no longer exists"):
        check_unchanged(split)


def test_shared_structures(make_frame):
    one = make_frame("H2", [[0, 0, 0], [0, 0, 0.7]])
    same = make_frame("H2", [[0, 0, -1e-6], [0, 0, 0.7 + 1e-6]], index=1)
    other = make_frame("HO", [[0, 0, 0], [0, 0, 0.7]], index=2)
    assert shared_structures([one], [same, other]) == [same]
