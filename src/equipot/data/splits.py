"""Which frames are trained on, validated on and tested on."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipot.data.digests import file_digest
from equipot.errors import DataError
from equipot.files import atomic_write

FrameId = tuple[str, int]  # file, number of the frame in it from 0

_FORMAT = 1


@dataclass(frozen=True)
class Split:
    """Frames by file and number, disjoint, each set in file order; and a digest of every file."""

    train: tuple[FrameId, ...]
    validation: tuple[FrameId, ...]
    test: tuple[FrameId, ...] = ()
    seed: int = 0
    file_digests: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write as JSON, the frame numbers grouped by file."""
        content = {
            "format": _FORMAT,
            "seed": self.seed,
            "files": self.file_digests,
            **{name: _grouped(getattr(self, name)) for name in ("train", "validation", "test")},
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content) + "\n")

    @staticmethod
    def load(path: str | Path) -> "Split":
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing or is not a split of this format.
        """
        try:
            content = json.loads(Path(path).read_text())
            if content["format"] != _FORMAT:
                raise DataError(f"{path} has split format {content['format']}; this equipot reads {_FORMAT}.")
            sets = {
                name: tuple((file, int(i)) for file, indices in content[name].items() for i in indices)
                for name in ("train", "validation", "test")
            }
            return Split(seed=int(content["seed"]), file_digests=dict(content["files"]), **sets)
        except FileNotFoundError as error:
            raise DataError(f"There is no split file {path}.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is not a split written by equipot: {type(error).__name__}: {error}."
            ) from None


def draw_split(
    frames: Sequence[FrameId],
    validation: int | float | Sequence[FrameId],
    test: Sequence[FrameId] = (),
    train_frames: int | None = None,
    seed: int = 0,
    digest: Callable[[str], str] | None = None,
) -> Split:
    """Draw a split from ``frames``; the same arguments give the same split.

    The validation frames do not depend on ``train_frames``, and a smaller training set is part of a larger
    one with the same seed, so that learning curves compare like with like.

    Args:
        frames: the frames of the training files.
        validation: how many of them to validate on, or which fraction of them, or other frames given for it.
        test: frames given for the test.
        train_frames: how many of the remaining frames to train on; None for all.
        seed: of the drawing.
        digest: of a file; None: ``file_digest``.

    Raises:
        DataError: there are not enough frames, or a frame is in two of the sets.
    """
    order = np.random.default_rng(seed).permutation(len(frames))
    drawn = 0
    if isinstance(validation, int | float):
        drawn = _number_to_draw(validation, len(frames))
        validation = [frames[i] for i in np.sort(order[:drawn])]
    remaining = len(frames) - drawn
    if train_frames is not None and not 1 <= train_frames <= remaining:
        raise DataError(
            f"data.train_frames asks for {train_frames} training frames, but {remaining} are left of the "
            f"{len(frames)} in the training files ({drawn} are for validation)."
        )
    if remaining < 1:
        raise DataError(
            f"No frame is left to train on: {drawn} of the {len(frames)} frames that are not isolated atoms "
            "are for validation. Give more frames, or a smaller data.validation."
        )
    chosen = order[drawn:][: train_frames or remaining]
    files = dict.fromkeys(file for file, _ in chain(frames, validation, test))
    split = Split(
        train=tuple(frames[i] for i in np.sort(chosen)),
        validation=tuple(validation),
        test=tuple(test),
        seed=seed,
        file_digests={file: (digest or file_digest)(file) for file in files},
    )
    _check_disjoint(split)
    return split


def positions_of(ids: Iterable[FrameId], place: Mapping[FrameId, int]) -> NDArray[np.int64]:
    """Where each of ``ids`` is, looked up in ``place``.

    Raises:
        DataError: one is not there.
    """
    found = []
    for file, index in ids:
        if (file, index) not in place:
            raise DataError(f"The split names frame {index} of {file}, which is not among the frames read.")
        found.append(place[file, index])
    return np.array(found, dtype=np.int64)


def follow_files(split: Split, files: Iterable[str], digest: Callable[[str], str] | None = None) -> Split:
    """A saved split under the names that its files have now, after checking that they hold what they held.

    A file is found by its name; one that has moved, by its content.

    Args:
        split: as saved.
        files: that are read now.
        digest: of a file, as in ``draw_split``.

    Raises:
        DataError: a file changed or is missing.
    """
    digest = digest or file_digest
    now = dict.fromkeys(files)
    moved = [file for file in now if file not in split.file_digests]
    names = {}
    for file, before in split.file_digests.items():
        if file in now and Path(file).exists():
            if digest(file) != before:
                raise DataError(
                    f"{file} changed since the split was drawn, so its frame numbers may name other "
                    "structures. Restore the file, or start a new run."
                )
            names[file] = file
            continue
        alike = [new for new in moved if digest(new) == before]
        if not alike:
            gone = "" if Path(file).exists() else ", which no longer exists"
            raise DataError(
                f"The split was drawn from {file}{gone}; none of the files that section data names now has "
                f"its content: {', '.join(moved) or 'all are those of before'}. Restore the file, or start a "
                "new run."
            )
        # Of copies that are equal to the last bit, the one of the same name.
        names[file] = min(alike, key=lambda new: Path(new).name != Path(file).name)
        moved.remove(names[file])
    sets = {
        name: tuple((names[file], index) for file, index in getattr(split, name))
        for name in ("train", "validation", "test")
    }
    return Split(seed=split.seed, file_digests={names[f]: d for f, d in split.file_digests.items()}, **sets)


def _number_to_draw(validation: int | float, available: int) -> int:
    if isinstance(validation, float):
        if not 0 < validation < 1:
            raise DataError(f"data.validation = {validation}: a fraction must lie between 0 and 1.")
        return max(1, round(validation * available))
    if not 1 <= validation <= available:
        raise DataError(
            f"data.validation asks for {validation} frames, but the training files have {available} that are "
            "not isolated atoms."
        )
    return validation


def _check_disjoint(split: Split) -> None:
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = set(getattr(split, one)) & set(getattr(split, other))
        if shared:
            file, index = min(shared)
            raise DataError(
                f"{file}, frame {index} (the first is 0), is in both the {one} and the {other} set. List "
                "each file under one of data.train, data.validation and data.test only."
            )


def _grouped(ids: Iterable[FrameId]) -> dict[str, list[int]]:
    grouped: dict[str, list[int]] = {}
    for file, index in ids:
        grouped.setdefault(file, []).append(index)
    return grouped
