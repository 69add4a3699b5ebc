"""Splits: drawn from a seed, disjoint, nested, saved and loaded."""

import json

import pytest

from equipot.data import Split, draw_split
from equipot.data.splits import follow_files, positions_of
from equipot.errors import DataError


@pytest.fixture
def frames(tmp_path):
    """30 frames of two files."""
    for file in ("a.xyz", "b.xyz"):
        (tmp_path / file).write_text(file)
    return [
        (str(tmp_path / file), i) for file, number in (("a.xyz", 20), ("b.xyz", 10)) for i in range(number)
    ]


def test_number_of_validation_frames(frames):
    split = draw_split(frames, 7)
    assert (len(split.train), len(split.validation), len(split.test)) == (23, 7, 0)
    assert set(split.train) | set(split.validation) == set(frames)
    assert not set(split.train) & set(split.validation)


@pytest.mark.parametrize(("fraction", "drawn"), [(0.1, 3), (0.5, 15), (0.001, 1)])
def test_fraction_of_validation_frames(frames, fraction, drawn):
    assert len(draw_split(frames, fraction).validation) == drawn


def test_seed_decides(frames):
    assert draw_split(frames, 7, seed=1) == draw_split(frames, 7, seed=1)
    assert draw_split(frames, 7, seed=1).validation != draw_split(frames, 7, seed=2).validation


def test_sets_are_in_file_order(frames):
    split = draw_split(frames, 7, train_frames=10)
    for ids in (split.train, split.validation):
        assert list(ids) == [i for i in frames if i in ids]


def test_training_subsets_are_nested_and_validation_is_common(frames):
    splits = [draw_split(frames, 7, train_frames=n) for n in (5, 10, 23)]
    assert [len(split.train) for split in splits] == [5, 10, 23]
    assert set(splits[0].train) < set(splits[1].train) < set(splits[2].train)
    assert len({split.validation for split in splits}) == 1


def test_given_validation_and_test_frames(frames):
    split = draw_split(frames[:20], frames[20:25], frames[25:])
    assert [len(ids) for ids in (split.train, split.validation, split.test)] == [20, 5, 5]
    assert split.validation[0] == frames[20]


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
        draw_split(frames, validation, train_frames=train_frames)


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (slice(0, 2), slice(0), r"a\.xyz, frame 0 .* the train and the validation set"),
        (slice(20, 25), slice(19, 20), r"a\.xyz, frame 19 .* the train and the test set"),
        (slice(20, 25), slice(24, 30), r"b\.xyz, frame 4 .* the validation and the test set"),
        (5, slice(0, 20), r"the (train|validation) and the test"),
    ],
)
def test_frame_in_two_sets(frames, validation, test, message):
    validation = frames[validation] if isinstance(validation, slice) else validation
    with pytest.raises(DataError, match=message):
        draw_split(frames[:20], validation, frames[test])


def test_save_and_load(frames, tmp_path):
    split = draw_split(frames[:25], 7, frames[25:], train_frames=12, seed=5)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split
    content = json.loads((tmp_path / "split.json").read_text())
    assert content["seed"] == 5
    assert content["test"] == {frames[25][0]: [5, 6, 7, 8, 9]}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 99}', '{"format": 1, "seed": 0}'])
def test_split_file_that_is_none(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match=r"split\.json"):
        Split.load(tmp_path / "split.json")


def test_missing_split_file(tmp_path):
    with pytest.raises(DataError, match="There is no split file"):
        Split.load(tmp_path / "split.json")


def test_positions(frames):
    split = draw_split(frames, 7)
    place = {frame: i for i, frame in enumerate(frames)}
    assert [frames[i] for i in positions_of(split.validation, place)] == list(split.validation)
    with pytest.raises(DataError, match=r"The split names frame 99 of c\.xyz"):
        positions_of([("c.xyz", 99)], place)


def test_changed_or_missing_file(frames, tmp_path):
    split = draw_split(frames, 7)
    follow_files(split, split.file_digests)
    (tmp_path / "a.xyz").write_text("other")
    with pytest.raises(DataError, match=r"a.xyz changed since the split was drawn"):
        follow_files(split, split.file_digests)
    (tmp_path / "a.xyz").unlink()
    with pytest.raises(DataError, match=r"a.xyz, which no longer exists"):
        follow_files(split, split.file_digests)
