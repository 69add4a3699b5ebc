"""Readable metadata."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

from equipot.data.species import pair_name
from equipot.data.text import counted
from equipot.deploy.capsule import Capsule
from equipot.deploy.metadata import Metadata, describe_tables, is_deployed, read_metadata
from equipot.deploy.uncertainty import describe_uncertainty
from equipot.errors import ModelFileError


def info(path: str | Path, config: bool = True) -> Group:
    """What a deployed file says about itself, for ``rich.print``; ``config`` adds its training YAML.

    Of a run directory or a checkpoint, which is loaded, it is less. Raises ModelFileError as `read_metadata`
    and `load_checkpoint`.
    """
    path = Path(path)
    if path.is_dir() or (path.is_file() and not is_deployed(path)):
        return _of_checkpoint(path)
    metadata = read_metadata(path)
    parts = {str(path): _facts(path, metadata)}
    if metadata.energy:
        parts["\nAtomic reference energies (eV)"] = _species(metadata)
    if metadata.origin:
        parts["\nMade of a model of another code"] = origin_table(metadata.origin)
    if metadata.shortest_distances:
        parts["\nShortest distances in the training set (Å)"] = _distances(metadata)
    if metadata.validation:
        parts["\nValidation errors of the checkpoint (eV, Å)"] = _errors(metadata)
    if config and metadata.config:
        parts["\nTraining configuration"] = Syntax(
            metadata.config, "yaml", background_color="default", word_wrap=True
        )
    return Group(*(part for title, body in parts.items() for part in (Text(title, "bold"), body)))


def _facts(path: Path, metadata: Metadata) -> Table:
    rows = {
        "model": f"{metadata.model_type}, {metadata.dtype}, {metadata.weights} weights",
        "species": " ".join(metadata.species),
        "predicts": ", ".join([*("energies and forces",) * metadata.energy, *_outputs(metadata)]),
        "level of theory": _level(metadata),
        "electric field": f"energy by {' and '.join(metadata.field)}" if metadata.field else "not known",
        "cutoff": f"{metadata.cutoff:g} Å",
        "interaction range": f"{metadata.interaction_range:g} Å ({_exchanges(metadata)})",
        "units": f"energy {metadata.energy_unit}, length {metadata.length_unit}",
        "radial functions": describe_tables(metadata.tables),
        "uncertainty of energies": describe_uncertainty(metadata.uncertainty),
        "self-check": _capsule(path, metadata),
        "created": metadata.created,
        "created by": f"equipot {metadata.equipot_version}, torch {metadata.torch_version}",
        "file": f"format {metadata.format_version}, {path.stat().st_size / 1e6:.2f} MB",
        "weights SHA-256": metadata.weights_sha256,
    }
    return _pairs(rows)


def origin_table(origin: Mapping[str, str]) -> Table:
    """Where a model of another code comes from; its licence by the first line."""
    return _pairs({name: text.strip().partition("\n")[0] for name, text in origin.items()})


def _of_checkpoint(path: Path) -> Group:
    # These need torch, which a deployed file does not.
    from equipot.deploy.checkpoint import find_checkpoint, load_checkpoint

    checkpoint = load_checkpoint(find_checkpoint(path))
    potential = checkpoint.potential
    facts = {
        "checkpoint": f"{checkpoint.config.model.type}, {checkpoint.config.model.dtype}",
        "weights": f"{sum(weight.numel() for weight in potential.parameters()):,} ({checkpoint.weights})",
        "species": " ".join(potential.species),
        "predicts": ", ".join([*("energies and forces",) * potential.has_energy, *potential.output_names]),
        "levels of theory": ", ".join(checkpoint.levels) or "one without a name",
        "cutoff": f"{potential.cutoff:g} Å",
    }
    parts: list[Any] = [Text(str(checkpoint.path), "bold"), _pairs(facts)]
    if checkpoint.origin:
        parts += [Text("\nMade of a model of another code", "bold"), origin_table(checkpoint.origin)]
    return Group(*parts)


def _pairs(rows: Mapping[str, str]) -> Table:
    columns = Column(style="cyan", no_wrap=True), Column(overflow="fold")
    table = Table(*columns, show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _outputs(metadata: Metadata) -> Iterator[str]:
    for name, facts in metadata.outputs.items():
        unit = f" ({facts['unit']})" if facts["unit"] else ""
        yield f"{name}{unit} per {'atom' if facts['per_atom'] else 'structure'}"


def _level(metadata: Metadata) -> str:
    others = [level for level in metadata.levels if level != metadata.level]
    also = f" (the training had also {', '.join(others)})" if others else ""
    return (metadata.level or "not named") + also


def _exchanges(metadata: Metadata) -> str:
    if metadata.num_exchanges == 0:
        return "strictly local"
    widest = f" of up to {metadata.widest_exchange} numbers per atom" if metadata.widest_exchange else ""
    return f"message passing, {counted(metadata.num_exchanges, 'exchange')}{widest}"


def _capsule(path: Path, metadata: Metadata) -> str:
    try:
        capsule = Capsule.from_json(metadata.capsule)
    except ValueError as error:
        raise ModelFileError(
            f"{path}: the self-check capsule is damaged ({error}). Deploy it again."
        ) from None
    return f"{counted(len(capsule.references), 'reference structure')}, {capsule.source}"


def _species(metadata: Metadata) -> Table:
    table = Table(*(Column(symbol, justify="right") for symbol in metadata.species), box=None)
    table.add_row(*(f"{energy:.6f}" for energy in metadata.atomic_energies))
    return table


def _distances(metadata: Metadata) -> Table:
    """A row for each element; "-" for pairs that are nowhere within the cutoff."""
    table = Table(box=None)
    table.add_column("")
    for symbol in metadata.species:
        table.add_column(symbol, justify="right", style="default")
    for row, symbol in enumerate(metadata.species):
        names = [pair_name(symbol, other) for other in metadata.species[: row + 1]]
        found = [metadata.shortest_distances.get(name) for name in names]
        table.add_row(symbol, *("-" if distance is None else f"{distance:.3f}" for distance in found))
    return table


def _errors(metadata: Metadata) -> Table:
    table = Table(show_header=False, box=None)
    for name, value in metadata.validation.items():
        table.add_row(name, f"{value:.6g}")
    return table
