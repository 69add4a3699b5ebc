"""``equipot denoise``."""

from pathlib import Path
from typing import Annotated

import typer

from equipot.cli.data import Device, Overwrite, SpeciesMap, Structure, options_of, with_options
from equipot.integrations.denoise_settings import DenoiseSettings


@with_options("settings", options_of(DenoiseSettings), DenoiseSettings)
def denoise(
    structure: Structure,
    model: Annotated[
        Path, typer.Option(metavar="FILE", help="Deployed file of a training with training.denoise.")
    ],
    settings: DenoiseSettings,
    species_map: SpeciesMap = None,
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Extended XYZ to write, a frame for each copy.")
    ] = Path("denoised.xyz"),
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Make a structure from a noisy one, step by step along the displacements that a model has learnt.

    The exit code is 1 if some did not converge.
    """
    from rich.console import Console

    from equipot.files import refuse_to_replace
    from equipot.integrations.denoise import denoise as run_denoising
    from equipot.integrations.denoise import denoising_table, write_denoised

    refuse_to_replace(output, overwrite)
    found = run_denoising(structure, model, settings, species_map=species_map, device=device)
    write_denoised(output, found)
    Console().print(denoising_table(found))
    print(f"{sum(one.converged for one in found)} of {len(found)} converged.")
    print(f"Wrote {output}")
    if not all(one.converged for one in found):
        raise typer.Exit(1)
