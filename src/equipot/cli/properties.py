"""``equipot phonons`` and its like: properties of one structure."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from equipot.cli.data import options_of, with_options
from equipot.properties.settings import Common

Structure = Annotated[
    str, typer.Argument(metavar="STRUCTURE", help="Any file of training; FILE@0 is its first frame.")
]
Model = Annotated[Path, typer.Option(metavar="FILE", help="Deployed model file; or an ensemble.")]


def with_settings(settings: type | None = None) -> Callable:
    """Give a command the options of `Common` for ``common`` and those of ``settings`` for ``settings``."""

    def decorate(function: Callable) -> Callable:
        if settings is not None:
            function = with_options("settings", options_of(settings), settings)(function)
        return with_options("common", options_of(Common), Common)(function)

    return decorate


def run(name: str, compute: Callable, common: Common, *arguments: Any) -> None:
    """Compute, write and print a property; a folder that cannot be used is said before the work."""
    from equipot.machine import keep_memory
    from equipot.properties.output import check_folder, finish

    keep_memory()
    check_folder(name, common)
    finish(compute(*arguments), common)


def register(app: typer.Typer) -> None:
    """Add the commands, in the order of ``equipot --help``."""
    for command in ():
        app.command()(command)
