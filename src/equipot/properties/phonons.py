"""Phonons by phonopy: bands, density of states, thermal properties, imaginary modes, checks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from phonopy import Phonopy

from equipot.properties import supercells
from equipot.properties.born import check_born
from equipot.properties.force_constants import Displacer, Supercell, size_of
from equipot.properties.output import Result, Table, write_columns
from equipot.properties.phonon_bands import (
    Bands,
    Modes,
    band_structure,
    densities,
    imaginary_modes,
    thermal_properties,
)
from equipot.properties.phonon_plots import plot_bands, plot_thermal
from equipot.properties.settings import Common, PhononSettings
from equipot.properties.start import Model, prepare

_NAC = {"born_charges_e": "born", "dielectric_tensor": "dielectric"}
_KJ_PER_MOL = 96.48533212  # of an eV


def phonons(
    structure: str | Path | Atoms,
    model: Model,
    common: Common | None = None,
    settings: PhononSettings | None = None,
) -> Result:
    """Phonons of a crystal, by displacements of both signs in a supercell.

    Args:
        structure, model: as `prepare`; the crystal may be any cell, its primitive one is found.

    Raises:
        ConfigError, DataError, UnknownSpeciesError, ModelFileError, DeviceError, SimulationError: as
            `prepare` and `born_of`.
    """
    common, settings = common or Common(), settings or PhononSettings()
    start = prepare(structure, model, common, periodic=True, needs=partial(check_born, settings.born))
    unitcell = supercells.refined(start.atoms, common.symprec)
    work = Displacer(unitcell, start.atoms.calc, common, settings)
    found, checks = work.converge()
    if settings.checks:
        checks.append(work.check_displacement(found[0]))
    if settings.hessian:
        checks.append(work.check_hessian(found[0]))
    chosen = found[0] if settings.supercell else found[-1]
    phonon = chosen.phonon
    bands = band_structure(phonon, common.symprec)
    dos = densities(phonon, settings.mesh)
    thermal = thermal_properties(phonon, settings)
    modes = imaginary_modes(phonon, bands)
    numbers = start.described | _numbers(chosen, bands, thermal, modes, settings) | {"checks": checks}
    return Result(
        "phonons",
        numbers,
        _paragraphs(start.described, chosen, bands, thermal, modes, checks, start.reach),
        [_points_table(bands), *_checks_table(checks), *_modes_table(modes), _thermal_table(thermal)],
        {"bands.png": plot_bands(bands, dos), "thermal.png": plot_thermal(thermal)},
        _files(phonon, bands, dos, thermal),
    )


def _numbers(
    chosen: Supercell, bands: Bands, thermal: dict[str, NDArray], modes: list[Modes], settings: PhononSettings
) -> dict[str, Any]:
    phonon = chosen.phonon
    cell = phonon.primitive
    frequencies = np.concatenate(bands.frequencies)
    return {
        "primitive_atoms": len(cell),
        "primitive_cell_A": cell.cell,
        "primitive_symbols": list(cell.symbols),
        "primitive_scaled_positions": cell.scaled_positions,
        "supercell_matrix": phonon.supercell_matrix,
        "supercell_atoms": len(phonon.supercell),
        "displacement_A": settings.displacement,
        "displacements": len(phonon.displacements),
        "sum_rule_before_symmetrization_eV_per_A2": chosen.sum_rule,
        "non_analytical_correction": phonon.nac_params is not None,
        **{key: phonon.nac_params[of] for key, of in _NAC.items() if phonon.nac_params},
        "lowest_frequency_THz": float(frequencies.min()),
        "highest_frequency_THz": float(frequencies.max()),
        "special_points": [
            {"label": name, "q": q, "frequencies_THz": of} for name, q, of in bands.special_points()
        ],
        "imaginary_modes": [vars(mode) for mode in modes],
        "zero_point_energy_kJ_per_mol": float(thermal["zero_point"]),
        "thermal_temperature_K": thermal["temperature_K"],
        "thermal_free_energy_kJ_per_mol": thermal["free_energy_kJ_per_mol"],
        "thermal_entropy_J_per_K_mol": thermal["entropy_J_per_K_mol"],
        "thermal_heat_capacity_J_per_K_mol": thermal["heat_capacity_J_per_K_mol"],
    }


def _paragraphs(
    described: dict[str, Any],
    chosen: Supercell,
    bands: Bands,
    thermal: dict[str, NDArray],
    modes: list[Modes],
    checks: list[dict[str, Any]],
    reach: float | None,
) -> list[str]:
    relaxed = described.get("space_group_relaxed")
    group = described["space_group"] + (f", after relaxing {relaxed}" if relaxed else "")
    primitive = chosen.phonon.primitive
    name = Atoms(primitive.symbols).get_chemical_formula("metal")
    texts = [f"{name}: space group {group}; the primitive cell has {len(primitive)} atoms."]
    text = f"Supercell: {size_of(chosen)}."
    if reach is not None:
        text += (
            f" The model's atoms depend on what is within {reach:g} Å, so force constants reach twice as far."
        )
    for check in checks:
        if check["check"] == "supercell":
            text += (
                f" From {check['from']} to {check['to']}, frequencies at special points change by "
                f"{check['mean_change_THz']:.3f} THz on average, {check['largest_change_THz']:.3f} at most."
            )
    if not any(check["check"] == "supercell" for check in checks):
        text += " No larger one was compared with it (--max-atoms, --checks): it may not be converged."
    texts.append(text)
    frequencies = np.concatenate(bands.frequencies).round(3) + 0.0  # no −0.000
    nac = "with" if chosen.phonon.nac_params is not None else "without"
    texts.append(
        f"Frequencies along the path: {frequencies.min():.3f} to {frequencies.max():.3f} THz, {nac} "
        "non-analytical correction. The acoustic sum rule, violated by "
        f"{chosen.sum_rule:.1e} eV/Å², was imposed."
    )
    texts.append(_on_modes(modes))
    energy = thermal["zero_point"] / len(primitive) / _KJ_PER_MOL * 1e3
    texts.append(
        f"Zero-point energy {energy:.2f} meV per atom. Thermal properties are for a mole of {name}, "
        "harmonic, at this volume."
    )
    return texts


def _on_modes(modes: list[Modes]) -> str:
    real = [mode for mode in modes if mode.kind == "instability"]
    if real:
        worst = min(real, key=lambda mode: mode.frequency_THz)
        return (
            f"Imaginary modes where the supercell is exact, the largest {worst}: this structure is no "
            "minimum but a saddle point of the model; atoms moved along that mode find a lower one. "
            "Thermal properties leave imaginary modes out."
        )
    if modes:
        worst = min(modes, key=lambda mode: mode.frequency_THz)
        return (
            f"No imaginary mode at the points that the supercell has, but between them, the largest {worst}: "
            "interpolated, and likely to go with a larger supercell."
        )
    return "No imaginary modes."


def point_text(q: NDArray) -> str:
    return " ".join(f"{round(x, 6) + 0.0:.4g}" for x in q)


def _points_table(bands: Bands) -> Table:
    rows = [
        (name, point_text(q), " ".join(f"{round(f, 3) + 0.0:.3f}" for f in of))
        for name, q, of in bands.special_points()
    ]
    return Table(
        "Special points", ("point", "q (primitive)", "frequencies (THz), imaginary as negative"), rows
    )


def _checks_table(checks: list[dict[str, Any]]) -> list[Table]:
    columns = ("check", "from", "to", "mean change (THz)", "largest (THz)")
    keys = ("check", "from", "to", "mean_change_THz", "largest_change_THz")
    rows = [[check[key] for key in keys] for check in checks]
    return [Table("Checks: frequencies at special points and halfway between", columns, rows)] if rows else []


def _modes_table(modes: list[Modes]) -> list[Table]:
    columns = ("point", "q (primitive)", "frequency (THz)", "kind", "atoms that move")
    rows = [(m.label, point_text(m.q), m.frequency_THz, m.kind, m.shares_text) for m in modes]
    return [Table("Imaginary modes", columns, rows)] if rows else []


def _thermal_table(thermal: dict[str, NDArray]) -> Table:
    names = ("temperature_K", "free_energy_kJ_per_mol", "entropy_J_per_K_mol", "heat_capacity_J_per_K_mol")
    shown = [0, *(int(np.abs(thermal[names[0]] - t).argmin()) for t in (100, 200, 300, 500, 1000))]
    rows = [[float(thermal[name][i]) for name in names] for i in dict.fromkeys(shown)]
    return Table("Thermal properties", ("T (K)", "F (kJ/mol)", "S (J/K/mol)", "Cv (J/K/mol)"), rows)


def _files(
    phonon: Phonopy, bands: Bands, dos: dict[str, NDArray], thermal: dict[str, NDArray]
) -> dict[str, Callable[[Path], Any]]:
    """Columns for other programs, and what phonopy goes on with."""
    columns = {name: values for name, values in thermal.items() if np.ndim(values)}
    saved = {"force_constants": True}
    return {
        "bands.csv": lambda path: write_columns(path, bands.columns()),
        "dos.csv": lambda path: write_columns(path, dos),
        "thermal.csv": lambda path: write_columns(path, columns),
        "phonopy_params.yaml": lambda path: phonon.save(path, settings=saved),
    }
