"""equipot's own format: frames in eV and Å, and their neighbor lists, in one file that is mapped into memory.

    8 bytes  EQUIPOT1
    8 bytes  length H of the header, little-endian
    8 bytes  CRC-32 of the header, little-endian
    H bytes  header, JSON: key, cutoff, groups of frames; place, type, shape and CRC-32 of each array
             arrays, each at a multiple of 64 bytes; frame i has atoms atom_offset[i] to atom_offset[i + 1]

Opening it costs one pass over the bytes, for the checksums; nothing is parsed and no neighbor is searched.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipot.data.formats.base import Contents, Format
from equipot.data.frames import Edges, Frame
from equipot.data.neighbors import neighbor_list
from equipot.data.progress import track
from equipot.errors import DataError
from equipot.files import atomic_write

SUFFIX = ".equipot"
_MAGIC = b"EQUIPOT1"
_PREAMBLE = 24
_ALIGNMENT = 64
_UNITS = {"energy": "eV", "length": "Ang"}


def write_store(path: Path, frames: Sequence[Frame], key: str, cutoff: float | None = None) -> None:
    """Write frames, with their neighbor lists if a cutoff (Å) is given; the file is complete or absent.

    Args:
        path: the file, replaced if it exists.
        frames: their labels, weights and groups are kept; file names and numbers are not.
        key: what the file was made from; ``read_header`` gives it back.
        cutoff: Å.
    """
    arrays = _arrays(frames) | ({} if cutoff is None else _edges(frames, cutoff))
    groups = [frame.config_type for frame in frames]
    header: dict[str, Any] = {"key": key, "cutoff": cutoff, "num_frames": len(frames), "groups": groups}
    offset, header["arrays"] = 0, {}
    for name, array in arrays.items():
        header["arrays"][name] = {"dtype": array.dtype.str, "shape": array.shape, "offset": offset,
                                  "crc32": zlib.crc32(array.data if array.size else b"")}  # fmt: skip
        offset += array.nbytes + -array.nbytes % _ALIGNMENT
    text = json.dumps(header).encode()
    text += b" " * (-(_PREAMBLE + len(text)) % _ALIGNMENT)
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        stream.write(_MAGIC + len(text).to_bytes(8, "little") + zlib.crc32(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            stream.write(array.data if array.size else b"")
            stream.write(b"\0" * (-array.nbytes % _ALIGNMENT))


def read_header(path: Path) -> dict[str, Any]:
    """The header of a store, and under "start" where its arrays begin.

    Raises:
        DataError: not a store, or its header is damaged.
    """
    with path.open("rb") as stream:
        magic, *numbers = (stream.read(8) for _ in range(3))
        if magic != _MAGIC:
            raise DataError(
                f"{path} is not a store that this equipot reads: it begins with {magic!r}, not {_MAGIC!r}. "
                "Write it with `equipot data convert` under a new name."
            )
        length, checksum = (int.from_bytes(number, "little") for number in numbers)
        text = stream.read(min(length, path.stat().st_size))
    if not text or zlib.crc32(text) != checksum:
        raise DataError(
            f"{path}: the header is damaged or cut off (wrong checksum). Remove the file and write it again "
            "with `equipot data convert`."
        )
    return {**json.loads(text), "start": _PREAMBLE + length}


def _matches(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC) - 1) == _MAGIC[:-1]  # of any version


def _read(path: Path) -> Contents:
    header = read_header(path)
    arrays = _map(path, header)
    return Contents(_frames(arrays, header), header["num_frames"], _UNITS)


def _map(path: Path, header: Mapping[str, Any]) -> dict[str, NDArray]:
    # Copy on write: torch takes arrays that may be written to only, and the file stays as it is.
    content = np.memmap(path, dtype=np.uint8, mode="c", offset=header["start"])
    arrays = {}
    for name, place in header["arrays"].items():
        shape, dtype = tuple(place["shape"]), np.dtype(place["dtype"])
        end = place["offset"] + int(np.prod(shape)) * dtype.itemsize
        block = content[place["offset"] : end]
        if end > len(content) or zlib.crc32(block) != place["crc32"]:
            raise DataError(
                f"{path}: array '{name}' is "
                f"{'cut off' if end > len(content) else 'damaged (wrong checksum)'}. "
                "Write the store again with `equipot data convert`, or copy it again."
            )
        arrays[name] = np.asarray(block).view(dtype).reshape(shape)
    return arrays


def _frames(arrays: Mapping[str, NDArray], header: Mapping[str, Any]) -> Iterator[Frame]:
    for i in range(header["num_frames"]):
        atoms = slice(*arrays["atom_offset"][i : i + 2])
        edges = None
        if header["cutoff"] is not None:
            part = slice(*arrays["edge_offset"][i : i + 2])
            edges = Edges(header["cutoff"], arrays["edge_index"][:, part], arrays["edge_shift"][part])
        yield Frame(
            positions=arrays["positions"][atoms],
            cell=arrays["cell"][i],
            pbc=arrays["pbc"][i],
            atomic_numbers=arrays["atomic_numbers"][atoms].astype(np.int64),
            energy=float(arrays["energy"][i]) if arrays["has_energy"][i] else None,
            forces=arrays["forces"][atoms] if arrays["has_forces"][i] else None,
            stress=arrays["stress"][i] if arrays["has_stress"][i] else None,
            config_type=header["groups"][i],
            weight=float(arrays["weight"][i]),
            edges=edges,
        )


def _arrays(frames: Sequence[Frame]) -> dict[str, NDArray]:
    def joined(values: list, dtype, shape: tuple[int, ...]) -> NDArray:
        found = [np.asarray(value, dtype=dtype).reshape(-1, *shape) for value in values]
        return np.ascontiguousarray(np.concatenate(found)) if found else np.empty((0, *shape), dtype)

    def label(kind: str, shape: tuple[int, ...], per_atom: bool = False) -> dict[str, NDArray]:
        values = [getattr(frame, kind) for frame in frames]
        empty = [np.zeros((frame.num_atoms if per_atom else 1, *shape)) for frame in frames]
        filled = [e if v is None else v for v, e in zip(values, empty, strict=True)]
        return {kind: joined(filled, "<f8", shape), f"has_{kind}": np.array([v is not None for v in values])}

    return {
        "atom_offset": _offsets([frame.num_atoms for frame in frames]),
        "positions": joined([frame.positions for frame in frames], "<f8", (3,)),
        "atomic_numbers": joined([frame.atomic_numbers for frame in frames], "u1", ()),
        "cell": joined([frame.cell for frame in frames], "<f8", (3, 3)),
        "pbc": joined([frame.pbc for frame in frames], bool, (3,)),
        "weight": np.array([frame.weight for frame in frames], dtype="<f8"),
        **label("energy", ()),
        **label("forces", (3,), per_atom=True),
        **label("stress", (3, 3)),
    }


def _edges(frames: Sequence[Frame], cutoff: float) -> dict[str, NDArray]:
    found = [
        neighbor_list(frame.positions, frame.cell, frame.pbc, cutoff)
        for frame in track(frames, "neighbor lists", len(frames))
    ]
    index = np.concatenate([index for index, _ in found], axis=1).astype("<i4")
    shift = np.concatenate([shift for _, shift in found]).astype("<i2")
    offset = _offsets([len(shift) for _, shift in found])
    return {"edge_offset": offset, "edge_index": index, "edge_shift": shift}


def _offsets(sizes: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype("<i8")


FORMAT = Format("store", "an equipot store", _matches, _read)
