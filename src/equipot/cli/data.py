"""``equipot data``: look at structure files, convert and split them."""

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from equipot.quantities import LABELS

data_app = typer.Typer(
    name="data", help="Look at structure files before training on them.", no_args_is_help=True
)

Files = Annotated[list[str], typer.Argument(metavar="FILE", help="Structure files, any format of training.")]
Keys = dict[str, str]  # made by ``with_label_keys``
EnergyUnit = Annotated[str, typer.Option(help="Unit of energy in the files, as in data.units.energy.")]
LengthUnit = Annotated[str, typer.Option(help="Unit of length in the files, as in data.units.length.")]
FileFormat = Annotated[str | None, typer.Option("--format", help="Format of the files; else found out.")]
SpeciesMap = Annotated[
    str | None,
    typer.Option(metavar="LABEL=SYMBOL,...", help="Elements of labels in the files, as in HW=H,OW=O."),
]
KeepUnconverged = Annotated[
    bool, typer.Option("--keep-unconverged", help="Use steps whose electrons did not converge, too.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def with_label_keys(default: str = "{}", remark: str = "") -> Callable:
    """Give a command, for its parameter ``keys``, an option ``--NAME-key`` for each quantity.

    ``default`` is that of each, ``{}`` standing for the quantity's name; if it is empty, there is none.
    """

    def decorate(function: Callable) -> Callable:
        def command(**given):
            keys = {name: given.pop(f"{name}_key") for name in LABELS}
            return function(**given, keys={name: key for name, key in keys.items() if key is not None})

        options = []
        for name in LABELS:
            text = f"Name of the {name} in the files{remark}; none: not read."
            kind = Annotated[str | None, typer.Option(help=text)]
            value = default.format(name) or None
            options.append(Parameter(f"{name}_key", Parameter.KEYWORD_ONLY, default=value, annotation=kind))
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in signature(function).parameters.values()]
        parameters = [new for p in own for new in (options if p.name == "keys" else [p])]
        command.__signature__ = Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


@data_app.command("inspect")
@with_label_keys()
def data_inspect(
    files: Files,
    keys: Keys,
    energy_unit: EnergyUnit = "eV",
    length_unit: LengthUnit = "Ang",
    file_format: FileFormat = None,
    species_map: SpeciesMap = None,
    keep_unconverged: KeepUnconverged = False,
    as_json: AsJson = False,
) -> None:
    """What is in structure files: species, names of labels, ranges, histograms, likely mistakes of units."""
    from equipot.data.quality.render import print_summary
    from equipot.data.quality.run import inspect_files
    from equipot.data.readers import named_parsing

    parsing = named_parsing(species_map, keep_unconverged)
    summaries = inspect_files(files, keys, energy_unit, length_unit, file_format, parsing)
    _show(summaries, print_summary, as_json)
    if any(summary.problems for summary in summaries):
        raise typer.Exit(1)


@data_app.command("check")
@with_label_keys()
def data_check(
    files: Files,
    keys: Keys,
    energy_unit: EnergyUnit = "eV",
    length_unit: LengthUnit = "Ang",
    file_format: FileFormat = None,
    species_map: SpeciesMap = None,
    keep_unconverged: KeepUnconverged = False,
    as_json: AsJson = False,
) -> None:
    """Look for what spoils a training: repeated, contradicting or outlying frames, wrong signs and units.

    The exit code is 1 if there are errors; warnings and notes leave it at 0.
    """
    from equipot.data.quality.render import print_report
    from equipot.data.quality.run import check_files
    from equipot.data.readers import named_parsing

    parsing = named_parsing(species_map, keep_unconverged)
    report = check_files(files, keys, energy_unit, length_unit, file_format, parsing)
    _show(report, print_report, as_json)
    if report.count("error"):
        raise typer.Exit(1)


def _show(found: Any, display: Callable, as_json: bool) -> None:
    """On the terminal, one after the other where it is a list, or as JSON."""
    import json

    from rich.console import Console

    if as_json:
        plain = [one.to_dict() for one in found] if isinstance(found, list) else found.to_dict()
        print(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        for one in found if isinstance(found, list) else [found]:
            display(one, Console())


@data_app.command("convert")
@with_label_keys()
def data_convert(
    files: Files,
    keys: Keys,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, NAME.equipot.")],
    cutoff: Annotated[float | None, typer.Option(min=0.1, help="Å: store neighbor lists, too.")] = None,
    energy_unit: EnergyUnit = "eV",
    length_unit: LengthUnit = "Ang",
    species_map: SpeciesMap = None,
    keep_unconverged: KeepUnconverged = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")] = None,
) -> None:
    """Write structures as one file that opens at once, with neighbor lists for one cutoff if wanted.

    An interrupted conversion goes on where it stopped when the command is repeated.
    """
    from equipot.data.convert import convert
    from equipot.data.quality.run import unit_names
    from equipot.data.readers import named_labels, named_parsing

    labels, parsing = named_labels(keys), named_parsing(species_map, keep_unconverged)
    units = unit_names(energy_unit, length_unit)
    result = convert(files, output, labels, units, cutoff, workers, parsing)
    state = "Wrote" if result.written else "Up to date:"
    print(f"{state} {result.path} ({result.num_frames} frames)")


@data_app.command("split")
@with_label_keys()
def data_split(
    files: Files,
    keys: Keys,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")],
    train_size: Annotated[str, typer.Option("--train", help="Frames (100) or their fraction (0.8).")] = "0.8",
    validation: Annotated[str, typer.Option(help="The same for validation; 0: none.")] = "0.1",
    test: Annotated[str, typer.Option(help="The same for test; 0: none.")] = "0.1",
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 0,
    by_group: Annotated[
        bool, typer.Option("--by-group", help="Draw from each config_type in proportion.")
    ] = False,
    energy_unit: EnergyUnit = "eV",
    length_unit: LengthUnit = "Ang",
    species_map: SpeciesMap = None,
    keep_unconverged: KeepUnconverged = False,
) -> None:
    """Cut structure files into train.xyz, validation.xyz and test.xyz, equal structures into the same set."""
    from equipot.data.partition import split_files
    from equipot.data.quality.run import unit_names
    from equipot.data.readers import named_labels, named_parsing
    from equipot.data.text import counted

    labels, parsing = named_labels(keys), named_parsing(species_map, keep_unconverged)
    sizes = {"train": train_size, "validation": validation, "test": test}
    units = unit_names(energy_unit, length_unit)
    split = split_files(files, output, sizes, labels, units, seed, by_group, parsing)
    for name in sizes:
        print(f"{name}: {counted(len(getattr(split, name)), 'frame')}")
    print(f"Wrote {output / 'split.json'}")
