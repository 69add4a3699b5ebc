"""``equipot phonons`` and its like: properties of one structure."""

from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from equipot.cli.data import Model, Structure, options_of, with_options
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


def run(name: str, common: Common | DensitySettings, *arguments: Any, needs: str = "", extra="properties"):
    """Compute, write and print the property that the module of this ``name`` computes.

    A folder that cannot be used, and modules that it ``needs`` and an ``extra`` installs, are said before.
    """
    from equipot.machine import keep_memory
    from equipot.properties.output import check_folder, finish
    from equipot.properties.start import need

    need(*needs.split(), extra=extra)
    keep_memory()
    if name != "neb":  # whose folder may hold an unfinished band
        check_folder(name, common)
    compute = getattr(import_module(f"equipot.properties.{name}"), name)
    finish(compute(*arguments), common)


@with_settings(PhononSettings)
def phonons(structure: Structure, model: Model, common: Common, settings: PhononSettings) -> None:
    """Phonons: bands, density of states, thermal properties, imaginary modes (phonopy)."""
    run("phonons", common, structure, model, common, settings, needs="phonopy seekpath spglib")


@with_settings(KappaSettings)
def kappa(structure: Structure, model: Model, common: Common, settings: KappaSettings) -> None:
    """Lattice thermal conductivity by three-phonon scattering (phono3py)."""
    needs = "phonopy phono3py seekpath spglib"
    run("kappa", common, structure, model, common, settings, needs=needs, extra="kappa")


@with_settings(ElasticSettings)
def elastic(structure: Structure, model: Model, common: Common, settings: ElasticSettings) -> None:
    """Elastic tensor of a crystal, moduli, stability, sound (spglib)."""
    run("elastic", common, structure, model, common, settings, needs="spglib")


@with_settings(EosSettings)
def eos(structure: Structure, model: Model, common: Common, settings: EosSettings) -> None:
    """Equation of state of a crystal: volume, bulk modulus and its derivative, by several forms (ASE)."""
    run("eos", common, structure, model, common, settings, needs="spglib")


@with_settings(VibrationSettings)
def vibrations(structure: Structure, model: Model, common: Common, settings: VibrationSettings) -> None:
    """Vibrations of a molecule or an adsorbate: frequencies, zero-point energy, thermochemistry (ASE)."""
    run("vibrations", common, structure, model, common, settings)


@with_settings(NebSettings)
def neb(
    structure: Structure,
    last: Annotated[str, typer.Argument(metavar="LAST", help="The other end, with the same atoms.")],
    model: Model,
    common: Common,
    settings: NebSettings,
) -> None:
    """Minimum-energy path between two structures and its barrier, by nudged elastic bands (ASE)."""
    run("neb", common, structure, last, model, common, settings)


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
    run("spectrum", common, trajectory, model, common, settings)


@with_options("settings", options_of(DensitySettings), DensitySettings)
def density(structure: Structure, model: Model, settings: DensitySettings) -> None:
    """Electron density of a molecule: cube file, picture, number of electrons, dipole."""
    run("density", settings, structure, model, settings)


def register(app: typer.Typer) -> None:
    """Add the commands, in the order of ``equipot --help``."""
    for command in (phonons, kappa, elastic, eos, vibrations, neb, spectrum, density):
        app.command()(command)
