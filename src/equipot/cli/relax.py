"""``equipot relax``."""

from pathlib import Path
from typing import Annotated

import typer

from equipot.cli.data import Device, Model, SpeciesMap, options_of, with_options
from equipot.integrations.relax_settings import RelaxSettings


@with_options("settings", options_of(RelaxSettings), RelaxSettings)
def relax(
    structures: Annotated[
        list[str],
        typer.Argument(metavar="STRUCTURES", help="Any files of training; FILE@0 is a first frame alone."),
    ],
    model: Model,
    settings: RelaxSettings,
    species_map: SpeciesMap = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Table and structures go there; what is there goes on.")
    ] = Path("relax"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in DIR.")] = False,
    max_edges: Annotated[
        int | None, typer.Option(min=1, help="Edges evaluated at once; fewer if memory runs out.")
    ] = None,
    skin: Annotated[float, typer.Option(help="Å the neighbor lists reach beyond the cutoff.")] = 0.5,
    device: Device = "auto",
) -> None:
    """Relax many structures at once, their cells too if wanted; goes on where it was interrupted.

    The exit code is 1 if some did not converge.
    """
    from rich.console import Console

    from equipot.integrations.relax import run_relax
    from equipot.integrations.relax_files import FILES, JOURNAL, SHOWN, printed_table
    from equipot.machine import keep_memory

    keep_memory()
    where = {"species_map": species_map, "device": device, "skin": skin, "max_edges": max_edges}
    result = run_relax(structures, model, output, settings, **where, overwrite=overwrite)
    Console().print(printed_table(result.table, settings.cell))
    shown = f" Shown: {SHOWN}, the first that did not before others." if len(result.table) > SHOWN else ""
    print(f"{sum(row['converged'] for row in result.table)} of {len(result.table)} converged.{shown}")
    for name in FILES:
        if name != JOURNAL:
            print(f"Wrote {result.directory / name}")
    if not result.converged:
        raise typer.Exit(1)
