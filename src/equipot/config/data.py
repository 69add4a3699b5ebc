"""Section ``data``: which structures, how they are labelled, how they are split."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_serializer, model_validator

from equipot.config.labels import LabelsConfig, UnitsConfig
from equipot.config.section import Element, Elements, PathField, Paths, Section

SETS = ("train", "validation", "test")
# No blanks: deployed files list levels separated by them, and columns of metrics are named by them.
LevelName = Annotated[str, Field(pattern=r"^\S+$")]

# The formats that `equipot.data.formats` reads, in the order in which they are tried.
FORMATS = ("xyz", "ase_db", "lmdb_pickle", "hdf5", "npz", "deepmd", "vasp", "store", "ase")


GroupWeights = Annotated[
    dict[Annotated[str, Field(min_length=1)], Annotated[float, Field(ge=0)]],
    Field(min_length=1, json_schema_extra={"words": "mapping from config_type to number ≥ 0"}),
]


# YAML's own word for it, `.nan`, is a number.
Missing = Annotated[
    Literal["error", "nan"], BeforeValidator(lambda value: "nan" if value != value else value)
]
_MISSING = (
    "What a label that is not a number (NaN) means: `error` refuses the frame; `nan`: this energy, these "
    "forces of all atoms, or this stress is not known."
)


FixedAtoms = Literal["use", "leave_out"]


class _Partial(Section):
    """A section of which only what was written is kept, the rest being taken from elsewhere."""

    @model_serializer(mode="wrap")
    def _what_is_set(self, handler):
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}


class SourceLabels(_Partial, LabelsConfig):
    """Names of the reference values in these files; what is left out is as in `data.labels`."""


class SourceUnits(_Partial, UnitsConfig):
    """Units in these files; what is left out is as in `data.units`."""


SpeciesMap = Annotated[
    dict[Annotated[str, Field(min_length=1)], Element],
    Field(json_schema_extra={"words": "mapping from label to chemical symbol"}),
]


class SourceConfig(_Partial):
    """An entry written as a mapping: files with names, units or a weight of their own."""

    model_config = ConfigDict(json_schema_extra={"words": "mapping with a path"})

    path: Paths = Field(description="A file or folder, a pattern, or a list of these.")
    labels: SourceLabels = Field(SourceLabels(), description="Names of the reference values in these files.")
    units: SourceUnits = Field(SourceUnits(), description="Units in these files.")
    weight: float = Field(
        1.0,
        gt=0,
        description="Multiplies every term of the loss that comes from these frames: 2.0 counts a frame as "
        "if it were there twice. Reported errors and statistics are not weighted.",
    )
    format: Literal[FORMATS] | None = Field(
        None, description="Format of the files; null: by their name and content."
    )
    missing: Missing | None = Field(
        None, description="What NaN means in these files, `error` or `nan`; null: as in `data.missing`."
    )
    level: LevelName | None = Field(
        None, description="Level of theory of these reference values; null: as in `data.level`."
    )
    species_map: SpeciesMap | None = Field(
        None, description="Elements of labels in these files; null: as in `data.species_map`."
    )
    keep_unconverged: bool | None = Field(
        None, description="Use steps that did not converge; null: as in `data.keep_unconverged`."
    )
    fixed_atoms: FixedAtoms | None = Field(
        None,
        description="Use of forces on fixed atoms, `use` or `leave_out`; null: as in `data.fixed_atoms`.",
    )


@dataclass(frozen=True)
class Parsing:
    """What formats, and the frames made of what they read, take from the configuration."""

    species: Mapping[str, str] = field(default_factory=dict)  # chemical symbols of other labels
    keep_unconverged: bool = False
    fixed_atoms: FixedAtoms = "use"


@dataclass(frozen=True)
class Source:
    """Files that are read in the same way; every choice is made."""

    path: tuple[Path, ...]
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    units: UnitsConfig = field(default_factory=UnitsConfig)
    weight: float = 1.0
    format: str | None = None
    level: str | None = None
    missing: Missing = "error"
    parsing: Parsing = field(default_factory=Parsing)


def _entries(value: Any) -> Any:
    """One entry or a list of them as a tuple, names as paths; anything else unchanged, to be refused."""
    entries = value if isinstance(value, list | tuple) else [value]
    if not entries or not all(isinstance(e, str | Path | Mapping | SourceConfig) and e for e in entries):
        return value
    return tuple(Path(e).expanduser() if isinstance(e, str | Path) else e for e in entries)


_Entry = Path | SourceConfig
_EntryOrList = Path | SourceConfig | Annotated[list[_Entry], Field(min_length=1)]
Entries = Annotated[tuple[_Entry, ...], BeforeValidator(_entries, json_schema_input_type=_EntryOrList)]
"""One entry of `train`, `validation` or `test`, or a list of them, in the YAML; always a tuple here."""


class DataConfig(Section):
    """Structures with their reference energies, forces and stresses."""

    train: Entries = Field(
        description="Training structures: a file or a list of files; see [formats](data.md). An entry is a "
        "path, or a mapping `{path: ..., labels: {...}, units: {...}, weight: 2.0, format: ...}`. Wildcards "
        "(`*`, `?`) are allowed; relative names start at the folder of the YAML file."
    )
    validation: Annotated[
        Entries | Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)],
        BeforeValidator(lambda value: value if isinstance(value, int | float) else _entries(value)),
    ] = Field(
        0.1,
        description="Validation structures: a file or a list of files; or how many frames (a whole number) "
        "or which fraction (between 0 and 1) to draw from `train`, at random with `seed`.",
    )
    test: Entries | None = Field(
        None, description="Test structures, evaluated once after training: a file or a list of files."
    )
    train_frames: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Use only this many of the training frames that remain after the validation frames are "
        "drawn, at random with `seed`; null: all.",
    )
    seed: int = Field(0, ge=0, description="Seed of the split.")
    labels: LabelsConfig = Field(LabelsConfig(), description="Names of the reference values in the files.")
    units: UnitsConfig = Field(UnitsConfig(), description="Units in the files.")
    missing: Missing = Field("error", description=_MISSING)
    group_weights: GroupWeights | None = Field(
        None,
        description="Weights of frames in the loss by their `config_type`, as in `{surface: 2.0}`; others "
        "have 1; they multiply the other weights. Reported errors and statistics are not weighted.",
    )
    level: LevelName | None = Field(
        None,
        description="Name of the level of theory of the reference values, such as `pbe0`, for all entries "
        "that name none of their own. With several levels a model has reference energies, a readout and any "
        "biases for each; see [fine-tuning](finetuning.md). null: levels have no names, so there is one.",
    )
    atomic_energies: (
        Literal["auto", "isolated_atoms", "least_squares", "none"]
        | Annotated[dict[Element, float], Field(min_length=1)]
    ) = Field(
        "auto",
        description="Reference energy of each element, subtracted from the total energy. "
        "`isolated_atoms`: from the single-atom frames in `train`; `least_squares`: fitted to the training "
        "energies; `auto`: the former if every element has such a frame, else the latter; `none`: zero; or "
        "numbers in the unit of `units.energy`, as in `{H: -13.6, O: -430.0}`.",
    )
    species_map: SpeciesMap = Field(
        {},
        description="Elements of what the files call otherwise, as in `{HW: H, OW: O, Cu1: Cu}`. Chemical "
        "symbols, `D` and `T` (hydrogen) need none.",
    )
    keep_unconverged: bool = Field(
        False,
        description="Use steps of calculations whose electrons did not converge; they are left out, and "
        "named, otherwise. For formats that say so: see [formats](data.md#formats).",
    )
    fixed_atoms: FixedAtoms = Field(
        "use",
        description="Whether forces on atoms that were held fixed (constraints of ASE, `move_mask`, OC20's "
        "`fixed`) are labels: `use`; or `leave_out`: they are in no loss, statistics or error.",
    )
    checks: Literal["stop", "warn", "off"] = Field(
        "stop",
        description="What `train` does about data that its [checks](data.md#before-training) find "
        "wrong: `stop` with an error, `warn` and train all the same, or `off`: no checks.",
    )
    cache: PathField | None = Field(
        None,
        description="Folder for [stores](data.md#stores) with the frames and their neighbor lists, made at "
        "the first training and opened at the next; with it frames are read from disk when they are needed "
        "instead of being kept in memory; null: none.",
    )
    species: Elements | None = Field(
        None, description="Elements of the model; null: those of the training structures, by atomic number."
    )

    @property
    def all_sources(self) -> list[Source]:
        """Those of all sets."""
        return [source for name in SETS for source in self.sources(name)]

    def sources(self, name: Literal["train", "validation", "test"]) -> tuple[Source, ...]:
        """The entries of ``name`` with what they leave out filled in; none where it is null or a number.

        Paths that follow one another are one source.
        """
        entries = getattr(self, name)
        if not isinstance(entries, tuple):
            return ()
        sources = []
        for plain, group in itertools.groupby(entries, lambda entry: isinstance(entry, Path)):
            members = tuple(group)
            own = {"level": self.level, "missing": self.missing, "parsing": self.parsing}
            shared = Source(members, self.labels, self.units, **own)
            sources += [shared] if plain else map(self._source, members)
        return tuple(sources)

    @property
    def places_of_units(self) -> dict[str, UnitsConfig]:
        """The sections of units, by their places in the configuration."""
        found = {"data.units": self.units}
        for name in SETS:
            entries = getattr(self, name)
            for number, entry in enumerate(entries if isinstance(entries, tuple) else ()):
                if isinstance(entry, SourceConfig):
                    found[f"data.{name}[{number}].units"] = entry.units
        return found

    @property
    def parsing(self) -> Parsing:
        """What formats take from here where an entry says nothing else."""
        return Parsing(self.species_map, self.keep_unconverged, self.fixed_atoms)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels of theory in ``train``, in the order of the entries; none if they have none."""
        named = [source.level for source in self.sources("train") if source.level is not None]
        return tuple(dict.fromkeys(named))

    def _source(self, entry: SourceConfig) -> Source:
        labels = LabelsConfig(**{**self.labels.model_dump(), **entry.labels.model_dump()})
        units = UnitsConfig(**{**self.units.model_dump(), **entry.units.model_dump()})
        level = entry.level if entry.level is not None else self.level
        missing = entry.missing or self.missing
        names = "species_map", "keep_unconverged", "fixed_atoms"
        given = ((getattr(entry, name), getattr(self, name)) for name in names)
        parsing = Parsing(*(shared if own is None else own for own, shared in given))
        return Source(entry.path, labels, units, entry.weight, entry.format, level, missing, parsing)

    @model_validator(mode="after")
    def _levels_agree(self):
        levels = self.levels
        for name in SETS:
            for source in self.sources(name):
                if source.level is None and levels:
                    raise ValueError(
                        f"`{name}` has entries of the levels {', '.join(levels)}, but {source.path[0].name} "
                        "names none: give it a `level`, or set `data.level`."
                    )
                if source.level is not None and source.level not in levels:
                    raise ValueError(
                        f"`{name}` has an entry of the level '{source.level}' ({source.path[0].name}), which "
                        f"no entry of `train` has; its levels are: {', '.join(levels) or 'none'}."
                    )
        if len(levels) > 1 and isinstance(self.atomic_energies, dict):
            raise ValueError(
                f"`atomic_energies` lists numbers for one level of theory, but `train` has "
                f"{', '.join(levels)}: use isolated_atoms or least_squares."
            )
        return self

    @model_validator(mode="after")
    def _species_agree(self):
        if self.species is None:
            return self
        repeated = sorted({symbol for symbol in self.species if self.species.count(symbol) > 1})
        if repeated:
            raise ValueError(f"`species` lists {', '.join(repeated)} more than once.")
        if isinstance(self.atomic_energies, dict):
            missing = [symbol for symbol in self.species if symbol not in self.atomic_energies]
            if missing:
                raise ValueError(f"`atomic_energies` has no entry for {', '.join(missing)} of `species`.")
        return self
