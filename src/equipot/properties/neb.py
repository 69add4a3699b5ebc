"""``equipot neb``: the minimum-energy path between two structures, and its barrier."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
from ase import Atoms

from equipot.data.text import counted
from equipot.errors import ConfigError
from equipot.files import atomic_write
from equipot.properties import band, normal_modes
from equipot.properties.output import Result, Table, check_folder, folder_of
from equipot.properties.settings import Common, NebSettings
from equipot.properties.start import Model, Start, prepare, require_minimum
from equipot.properties.strained import relax_ions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAND, UNFINISHED = "band.extxyz", "unfinished.extxyz"
_COARSE = 0.05  # eV, between the highest image and the splines; more asks for more images

log = logging.getLogger("equipot")


def neb(
    first: str | Path | Atoms,
    last: str | Path | Atoms,
    model: Model,
    common: Common | None = None,
    settings: NebSettings | None = None,
) -> Result:
    """The path of `band.minimum_energy_path`, the barrier of which is that of its highest image.

    While it works, the band is kept in the output folder as ``unfinished.extxyz``, whole, every 10 steps;
    ``settings.resume`` goes on from it. Ends are relaxed in their cell (``common.relax``), or must be minima.

    Args:
        first, last, model: as `prepare`; the same atoms in the same order in one cell.

    Raises what `prepare` and `band.minimum_energy_path` raise.
    """
    common, settings = common or Common(), settings or NebSettings()
    file = folder_of("neb", common) / UNFINISHED
    earlier = _earlier(file, common, settings)
    free = replace(common, relax=False, keep_cell=False, max_force=np.inf, max_stress=np.inf)
    start = prepare(first, model, free, keep_constraints=True)
    other = prepare(last, start.atoms.calc, free, keep_constraints=True)
    band.matched(start.atoms, other.atoms, settings.keep_order)  # before the work
    start, other = (_at_minimum(end, common, settings) for end in (start, other))
    path = band.minimum_energy_path(
        start.atoms,
        other.atoms,
        settings.images,
        interpolation=settings.interpolation,
        climb=settings.climb,
        method=settings.method,
        spring=settings.spring,
        fmax=settings.fmax,
        steps=settings.steps,
        keep_order=settings.keep_order,
        start=earlier,
        keep=lambda images: _write_band(images, file),
    )
    numbers = {**start.described, "last": other.described["structure"], **_numbers(path, settings)}
    if settings.check_saddle and path.has_barrier:
        numbers |= _saddle(path, start.atoms)
    files = {BAND: lambda target: ase.io.write(target, list(path.images), format="extxyz")}
    if path.has_barrier:
        files["saddle.extxyz"] = lambda target: ase.io.write(target, path.images[path.top], format="extxyz")
    file.unlink(missing_ok=True)  # not before the saddle was checked, which may fail
    return Result(
        "neb",
        numbers,
        [_summary(numbers, path), _checks(numbers, path, settings)],
        [_table(path)],
        {"profile.png": plot_profile(path)},
        files,
        _doubts(path, numbers),
    )


def _at_minimum(end: Start, common: Common, settings: NebSettings) -> Start:
    """One end, relaxed in its cell if wanted."""
    name = end.described["structure"]
    if common.relax:
        relax_ions(end.atoms, settings.fmax, settings.steps, what=name)
    at = replace(common, max_force=max(common.max_force, settings.fmax), max_stress=np.inf)
    return replace(end, described=end.described | require_minimum(end.atoms, at, name))


def _earlier(file: Path, common: Common, settings: NebSettings) -> list[Atoms] | None:
    """The images to go on from, if any. Raises ConfigError if the folder or the file cannot be used."""
    if file.is_file() and not (settings.resume or common.overwrite):
        raise ConfigError(
            f"{file} is an unfinished band: --resume goes on with it, --overwrite begins again."
        )
    if settings.resume and common.overwrite:
        raise ConfigError("--resume goes on with a band, --overwrite begins another: give one of them.")
    if not (file.is_file() and settings.resume):
        if settings.resume:
            log.info("There is no %s to go on from: the band begins.", file)
        if not file.is_file():
            check_folder("neb", common)
        return None
    try:
        return ase.io.read(file, index=":", format="extxyz")
    except Exception as error:  # whatever ASE's parser runs into
        raise ConfigError(
            f"{file} is no band to go on from: {error}. Begin again, with --overwrite."
        ) from None


def _write_band(images: list[Atoms], file: Path) -> None:
    with atomic_write(file) as temporary:
        ase.io.write(temporary, images, format="extxyz")


def _saddle(path: band.Path, first: Atoms) -> dict[str, Any]:
    top = path.images[path.top].copy()
    top.calc = first.calc
    found = normal_modes.vibrations(top, any_cell=True)
    imaginary = found.wavenumbers[found.imaginary]
    return {"saddle_imaginary_modes": len(imaginary), "saddle_imaginary_wavenumbers_per_cm": imaginary}


def _numbers(path: band.Path, settings: NebSettings) -> dict[str, Any]:
    forward, backward = path.barriers
    return {
        "barrier_forward_eV": forward,
        "barrier_backward_eV": backward,
        "reaction_energy_eV": float(path.energies[-1]),
        "barrier_forward_by_splines_eV": float(max(path.fit.fit_energies)),
        "path_A": path.fit.path,
        "energies_eV": path.energies,
        "spline_path_A": path.fit.fit_path,
        "spline_energies_eV": path.fit.fit_energies,
        "highest_image": path.top,
        "force_at_highest_image_eV_per_A": path.force_at_top,
        "largest_band_force_eV_per_A": path.largest_force,
        "intermediate_minima": path.minima,
        "climbed": path.climbed,
        "method": settings.method,
        "steps": path.steps,
    }


def _summary(numbers: dict[str, Any], path: band.Path) -> str:
    between = f"Between {numbers['structure']} and {numbers['last']} ({numbers['formula']})"
    reaction = f"the last structure is {numbers['reaction_energy_eV']:+.4f} eV from the first"
    if not path.has_barrier:
        return f"{between} there is no barrier: the path goes one way, and {reaction}."
    return (
        f"{between} the barrier is {numbers['barrier_forward_eV']:.4f} eV forward and "
        f"{numbers['barrier_backward_eV']:.4f} eV backward; {reaction}. The path is "
        f"{path.fit.path[-1]:.2f} Å long."
    )


def _checks(numbers: dict[str, Any], path: band.Path, settings: NebSettings) -> str:
    text = (
        f"{counted(len(path.images) - 2, 'image')} between the ends, {settings.method}, relaxed to "
        f"{path.largest_force:.2g} eV/Å in {counted(path.steps, 'step')}; the highest image "
        f"{'climbed' if path.climbed else 'did not climb'}."
    )
    if path.has_barrier:
        text += (
            f" The largest force on its atoms is {path.force_at_top:.2g} eV/Å. Splines through energies and "
            f"forces have their maximum at {numbers['barrier_forward_by_splines_eV']:.4f} eV."
        )
    if "saddle_imaginary_modes" in numbers:
        waves = ", ".join(f"{abs(w):.0f}i" for w in numbers["saddle_imaginary_wavenumbers_per_cm"])
        text += (
            f" It has {counted(numbers['saddle_imaginary_modes'], 'imaginary mode')} ({waves or '-'} cm⁻¹)."
        )
    return text


def _doubts(path: band.Path, numbers: dict[str, Any]) -> list[str]:
    texts = []
    if path.minima:
        texts.append(
            f"There are minima on the way (images {', '.join(map(str, path.minima))}): several steps. Relax "
            "them, and take a band for each step."
        )
    if path.has_barrier and not path.climbed:
        texts.append("No image climbed: the saddle lies between images, and the barrier is a lower bound.")
    if path.has_barrier and max(path.fit.fit_energies) - path.barriers[0] > _COARSE:
        texts.append("Splines go well above the highest image: take more --images.")
    if numbers.get("saddle_imaginary_modes", 1) != 1:
        texts.append("The highest image is no saddle of first order, which has one imaginary mode.")
    return texts


def _table(path: band.Path) -> Table:
    rows = [
        [k, f"{x:.3f}", f"{energy:.4f}", f"{np.linalg.norm(image.get_forces(), axis=1).max():.3g}"]
        for k, (x, energy, image) in enumerate(zip(path.fit.path, path.energies, path.images, strict=True))
    ]
    return Table("Path", ["image", "path (Å)", "energy (eV)", "largest force (eV/Å)"], rows)


def plot_profile(path: band.Path) -> "Figure":
    """Energies along the path with splines through them and their slopes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(path.fit.fit_path, path.fit.fit_energies, color="0.5", lw=1)
    axes.plot(path.fit.path, path.energies, "o", color="#1f4e79", ms=5)
    if path.has_barrier:
        axes.plot(path.fit.path[path.top], path.energies[path.top], "o", color="tab:red", ms=6)
        axes.axhline(path.barriers[0], color="0.8", lw=0.8, zorder=0)
    forward, backward = path.barriers
    axes.axhline(0, color="0.8", lw=0.8, zorder=0)
    axes.set(
        xlabel="path (Å)", ylabel="energy (eV)", title=f"forward {forward:.3f} eV, backward {backward:.3f} eV"
    )
    return figure
