"""``equipot data``: look at structure files, convert and split them."""

from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from equipot.integrations.settings import RULES
from equipot.quantities import FIELD, KEYS, QUANTITIES, UNIT_POWERS

data_app = typer.Typer(
    name="data", help="Look at structure files before training on them.", no_args_is_help=True
)

Files = Annotated[list[str], typer.Argument(metavar="FILE", help="Structure files, any format of training.")]
SPECIES = "LABEL=SYMBOL,..."
Structure = Annotated[
    str, typer.Argument(metavar="STRUCTURE", help="Any file of training; FILE@0 is its first frame.")
]
Model = Annotated[Path, typer.Option(metavar="FILE", help="Deployed model file; or an ensemble.")]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")]
SpeciesMap = Annotated[
    str | None, typer.Option(metavar=SPECIES, help="Elements of labels in the files, as data.species_map.")
]
Reading = dict[str, Any]  # made by ``with_reading``
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Level = Annotated[
    str | None, typer.Option(metavar="NAME", help="Level of theory, where the model has several.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def with_options(name: str, options: list[Parameter], make: Callable[..., Any]) -> Callable:
    """Give a command these options for its parameter ``name``, which is what ``make`` makes of them."""

    def decorate(function: Callable) -> Callable:
        def command(**given):
            values = {option.name: given.pop(option.name) for option in options}
            return function(**given, **{name: make(**values)})

        own = [p.replace(kind=p.KEYWORD_ONLY) for p in signature(function).parameters.values()]
        parameters = [new for p in own for new in (options if p.name == name else [p])]
        command.__signature__ = Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def option(name: str, kind: Any, default: Any, *words: str, **described: Any) -> Parameter:
    """For `with_options`; ``words`` and what it is ``described`` by are typer's."""
    annotation = Annotated[kind, typer.Option(*words, **described)]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def options_of(settings: type) -> list[Parameter]:
    """One for each field of a dataclass, which says what it is (`integrations.settings.setting`)."""
    options = []
    for field in fields(settings):
        described = {key: value for key, value in field.metadata.items() if key not in RULES}
        words = (described.pop("option"),) if "option" in described else ()
        options.append(option(field.name, field.type, field.default, *words, **described))
    return options


def with_reading(as_in_training: bool = False) -> Callable:
    """Give a command options on how files are read: names, units, what NaN means, the format, species.

    Its parameter ``reading`` gets what ``named_reading`` takes. What is not given is as in the training of a
    model (``as_in_training``), else as in that of a YAML, or has the defaults shown.
    """
    end = ", by default as in training" if as_in_training else ""
    own = {} if as_in_training else {"missing": "error", **{f"{name}_key": name for name in QUANTITIES}}
    own |= {} if as_in_training else {"energy_unit": "eV", "length_unit": "Ang"}
    names = {**{key: f"Name of the {key}" for key in KEYS}, "weight": "Name of a frame's weight"}
    names |= {FIELD.name: "Name of the electric field of a frame"}
    texts = {f"{key}_key": f"{name} in the files{end}; none: not read." for key, name in names.items()}
    for of in UNIT_POWERS:
        texts[f"{of}_unit"] = f"Unit of {of} in the files, as in data.units.{of}{end}."
    texts["missing"] = f"What NaN means, error or nan, as in data.missing{end}."
    texts["format"] = "Format of the files; else found out."

    texts["fixed_atoms"] = f"Forces on atoms held fixed, use or leave_out, as in data.fixed_atoms{end}."
    species = f"Elements of labels in the files, as data.species_map{end}."
    keep = f"Use steps whose electrons did not converge, as data.keep_unconverged{end}."

    def reading(format: str | None, **chosen: Any) -> Reading:
        names = "missing", "species_map", "keep_unconverged", "fixed_atoms", "config"
        found = {name: chosen.pop(name) for name in names if name in chosen}
        found |= {"format_name": format, "keys": {}, "units": {}}
        for name, value in chosen.items():
            of, _, kind = name.rpartition("_")
            if value is not None:
                found[f"{kind}s"][of] = value
        return found

    options = [
        option(name, str | None, None, help=text, show_default=own.get(name, True))
        for name, text in texts.items()
    ]
    options.append(option("species_map", str | None, None, metavar=SPECIES, help=species))
    options.append(option("keep_unconverged", bool, False, "--keep-unconverged", help=keep))
    if not as_in_training:
        config = "YAML of a training: what is not given is as in its section data; its outputs are read, too."
        options.append(option("config", Path | None, None, metavar="CONFIG", help=config))
    return with_options("reading", options, reading)


@data_app.command("inspect")
@with_reading()
def data_inspect(files: Files, reading: Reading, as_json: AsJson = False) -> None:
    """What is in structure files: species, names of labels, ranges, histograms, likely mistakes of units."""
    from equipot.data.quality.render import print_summary
    from equipot.data.quality.run import inspect_files

    summaries = inspect_files(files, **reading)
    _show(summaries, print_summary, as_json)
    if any(summary.problems for summary in summaries):
        raise typer.Exit(1)


@data_app.command("check")
@with_reading()
def data_check(files: Files, reading: Reading, as_json: AsJson = False) -> None:
    """Look for what spoils a training: repeated, contradicting or outlying frames, wrong signs and units.

    The exit code is 1 if there are errors; warnings and notes leave it at 0.
    """
    from equipot.data.quality.render import print_report
    from equipot.data.quality.run import check_files

    report = check_files(files, **reading)
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
@with_reading()
def data_convert(
    files: Files,
    reading: Reading,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The file to write, NAME.equipot.")],
    overwrite: Overwrite = False,
    cutoff: Annotated[float | None, typer.Option(min=0.1, help="Å: store neighbor lists, too.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")] = None,
) -> None:
    """Write structures as one file that opens at once, with neighbor lists for one cutoff if wanted.

    An interrupted conversion goes on where it stopped when the command is repeated.
    """
    from equipot.data.convert import convert
    from equipot.data.readers import named_reading

    how = {"cutoff": cutoff, "workers": workers, "overwrite": overwrite}
    result = convert(files, output, **named_reading(**reading), **how)
    state = "Wrote" if result.written else "Up to date:"
    print(f"{state} {result.path} ({result.num_frames} frames)")


@data_app.command("split")
@with_reading()
def data_split(
    files: Files,
    reading: Reading,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")],
    train_size: Annotated[str, typer.Option("--train", help="Frames (100) or their fraction (0.8).")] = "0.8",
    validation: Annotated[str, typer.Option(help="The same for validation; 0: none.")] = "0.1",
    test: Annotated[str, typer.Option(help="The same for test; 0: none.")] = "0.1",
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 0,
    by_group: Annotated[
        bool, typer.Option("--by-group", help="Draw from each config_type in proportion.")
    ] = False,
) -> None:
    """Cut structure files into train.xyz, validation.xyz and test.xyz, equal structures into the same set."""
    from equipot.data.partition import split_files
    from equipot.data.readers import named_reading
    from equipot.data.text import counted

    sizes = {"train": train_size, "validation": validation, "test": test}
    split = split_files(files, output, sizes, **named_reading(**reading), seed=seed, by_group=by_group)
    for name in sizes:
        print(f"{name}: {counted(len(getattr(split, name)), 'frame')}")
    print(f"Wrote {output / 'split.json'}")
