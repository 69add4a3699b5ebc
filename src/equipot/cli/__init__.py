"""The command line: parses arguments, calls the package, prints. No logic of its own.

Everything heavy is imported inside the commands, so that ``equipot --help`` answers at once.
"""

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipot.cli import data as shared
from equipot.cli import properties
from equipot.cli.denoise import denoise
from equipot.cli.lammps import lammps_app
from equipot.cli.pretrained import import_
from equipot.cli.relax import relax
from equipot.errors import EquipotError, ModelFileError
from equipot.integrations.md_settings import MDSettings

if TYPE_CHECKING:
    from equipot.config import Config

app = typer.Typer(
    name="equipot",
    help="Equivariant interatomic potentials: train, evaluate, deploy, run molecular dynamics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(lammps_app)
app.add_typer(shared.data_app)


def main() -> None:
    """Entry point. What a user can mend is printed as one message, with exit code 1; usage errors give 2."""
    debug = "--debug" in sys.argv  # before or after the command
    # Writes to whatever sys.stderr is at the time: a progress bar puts lines above itself through it.
    messages = logging.lastResort
    messages.setLevel(logging.INFO)
    logger = logging.getLogger("equipot")
    logger.setLevel(logging.INFO)
    logger.addHandler(messages)
    try:
        app(_three_numbers([argument for argument in sys.argv[1:] if argument != "--debug"]))
    except (EquipotError, OSError, ModuleNotFoundError, MemoryError) as error:
        if debug:
            raise
        print(f"Error: {_message(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
    finally:
        logger.removeHandler(messages)


def _three_numbers(arguments: list[str]) -> list[str]:
    """``--mask 1,0,1``, ``--supercell 2x2x2`` and so on as three arguments after the option."""
    one = r"([-+\d.eE]+)"
    found = rf"(?<![^\0])(--mask|--supercell|--field)[=\0]{one}[,x]{one}[,x]{one}(?=\0|$)"
    return re.sub(found, "\\1\0\\2\0\\3\0\\4", "\0".join(arguments)).split("\0") if arguments else []


def _message(error: Exception) -> str:
    """An OSError (a full disk, a folder that may not be written) has its file name apart from its message."""
    if isinstance(error, ModuleNotFoundError):
        return f"This needs {error.name}, which is not installed. 'pip install equipot' brings all it needs."
    if isinstance(error, MemoryError):
        return f"This takes more memory than there is. {error}".rstrip()
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _print_version(wanted: bool) -> None:
    if wanted:
        from equipot import __version__

        print(f"equipot {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file; `equipot schema` describes it.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Such as training.epochs=10.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_DIR",
            help="Go on with the training in RUN_DIR; auto: with the one in run.directory if there is one, "
            "for jobs that may be killed and started again.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier training in the run directory.")
    ] = False,
    ensemble: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=2, help="Train N members with seeds of their own, in RUN/member_0, ..."
        ),
    ] = None,
    find_learning_rate: Annotated[
        bool,
        typer.Option(
            "--find-learning-rate",
            help="Only suggest a learning rate, from some hundred steps at rising rates.",
        ),
    ] = False,
) -> None:
    """Train a potential from a YAML file."""
    from equipot.config import load_config

    if find_learning_rate and (resume is not None or overwrite or ensemble is not None):
        raise typer.BadParameter(
            "it trains nothing to keep: leave out --resume, --overwrite and --ensemble.",
            param_hint="--find-learning-rate",
        )
    if resume is not None and overwrite:
        raise typer.BadParameter("goes on with a training; --overwrite replaces one.", param_hint="--resume")
    loaded = load_config(config, overrides or [])
    if find_learning_rate:
        _suggest_learning_rate(loaded, Path(f"{config.stem}_learning_rate.png"))
        return
    from equipot.training.ensemble import train_any

    if train_any(loaded, ensemble, resume=resume, overwrite=overwrite) == "interrupted":
        raise typer.Exit(130)


def _suggest_learning_rate(config: "Config", plot: Path) -> None:
    from equipot.training.learning_rate import find_learning_rate, plot_search

    found = find_learning_rate(config)
    plot_search(found, plot)
    for line in found.choices:
        print(line)
    print(f"Suggestion: training.learning_rate={found.suggestion:g} (now {found.now:g})")
    print(f"Wrote {plot}")


@app.command()
@shared.with_reading(as_in_training=True)
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Run directory, checkpoint or deployed file; or an ensemble."),
    ],
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA", help="Structure files with labels, in any format of training."),
    ],
    reading: shared.Reading,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write errors.json and parity.png there.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write predicted and reference values there, as extended XYZ."),
    ] = None,
    overwrite: shared.Overwrite = False,
    max_edges: Annotated[
        int | None,
        typer.Option(
            min=1, help="Edges evaluated at once; fewer if memory runs out. By default as suits the device."
        ),
    ] = None,
    device: shared.Device = "auto",
    level: shared.Level = None,
) -> None:
    """Errors of a model on labelled structures: table, JSON, parity plots."""
    from rich.console import Console

    from equipot.evaluation.run import evaluate as run_evaluation
    from equipot.machine import keep_memory

    keep_memory()
    result = run_evaluation(
        model,
        data,
        output=output,
        predictions=predictions,
        overwrite=overwrite,
        label_names=reading.pop("keys"),
        **reading,
        max_edges=max_edges,
        device=device,
        level=level,
        console=Console(),
    )
    for file in result.files:
        print(f"Wrote {file}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a training, finished or not.")],
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="By default RUN/report.html.")] = None,
) -> None:
    """Write a training as one HTML page: data, model, learning curves, errors, worst frames, machine."""
    from equipot.training.html_report import write_report

    print(f"Wrote {write_report(run, output)}")


app.command(name="import")(import_)


@app.command()
def deploy(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run directory, or a checkpoint; or an ensemble."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The file to write, model.pt by default; of an ensemble the folder, model."),
    ] = None,
    overwrite: shared.Overwrite = False,
    tables: Annotated[
        bool, typer.Option(help="Store radial functions as tables, as accurate as single precision.")
    ] = True,
    level: shared.Level = None,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Add how uncertain energies are, from the last layer, calibrated on the validation set. "
            "Reads the data of the training.",
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="YAML of the training, where its data lie elsewhere by now."),
    ] = None,
) -> None:
    """Write a trained model as one file for Python, ASE and LAMMPS."""
    from equipot.deploy.ensemble import deploy_any

    written, content = deploy_any(checkpoint, output, tables, level, uncertainty, config, overwrite)
    print(f"Wrote {written} ({content})")


@app.command()
def info(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Deployed model file; or a run directory or checkpoint.")
    ],
) -> None:
    """Print what a deployed model says about itself."""
    from rich.console import Console

    from equipot.deploy.info import info as describe

    Console().print(describe(file))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Deployed model file.")],
    device: shared.Device = "auto",
) -> None:
    """Check a deployed model on this machine: reference structures, symmetries, smoothness, conservation."""
    from rich.console import Console

    from equipot.deploy.check import check as run_check

    with Console(stderr=True).status("loading") as status:
        report = run_check(file, device, on_progress=status.update)
    if report.items:
        Console().print(report.table())
    if report.error is not None:
        raise ModelFileError(report.error)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
@shared.with_options("settings", shared.options_of(MDSettings), MDSettings)
def md(
    structure: shared.Structure,
    model: shared.Model,
    settings: MDSettings,
    species_map: shared.SpeciesMap = None,
    supercell: Annotated[tuple[int, int, int], typer.Option(help="Repeat the cell.")] = (1, 1, 1),
    skin: Annotated[float, typer.Option(help="Å the neighbor list reaches beyond the cutoff.")] = 0.5,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Trajectory, log and plot go there.")] = Path(
        "md"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in DIR.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in DIR, as if it had not been interrupted; with more --steps if wanted. "
            "All else as before. Begins it if DIR is new or empty.",
        ),
    ] = False,
    device: shared.Device = "auto",
) -> None:
    """Run molecular dynamics with a deployed model."""
    from rich.console import Console

    from equipot.integrations.md import run_md
    from equipot.integrations.md_report import summary_table
    from equipot.machine import keep_memory

    keep_memory()
    where = {"species_map": species_map, "supercell": supercell, "device": device, "skin": skin}
    result = run_md(structure, model, output, settings, **where, overwrite=overwrite, resume=resume)
    Console().print(summary_table(result.summary))
    for name in ("trajectory.extxyz", "log.csv", "restart.npz", "plot.png", "summary.json"):
        print(f"Wrote {result.directory / name}")


@app.command()
def build(
    force: Annotated[bool, typer.Option("--force", help="Compile again even if they are there.")] = False,
) -> None:
    """Compile the fast kernels and the engine now rather than at their first use."""
    from equipot.engine.build import build as build_engine
    from equipot.engine.library import instructions
    from equipot.ops.build import build as build_kernels

    print(f"Engine: {build_engine(force)}, which uses {instructions()} instructions here")
    print(f"Kernels: {build_kernels(force)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the YAML file, for editors that complete and check it."""
    import json

    from equipot.config import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


app.command()(relax)
app.command()(denoise)
properties.register(app)
