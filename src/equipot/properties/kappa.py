"""Lattice thermal conductivity by phono3py, from third-order force constants of displaced pairs."""

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from matplotlib.figure import Figure
from numpy.typing import NDArray
from phono3py import Phono3py

from equipot.data.text import counted
from equipot.errors import ConfigError, SimulationError
from equipot.properties import supercells
from equipot.properties.born import check_born
from equipot.properties.force_constants import Displacer, Supercell, cutoff_of, size_of
from equipot.properties.output import Result, Table, write_columns
from equipot.properties.phonon_bands import band_structure, imaginary_modes
from equipot.properties.settings import Common, KappaSettings, PhononSettings
from equipot.properties.start import Model, evaluate, prepare

_COARSER = 0.75  # of the mesh, in its check
_CHANGE = 0.2  # of the conductivity by the mesh; more is worth a warning
_AXES = ("xx", "yy", "zz", "yz", "xz", "xy")

log = logging.getLogger("equipot")


def kappa(
    structure: str | Path | Atoms,
    model: Model,
    common: Common | None = None,
    settings: KappaSettings | None = None,
) -> Result:
    """Thermal conductivity of a crystal by three-phonon scattering.

    Second-order force constants are those of `phonons` in the same supercell. Source: Togo, Chaput, Tanaka,
    Phys. Rev. B 91, 094306 (2015); Chaput, Phys. Rev. Lett. 110, 265506 (2013).

    Raises:
        SimulationError: imaginary modes, with which the conductivity means nothing.
        ConfigError, DataError, UnknownSpeciesError, ModelFileError, DeviceError: as `prepare` and
            `born_of`.
    """
    common, settings = common or Common(), settings or KappaSettings()
    start = prepare(structure, model, common, periodic=True, needs=partial(check_born, settings.born))
    unitcell, calculator = supercells.refined(start.atoms, common.symprec), start.atoms.calc
    base, copies = supercells.base_cell(unitcell, common.symprec), settings.supercell
    if copies is None:
        cell = base.T @ unitcell.cell.array
        copies = supercells.first_supercell(cell, cutoff_of(calculator))
    else:
        base = np.eye(3, dtype=int)
    displacer = Displacer(unitcell, calculator, common, PhononSettings(born=settings.born))
    _require_pairs(unitcell, settings.pair_cutoff)
    harmonic = displacer.displace(base, np.array(copies), displacer.settings.displacement)
    _require_stable(harmonic, common)
    crystal, pairs = _third_order(harmonic, calculator, settings)
    fine = _conductivity(crystal, settings, settings.mesh)
    coarse = _conductivity(crystal, settings, _COARSER * settings.mesh)
    with np.errstate(divide="ignore", invalid="ignore"):
        change = _trace(fine["kappa"]) / _trace(coarse["kappa"]) - 1.0
    numbers = start.described | {
        "supercell_atoms": len(crystal.supercell),
        "supercell_matrix": crystal.supercell_matrix,
        "displaced_supercells": pairs,
        "pair_cutoff_A": settings.pair_cutoff,
        "method": "LBTE" if settings.lbte else "RTA",
        "isotopes": settings.isotopes,
        "mesh": fine["mesh"],
        "coarser_mesh": coarse["mesh"],
        "temperature_K": settings.kelvins(),
        "kappa_W_per_mK": fine["kappa"],
        "kappa_components": _AXES,
        "kappa_coarser_mesh_W_per_mK": coarse["kappa"],
        "change_by_mesh_percent": 100.0 * change,
    }
    return Result(
        "kappa",
        numbers,
        _paragraphs(start.described, harmonic, pairs, settings, fine, coarse, change),
        [_table(settings, fine, change)],
        {"kappa.png": _plot(settings.kelvins(), fine, coarse)},
        {
            "kappa.csv": lambda path: write_columns(path, _columns(settings, fine)),
            "phono3py_params.yaml": lambda path: crystal.save(path),
        },
        _doubts(fine, coarse, change),
    )


def _require_pairs(unitcell: Atoms, cutoff: float | None) -> None:
    shortest = min(neighbor_list("d", unitcell, 6.0), default=6.0)
    if cutoff is not None and cutoff < shortest:
        raise ConfigError(
            f"--pair-cutoff: the nearest atoms are {shortest:.2f} Å apart, so {cutoff:g} Å leaves no pair. "
            "Take the second or third shell of neighbors at least, and see what a larger one changes."
        )


def _require_stable(harmonic: Supercell, common: Common) -> None:
    modes = imaginary_modes(harmonic.phonon, band_structure(harmonic.phonon, common.symprec))
    if modes:
        raise SimulationError(
            f"The crystal has imaginary modes, the largest {modes[0]}: no conductivity follows. "
            "'equipot phonons' shows all; try a larger --supercell, or --relax."
        )


def _third_order(harmonic: Supercell, calculator: Any, settings: KappaSettings) -> tuple[Phono3py, int]:
    """With force constants of second and third order, and how many supercells were evaluated for these."""
    phonon = harmonic.phonon
    crystal = Phono3py(
        phonon.unitcell,
        supercell_matrix=phonon.supercell_matrix,
        phonon_supercell_matrix=phonon.supercell_matrix,
        primitive_matrix=phonon.primitive_matrix,
        symprec=phonon.symmetry.tolerance,
    )
    crystal.generate_displacements(distance=settings.displacement, cutoff_pair_distance=settings.pair_cutoff)
    displaced = crystal.supercells_with_displacements  # None for pairs beyond the cutoff
    cells = [None if cell is None else supercells.from_phonopy(cell) for cell in displaced]
    wanted = [cell for cell in cells if cell is not None]
    begin = time.perf_counter()
    rest = evaluate(calculator, [supercells.from_phonopy(crystal.supercell)], "")[0]["forces"]
    seconds = (time.perf_counter() - begin) * len(wanted)
    log.info(
        "%s of %d atoms, one or two of them displaced: about %.0f s. Then scattering, on two meshes.",
        counted(len(wanted), "supercell"), len(rest), seconds,
    )  # fmt: skip
    results = iter(evaluate(calculator, wanted, "displaced pairs"))
    crystal.forces = np.array(
        [np.zeros_like(rest) if cell is None else next(results)["forces"] - rest for cell in cells]
    )
    crystal.produce_fc3()
    crystal.symmetrize_fc3()
    crystal.fc2 = phonon.force_constants
    crystal.nac_params = phonon.nac_params
    return crystal, len(wanted)


def _conductivity(crystal: Phono3py, settings: KappaSettings, mesh: float) -> dict[str, NDArray]:
    """κ (T, 6) W/m/K of one mesh."""
    crystal.mesh_numbers = mesh
    crystal.init_phph_interaction()
    crystal.run_thermal_conductivity(
        temperatures=settings.kelvins(), is_LBTE=settings.lbte, is_isotope=settings.isotopes, log_level=0
    )
    found = np.asarray(crystal.thermal_conductivity.kappa)
    return {"kappa": found.reshape(-1, *found.shape[-2:])[0], "mesh": np.asarray(crystal.mesh_numbers)}


def _trace(kappa: NDArray) -> NDArray:
    return kappa[:, :3].mean(axis=1)


def _paragraphs(
    described: dict[str, Any],
    harmonic: Supercell,
    pairs: int,
    settings: KappaSettings,
    fine: dict[str, NDArray],
    coarse: dict[str, NDArray],
    change: NDArray,
) -> list[str]:
    group = described.get("space_group_relaxed", described["space_group"])
    near = int(np.abs(np.array(settings.kelvins()) - 300.0).argmin())
    method = "the linearized Boltzmann equation" if settings.lbte else "relaxation times"
    reach = f"pairs up to {settings.pair_cutoff:g} Å" if settings.pair_cutoff else "all pairs"
    meshes = ["×".join(map(str, of["mesh"])) for of in (coarse, fine)]
    return [
        f"{described['formula']}, space group {group}. Lattice thermal conductivity by three-phonon "
        f"scattering, {method}, {'with' if settings.isotopes else 'without'} isotopes: "
        f"{_trace(fine['kappa'])[near]:.4g} W/m/K at {settings.kelvins()[near]:g} K (mean of xx, yy, zz).",
        f"Third-order force constants from {counted(pairs, 'supercell')} ({size_of(harmonic)}; {reach}). "
        f"From a mesh of {meshes[0]} to {meshes[1]} the conductivity changes by {100 * change[near]:.1f} %. "
        "It also depends on the supercell and the cutoff of pairs: repeat with larger ones.",
    ]


def _doubts(fine: dict[str, NDArray], coarse: dict[str, NDArray], change: NDArray) -> list[str]:
    texts = []
    if not (_trace(fine["kappa"]) > 0).all():
        texts.append("No mode carries heat at some temperature: do atoms of different cells interact?")
    if np.array_equal(fine["mesh"], coarse["mesh"]):
        texts.append("Both meshes are the same, which says nothing of convergence: give a larger --mesh.")
    elif not (abs(change) < _CHANGE).all():
        texts.append(
            f"It changes by more than {_CHANGE:.0%} with the mesh at some temperature: give a larger --mesh."
        )
    return texts


def _table(settings: KappaSettings, fine: dict[str, NDArray], change: NDArray) -> Table:
    rows = [
        (t, *map(float, of[:3]), float(100 * by))
        for t, of, by in zip(settings.kelvins(), fine["kappa"], change, strict=True)
    ]
    columns = ("T (K)", "xx (W/m/K)", "yy", "zz", "change by mesh (%)")
    return Table("Thermal conductivity", columns, rows)


def _columns(settings: KappaSettings, fine: dict[str, NDArray]) -> dict[str, NDArray]:
    found = {"temperature_K": np.array(settings.kelvins())}
    return found | {f"kappa_{axis}_W_per_mK": of for axis, of in zip(_AXES, fine["kappa"].T, strict=True)}


def _plot(kelvins: list[float], fine: dict[str, NDArray], coarse: dict[str, NDArray]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for place, color in enumerate(("#1f4e79", "tab:orange", "tab:green")):
        if place and np.allclose(fine["kappa"][:, place], fine["kappa"][:, 0], rtol=1e-3):
            continue
        for of, style in ((fine, "o-"), (coarse, "--")):
            mesh = "×".join(map(str, of["mesh"]))
            axes.loglog(
                kelvins, of["kappa"][:, place], style, color=color, label=f"{_AXES[place]}, mesh {mesh}"
            )
    axes.set(xlabel="temperature (K)", ylabel="thermal conductivity (W/m/K)")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure
