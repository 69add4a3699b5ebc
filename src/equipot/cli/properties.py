"""``equipot phonons`` and its like: properties of one structure."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from equipot.cli.data import options_of, with_options
from equipot.properties.settings import (
    Common,
    DensitySettings,
    ElasticSettings,
    EosSettings,
    KappaSettings,
    NebSettings,
    PhononSettings,
    SpectrumSettings,
    VibrationSettings,
)

Structure = Annotated[
    str, typer.Argument(metavar="STRUCTURE", help="Any file of training; FILE@0 is its first frame.")
]
Model = Annotated[Path, typer.Option(metavar="FILE", help="Deployed model file; or an ensemble.")]


def with_settings(settings: type | None = None, shared: Collection[str] | None = None) -> Callable:
    """Give a command the options of `Common` for ``common`` and those of ``settings`` for ``settings``.

    ``shared``: which of the former; None: all.
    """

    def decorate(function: Callable) -> Callable:
        if settings is not None:
            function = with_options("settings", options_of(settings), settings)(function)
        options = [one for one in options_of(Common) if shared is None or one.name in shared]
        return with_options("common", options, Common)(function)

    return decorate


def run(name: str, compute: Callable, common: Common | DensitySettings, *arguments: Any) -> None:
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


@with_settings(ElasticSettings)
def elastic(structure: Structure, model: Model, common: Common, settings: ElasticSettings) -> None:
    """Elastic tensor of a crystal, moduli, stability, sound (spglib)."""
    from equipot.properties.start import need

    need("spglib")
    from equipot.properties.elastic import elastic as compute

    run("elastic", compute, common, structure, model, common, settings)


@with_settings(EosSettings)
def eos(structure: Structure, model: Model, common: Common, settings: EosSettings) -> None:
    """Equation of state of a crystal: volume, bulk modulus and its derivative, by several forms (ASE)."""
    from equipot.properties.start import need

    need("spglib")
    from equipot.properties.eos import eos as compute

    run("eos", compute, common, structure, model, common, settings)


@with_settings(VibrationSettings)
def vibrations(structure: Structure, model: Model, common: Common, settings: VibrationSettings) -> None:
    """Vibrations of a molecule or an adsorbate: frequencies, zero-point energy, thermochemistry (ASE)."""
    from equipot.properties.vibrations import vibrations as compute

    run("vibrations", compute, common, structure, model, common, settings)


@with_settings(NebSettings)
def neb(
    structure: Structure,
    last: Annotated[str, typer.Argument(metavar="LAST", help="The other end, with the same atoms.")],
    model: Model,
    common: Common,
    settings: NebSettings,
) -> None:
    """Minimum-energy path between two structures and its barrier, by nudged elastic bands (ASE)."""
    from equipot.machine import keep_memory
    from equipot.properties.neb import neb as compute
    from equipot.properties.output import finish

    keep_memory()
    finish(compute(structure, last, model, common, settings), common)


@with_settings(SpectrumSettings, shared=("device", "output", "overwrite"))
def spectrum(
    trajectory: Annotated[
        str, typer.Argument(metavar="TRAJECTORY", help="Of equipot md, or another that ASE reads.")
    ],
    common: Common,
    settings: SpectrumSettings,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Deployed model whose dipole and polarizability are taken."),
    ] = None,
) -> None:
    """Infrared, Raman and vibrational spectra of a trajectory, by autocorrelation."""
    from equipot.properties.spectrum import spectrum as compute

    run("spectrum", compute, common, trajectory, model, common, settings)


@with_options("settings", options_of(DensitySettings), DensitySettings)
def density(structure: Structure, model: Model, settings: DensitySettings) -> None:
    """Electron density of a molecule: cube file, picture, number of electrons, dipole."""
    from equipot.properties.density import density as compute

    run("density", compute, settings, structure, model, settings)


def register(app: typer.Typer) -> None:
    """Add the commands, in the order of ``equipot --help``."""
    for command in (phonons, kappa, elastic, eos, vibrations, neb, spectrum, density):
        app.command()(command)
