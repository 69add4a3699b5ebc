"""``equipot data``: look at structure files, convert and split them."""

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(
    name="data", help="Look at structure files before training on them.", no_args_is_help=True
)

Files = Annotated[list[str], typer.Argument(metavar="FILE", help="Structure files, any format of training.")]
EnergyKey = Annotated[str, typer.Option(help="Name of the energy in the files; none: not read.")]
ForcesKey = Annotated[str, typer.Option(help="The same for the forces.")]
StressKey = Annotated[str, typer.Option(help="The same for the stress.")]
EnergyUnit = Annotated[str, typer.Option(help="Unit of energy in the files, as in data.units.energy.")]
LengthUnit = Annotated[str, typer.Option(help="Unit of length in the files, as in data.units.length.")]
FileFormat = Annotated[str | None, typer.Option("--format", help="Format of the files; else found out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@data_app.command("inspect")
def data_inspect(
    files: Files,
    energy_key: EnergyKey = "energy",
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    energy_unit: EnergyUnit = "eV",
    length_unit: LengthUnit = "Ang",
    file_format: FileFormat = None,
    as_json: AsJson = False,
) -> None:
    """What is in structure files: species, names of labels, ranges, histograms, likely mistakes of units."""
    import json

    from rich.console import Console

    from equipot.data.quality.render import print_summary
    from equipot.data.quality.run import inspect_files

    keys = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
    summaries = inspect_files(files, keys, energy_unit, length_unit, file_format)
    if as_json:
        print(json.dumps([summary.to_dict() for summary in summaries], indent=2, ensure_ascii=False))
    else:
        for summary in summaries:
            print_summary(summary, Console())
    if any(summary.problems for summary in summaries):
        raise typer.Exit(1)


@data_app.command("check")
def data_check(
    files: Files,
    energy_key: EnergyKey = "energy",
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    energy_unit: EnergyUnit = "eV",
    length_unit: LengthUnit = "Ang",
    file_format: FileFormat = None,
    as_json: AsJson = False,
) -> None:
    """Look for what spoils a training: repeated, contradicting or outlying frames, wrong signs and units.

    The exit code is 1 if there are errors; warnings and notes leave it at 0.
    """
    import json

    from rich.console import Console

    from equipot.data.quality.render import print_report
    from equipot.data.quality.run import check_files

    keys = {"energy": energy_key, "forces": forces_key, "stress": stress_key}
    report = check_files(files, keys, energy_unit, length_unit, file_format)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_report(report, Console())
    if report.count("error"):
        raise typer.Exit(1)


@data_app.command("convert")
def data_convert(
    files: Files,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, NAME.equipot.")],
    cutoff: Annotated[float | None, typer.Option(min=0.1, help="Å: store neighbor lists, too.")] = None,
    energy_key: EnergyKey = "energy",
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    energy_unit: EnergyUnit = "eV",
    length_unit: LengthUnit = "Ang",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")] = None,
) -> None:
    """Write structures as one file that opens at once, with neighbor lists for one cutoff if wanted.

    An interrupted conversion goes on where it stopped when the command is repeated.
    """
    from equipot.data.convert import convert
    from equipot.data.quality.run import label_names, unit_names

    labels = label_names({"energy": energy_key, "forces": forces_key, "stress": stress_key})
    result = convert(files, output, labels, unit_names(energy_unit, length_unit), cutoff, workers)
    state = "Wrote" if result.written else "Up to date:"
    print(f"{state} {result.path} ({result.num_frames} frames)")


@data_app.command("split")
def data_split(
    files: Files,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")],
    train_size: Annotated[str, typer.Option("--train", help="Frames (100) or their fraction (0.8).")] = "0.8",
    validation: Annotated[str, typer.Option(help="The same for validation; 0: none.")] = "0.1",
    test: Annotated[str, typer.Option(help="The same for test; 0: none.")] = "0.1",
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 0,
    by_group: Annotated[
        bool, typer.Option("--by-group", help="Draw from each config_type in proportion.")
    ] = False,
    energy_key: EnergyKey = "energy",
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    energy_unit: EnergyUnit = "eV",
    length_unit: LengthUnit = "Ang",
) -> None:
    """Cut structure files into train.xyz, validation.xyz and test.xyz, equal structures into the same set."""
    from equipot.data.partition import split_files
    from equipot.data.quality.run import label_names, unit_names
    from equipot.data.text import counted

    labels = label_names({"energy": energy_key, "forces": forces_key, "stress": stress_key})
    sizes = {"train": train_size, "validation": validation, "test": test}
    units = unit_names(energy_unit, length_unit)
    split = split_files(files, output, sizes, labels, units, seed, by_group)
    for name in sizes:
        print(f"{name}: {counted(len(getattr(split, name)), 'frame')}")
    print(f"Wrote {output / 'split.json'}")
