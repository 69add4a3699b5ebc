"""What a deployed model says about itself: flat strings stored beside the TorchScript code.

TorchScript files are zip archives; each string is an entry ``<archive>/extra/<key>``. Python reads them
without loading the model, C++ gets them from ``torch::jit::load(path, device, extra_files)``.
"""

import dataclasses
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipot.errors import ModelFileError

FORMAT_VERSION = 1
# The one entry that is no text: what a training can start from (`equipot.deploy.checkpoint`).
TRAINING_STATE = "training_state"


@dataclass(frozen=True)
class Metadata:
    """Everything a reader needs to use a deployed model rightly. Energies in eV, lengths in Å."""

    model_type: str
    species: tuple[str, ...]  # position = atom type
    cutoff: float
    interaction_range: float  # how far an atom's energy can feel another: cutoff × message-passing layers
    num_exchanges: int  # ghost exchanges an evaluation makes across MPI ranks; 0 for strictly local models
    widest_exchange: int  # numbers per atom in the widest of them
    dtype: str  # of the network; the interface is float64
    atomic_energies: tuple[float, ...]  # eV, per species
    weights: str  # which weights of the checkpoint: "ema", "swa" or "last"; or "imported"
    weights_sha256: str
    # Intervals, force_error, rounding (eV/Å), as of `tabulate`; empty: the radial networks are kept.
    tables: dict[str, float]
    validation: dict[str, float]  # errors on the validation set when the checkpoint was written
    config: str  # the resolved training YAML
    capsule: str  # JSON: reference structures with their energies, forces and virials
    created: str  # ISO 8601, UTC
    equipot_version: str
    torch_version: str
    level: str = ""  # level of theory; empty: it has no name
    levels: tuple[str, ...] = ()  # those that the checkpoint had
    energy_unit: str = "eV"
    length_unit: str = "Ang"
    # Å, the closest that pairs of elements ("H-O") come in the training set; empty: not known.
    shortest_distances: dict[str, float] = dataclasses.field(default_factory=dict)
    # That of energies: how it was calibrated (eV/atom, `equipot.deploy.rigidity`), and "references" (eV), of
    # the capsule's structures. Empty: there is none.
    uncertainty: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Of a model of another code, or fine-tuned from one: package, file, licence, ...; empty: equipot's own.
    origin: dict[str, str] = dataclasses.field(default_factory=dict)
    # What is predicted beside energies and forces, in this order: arguments of `equipot.quantities.output`.
    outputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    energy: bool = True  # false: these alone; there are no energies, forces and virials
    # Those of them that are derivatives by positions, the last of the contract's values.
    derivatives: tuple[str, ...] = ()
    # Of a model whose energy depends on an electric field: P, and α if there is one, among its outputs, and
    # their units in e Å and e²Å²/eV.
    field: dict[str, float] = dataclasses.field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_strings(self) -> dict[str, str]:
        """One flat string per field: lists are separated by blanks, numbers print exactly."""
        return {f.name: _to_string(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_strings(cls, strings: dict[str, str], path: Path) -> "Metadata":
        """Inverse of `to_strings`. Raises ModelFileError if a field is missing or unreadable."""
        fields = dataclasses.fields(cls)
        # Fields with a default have come later than the first files.
        needed = [f for f in fields if f.default is f.default_factory is dataclasses.MISSING]
        missing = [f.name for f in needed if f.name not in strings]
        names = [f.name for f in fields if f.name in strings]
        if missing:
            raise ModelFileError(f"{path}: the model's metadata lacks {', '.join(missing)}. Deploy it again.")
        try:
            return cls(**{name: _PARSERS.get(name, str)(strings[name]) for name in names})
        except ValueError as error:
            message = f"{path}: the model's metadata is damaged ({error}). Deploy it again."
            raise ModelFileError(message) from None


def describe_tables(tables: dict[str, float]) -> str:
    """One line about `Metadata.tables`."""
    if not tables:
        return "as in the training"
    name = f"tables of {tables['intervals']:.0f} intervals"
    if 0 in (tables.get("force_error"), tables.get("output_error")):
        return f"{name}, the splines that were trained"
    if "output_error" in tables:
        return (
            f"{name}: outputs change by at most {tables['output_error']:.1e} of their largest number "
            f"(by single precision: {tables['rounding']:.1e})"
        )
    return (
        f"{name}: forces change by at most {tables['force_error']:.1e} eV/Å "
        f"(by single precision: {tables['rounding']:.1e})"
    )


def is_deployed(path: Path) -> bool:
    """Whether the file is a TorchScript archive; a checkpoint is an archive without code.

    Raises ModelFileError if it is no archive at all.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelFileError(
            f"'{path}' is neither a checkpoint nor a deployed model, or it is damaged ({error}). "
            "If it was copied, copy it again; if it was deployed, run `equipot deploy` again."
        ) from None


def read_metadata(path: str | Path) -> Metadata:
    """Metadata of a deployed model, without loading the model.

    Raises ModelFileError if the file is missing, damaged, no deployed model, or written in a newer format.
    """
    path = Path(path)
    strings = _read_extra_files(path)
    version = strings["format_version"]
    if not version.isdecimal() or int(version) > FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: written in model format {version} by equipot {strings.get('equipot_version', '?')}; "
            f"this equipot reads formats up to {FORMAT_VERSION}. Upgrade equipot."
        )
    return Metadata.from_strings(strings, path)


def read_training_state(path: Path) -> bytes | None:
    """What a training can start from; None if the file has none. Raises ModelFileError as `read_metadata`."""
    read_metadata(path)
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name.endswith(f"/extra/{TRAINING_STATE}")]
        return archive.read(found[0]) if found else None


def require_checksums(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises ModelFileError if a byte of an entry has changed; torch reads such a file without a word."""
    # A model holds an archive of its own, to start trainings from; where the file ends early, that is found.
    if min((entry.header_offset for entry in archive.infolist()), default=0) > 0:
        raise ModelFileError(f"{path}: truncated or damaged (what remains is a part). Use an intact copy.")
    try:
        damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        # What a changed entry header leads to: another compression, an encryption, a wrong name.
        raise ModelFileError(f"{path}: truncated or damaged ({error}). Use an intact copy.") from None
    if damaged is not None:
        raise ModelFileError(f"{path}: damaged (wrong checksum of '{damaged}'). Use an intact copy.")


def in_place_of(folder: Path) -> str:
    """What to name in place of a folder where one model is expected."""
    members = sorted(folder.glob("member_*"))
    if not members:
        return f"Of a run, 'equipot deploy {folder}' makes one."
    deployed = next((member for member in members if member.suffix == ".pt"), None)
    if deployed is None:
        return f"It is an ensemble, of which 'equipot deploy {members[0]}' makes one of a member."
    return f"It is an ensemble: name one of its members, such as {deployed}."


def _read_extra_files(path: Path) -> dict[str, str]:
    if path.is_dir():
        raise ModelFileError(f"{path}: expected a deployed model file, found a folder. {in_place_of(path)}")
    if not path.exists():
        raise ModelFileError(f"{path}: no such file. Expected a model written by 'equipot deploy'.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _extra_strings(path, archive)
    except zipfile.BadZipFile:
        size = path.stat().st_size
        raise ModelFileError(
            f"{path}: not a model file, or truncated or damaged ({size} bytes). "
            "Expected a model written by 'equipot deploy'; copy or deploy it again."
        ) from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ModelFileError(f"{path}: the model's metadata is damaged. Deploy it again.") from None


def _extra_strings(path: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    require_checksums(path, archive)
    inside = {name.partition("/")[2]: name for name in archive.namelist()}
    prefix = "extra/"
    strings = {
        key.removeprefix(prefix): archive.read(name).decode()
        for key, name in inside.items()
        if key.startswith(prefix) and key != prefix + TRAINING_STATE
    }
    if "format_version" in strings and "species" in strings:
        return strings
    if "constants.pkl" in inside:
        raise ModelFileError(
            f"{path}: a TorchScript file that was not made by 'equipot deploy' (no metadata)."
        )
    if "data.pkl" in inside:
        raise ModelFileError(
            f"{path}: a training checkpoint, not a deployed model. Run 'equipot deploy {path}' first."
        )
    raise ModelFileError(f"{path}: a zip archive, but no model. Expected a file from 'equipot deploy'.")


def _to_string(value) -> str:
    if isinstance(value, tuple):
        return " ".join(_to_string(item) for item in value)
    if isinstance(value, dict):
        return json.dumps(value)
    return value if isinstance(value, str) else repr(value)


_PARSERS = {
    "species": lambda text: tuple(text.split()),
    "levels": lambda text: tuple(text.split()),
    "cutoff": float,
    "interaction_range": float,
    "num_exchanges": int,
    "widest_exchange": int,
    "atomic_energies": lambda text: tuple(float(word) for word in text.split()),
    "tables": json.loads,
    "validation": json.loads,
    "shortest_distances": json.loads,
    "uncertainty": json.loads,
    "origin": json.loads,
    "outputs": json.loads,
    "energy": lambda text: text == "True",
    "derivatives": lambda text: tuple(text.split()),
    "field": json.loads,
    "format_version": int,
}
