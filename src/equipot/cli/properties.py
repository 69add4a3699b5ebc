"""``equipot phonons`` and its like: properties of one structure."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from equipot.cli.data import options_of, with_options
from equipot.properties.settings import Common, KappaSettings, PhononSettings

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


@with_settings(PhononSettings)
def phonons(structure: Structure, model: Model, common: Common, settings: PhononSettings) -> None:
    """Phonons: bands, density of states, thermal properties, imaginary modes (phonopy)."""
    from equipot.properties.start import need

    need("phonopy", "seekpath", "spglib")
    from equipot.properties.phonons import phonons as compute

    run("phonons", compute, common, structure, model, common, settings)


@with_settings(KappaSettings)
def kappa(structure: Structure, model: Model, common: Common, settings: KappaSettings) -> None:
    """Lattice thermal conductivity by three-phonon scattering (phono3py)."""
    from equipot.properties.start import need

    need("phonopy", "phono3py", "seekpath", "spglib", extra="kappa")
    from equipot.properties.kappa import kappa as compute

    run("kappa", compute, common, structure, model, common, settings)


def register(app: typer.Typer) -> None:
    """Add the commands, in the order of ``equipot --help``."""
    for command in (phonons, kappa):
        app.command()(command)
