"""Text and bytes of files that may be packed, in the encodings that programs write."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO, TextIO

from equipot.errors import DataError

PACKED = {".gz": (b"\x1f\x8b", gzip.open), ".bz2": (b"BZh", bz2.open), ".xz": (b"\xfd7zXZ\0", lzma.open)}
_OTHER = {b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z"}
_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
codecs.register_error("as latin-1", lambda e: (e.object[e.start : e.end].decode("latin-1"), e.end))
# What unpacking runs into where a file is cut short or damaged.
UNPACKING_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, UnicodeError)


def unpacked_name(path: Path) -> str:
    """The name of a file in lower case, without .gz, .bz2 or .xz."""
    name = path.name.lower()
    return next((name.removesuffix(ending) for ending in PACKED if name.endswith(ending)), name)


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its content is packed by gzip, bzip2 or xz.

    Raises:
        DataError: packed by something else.
    """
    with path.open("rb") as stream:
        head = stream.read(8)
    for magic, name in _OTHER.items():
        if head.startswith(magic):
            raise DataError(f"{path} is packed with {name}. Unpack it, or pack it with gzip, bzip2 or xz.")
    return next((opener for magic, opener in PACKED.values() if head.startswith(magic)), open)(path, "rb")


def open_text(path: Path) -> TextIO:
    """The text of a file: UTF-8, or what its byte-order mark says; bytes that are neither are Latin-1.

    Raises:
        DataError: packed by something unknown; UTF-16 without a mark, or no text at all.
    """
    try:
        with open_bytes(path) as stream:
            head = stream.read(64)
    except UNPACKING_ERRORS as error:
        raise DataError(
            f"{path} cannot be unpacked: {error}. It is truncated or damaged; copy it again."
        ) from error
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    if encoding.startswith("utf-8") and b"\0" in head:
        raise DataError(
            f"{path} is not text in UTF-8: there are zero bytes in its first {len(head)}. If it is UTF-16, "
            "write it as UTF-8 (iconv -f UTF-16LE -t UTF-8); else it is of another format than its name says."
        )
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors="as latin-1")
