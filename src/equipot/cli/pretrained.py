"""``equipot import``."""

from pathlib import Path
from typing import Annotated

import typer

from equipot.cli.data import Level, Overwrite


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Checkpoint of SevenNet (.pth), or 7net-0, 7net-0_22May2024, 7net-l3i5 or 7net-mf-0, of the "
            "installed package sevenn; checkpoint (.ckpt) or package (.nequip.zip) of NequIP.",
        ),
    ],
    level: Level = None,
    elements: Annotated[
        str | None, typer.Option(metavar="H,C,...", help="Keep these only; by default all.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="By default NAME.ckpt.")] = None,
    overwrite: Overwrite = False,
    dtype: Annotated[str, typer.Option(help="float32, or float64.")] = "float32",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare with the original code, which must be installed.")
    ] = False,
    replay: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Write what the model predicts for N structures of all its elements, too, as "
            "NAME_replay.xyz: for fine_tune.replay.",
        ),
    ] = None,
    python: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="Interpreter that has nequip; by default this one.")
    ] = None,
) -> None:
    """Make a checkpoint of a pretrained model of another code: to deploy, evaluate, fine-tune."""
    from rich.console import Console

    from equipot.data.text import counted
    from equipot.deploy.info import origin_table
    from equipot.interop.importer import import_model, runs_code
    from equipot.interop.verify import comparison_table

    symbols = None if elements is None else [symbol.strip() for symbol in elements.split(",")]
    if runs_code(source):
        print(f"Opening {source} runs code that is in it, in a process of its own with nequip.")
    found = import_model(source, output, level, symbols, dtype, verify, python, replay, overwrite)
    if found.comparisons:
        Console().print(comparison_table(found.comparisons))
    Console().print(origin_table(found.checkpoint.origin))
    kept = counted(len(found.checkpoint.potential.species), "element")
    levels = found.checkpoint.levels
    of_levels = f", levels {', '.join(levels)}" if len(levels) > 1 else ""
    print(f"Wrote {found.checkpoint.path} ({kept}{of_levels}, {dtype})")
    if found.replay is not None:
        print(f"Wrote {found.replay} ({counted(replay, 'frame')})")
