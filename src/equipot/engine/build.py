"""The engine's library: the one in the package, made with the wheel for all sets of instructions, or else one
that is compiled at its first use for the best set of this processor (equipot/compile.py).

Environment variables
    EQUIPOT_INSTRUCTIONS   the set of instructions to take: baseline, avx2 or avx512; the best by default.
"""

import hashlib
import logging
import os
from pathlib import Path

from equipot.compile import Library
from equipot.errors import ConfigError
from equipot.machine import processor_flags

NAME = "libequipot.so"
FOLDER = Path(__file__).parent
FOLDERS = ("csrc", "gpu", "gpu/executor", "include", "kernels")

logger = logging.getLogger("equipot")


def build(force: bool = False) -> Path:
    """The library's path; compiles it if there is no valid one, or if ``force``: not the one in the package.

    Raises ConfigError for an unknown EQUIPOT_INSTRUCTIONS, or :class:`equipot.compile.KernelBuildError`.
    """
    packaged = FOLDER / f"{NAME}.1"
    if packaged.is_file():
        if checksum().encode() in packaged.read_bytes():
            return packaged
        logger.warning("%s was made from other sources and is not used", packaged)
    return library(instructions()).build(force)


def library(*sets: str) -> Library:
    """The engine for these sets of instructions, the plainest first."""
    lines = recipe()
    units = [(source, (f'-DEQUIPOT_SOURCES="{checksum()}"',)) for source in lines["once"]]
    for name in sets:
        own = (f"-DEQUIPOT_INSTRUCTIONS={name}", *lines[name])
        units += [(source, own) for source in lines["each"]]
    return Library(
        NAME,
        f"the engine ({', '.join(sets)})",
        tuple(FOLDER / name for name in FOLDERS),
        tuple(lines["flags"]),
        tuple(lines["link"]),
        units=tuple((FOLDER / source, own) for source, own in units),
    )


def instructions() -> str:
    """The set to compile for: what EQUIPOT_INSTRUCTIONS names, or the best of this processor."""
    lines = recipe()
    sets = [name for name in lines if name not in ("flags", "link", "once", "each")]
    if wanted := os.environ.get("EQUIPOT_INSTRUCTIONS"):
        if wanted not in sets:
            raise ConfigError(f"EQUIPOT_INSTRUCTIONS: expected {', '.join(sets)}, found '{wanted}'")
        return wanted
    here = processor_flags().split()
    return [name for name in sets if all(flag.removeprefix("-m") in here for flag in lines[name])][-1]


def recipe() -> dict[str, list[str]]:
    """The lines of recipe.txt."""
    lines = (FOLDER / "recipe.txt").read_text().splitlines()
    return {
        name: words.split() for name, _, words in (line.partition(":") for line in lines if line[0] != "#")
    }


def checksum() -> str:
    """SHA-256 of the sources, as CMakeLists.txt makes it."""
    files = [
        FOLDER / "recipe.txt",
        *(f for name in FOLDERS for f in (FOLDER / name).iterdir() if f.is_file()),
    ]
    lines = sorted(
        (file.relative_to(FOLDER).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files
    )
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in lines).encode()).hexdigest()
