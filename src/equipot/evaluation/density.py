"""Errors of predicted electron densities: ∫|ρ − ρ_ref| dV / N, electrons, dipole."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from equipot.data.frames import Frame
from equipot.evaluation.metrics import frames_in_groups
from equipot.evaluation.predict import Comparison
from equipot.evaluation.report import numeric
from equipot.files import write_json
from equipot.nn.gaussians import GaussianBasis
from equipot.quantities import QUANTITIES
from equipot.units import BOHR

DENSITIES = "densities.json"
_RADIAL, _POLAR = 40, 12  # points of each atom's grid; twice as many azimuths as polar angles


def quadrature(positions: NDArray, atomic_numbers: NDArray) -> tuple[NDArray, NDArray]:
    """Points (G, 3) and weights (G,) of integrals over space, by A. D. Becke, J. Chem. Phys. 88, 2547 (1988).

    ``positions`` (N, 3) and points are in Bohr.
    """
    angle = np.arange(1, _RADIAL + 1) * np.pi / (_RADIAL + 1)
    x = np.cos(angle)
    of_radius = np.pi / (_RADIAL + 1) * np.sin(angle) * 2 / (1 - x) ** 2 * ((1 + x) / (1 - x)) ** 2
    cosine, of_cosine = np.polynomial.legendre.leggauss(_POLAR)
    azimuth = np.arange(2 * _POLAR) * np.pi / _POLAR
    sine = np.sqrt(1 - cosine**2)[:, None]
    flat = [sine * np.cos(azimuth), sine * np.sin(azimuth), np.tile(cosine[:, None], 2 * _POLAR)]
    directions = np.stack(flat, axis=-1).reshape(-1, 3)
    of_direction = np.repeat(of_cosine * np.pi / _POLAR, 2 * _POLAR)
    points, weights = [], []
    for atom, (center, number) in enumerate(zip(positions, atomic_numbers, strict=True)):
        radius = covalent_radii[number] / BOHR
        own = center + (radius * (1 + x) / (1 - x))[:, None, None] * directions
        points.append(own.reshape(-1, 3))
        share = _shares(points[-1], positions)[:, atom]
        weights.append(np.outer(radius**3 * of_radius, of_direction).ravel() * share)
    return np.concatenate(points), np.concatenate(weights)


def _shares(points: NDArray, positions: NDArray) -> NDArray:
    """(G, N) which share of each point an atom has; Becke's eqs. 13 and 19-22, three times smoothed."""
    away = np.linalg.norm(points[:, None] - positions, axis=2)
    apart = np.linalg.norm(positions[:, None] - positions, axis=2)
    np.fill_diagonal(apart, 1.0)
    step = (away[:, :, None] - away[:, None]) / apart
    for _ in range(3):
        step = 1.5 * step - 0.5 * step**3
    cell = 0.5 * (1 - step)
    diagonal = np.arange(len(positions))
    cell[:, diagonal, diagonal] = 1.0
    shares = cell.prod(axis=2)
    return shares / shares.sum(axis=1, keepdims=True)


def density_errors(comparison: Comparison, frames: Sequence[Frame]) -> dict[str, dict[str, NDArray]]:
    """By output that is a density, of each frame (S,): its errors; NaN without a label.

    ``error``: ∫|ρ − ρ_ref| dV / N; ``electrons``: ∫(ρ − ρ_ref) dV; ``dipole``: e Å, the length of the
    difference.
    """
    found = {}
    for name in (name for name in comparison.values if QUANTITIES[name].basis):
        quantity = QUANTITIES[name]
        basis = GaussianBasis(quantity.basis, quantity.rows.irreps, species := list(quantity.basis))
        rows = np.full((len(frames), 3), np.nan)
        for i, frame in enumerate(frames):
            where = comparison.atoms_of(i)
            reference, error = comparison.reference[name][where], comparison.error(name)[where]
            if np.isfinite(reference).all():
                types = torch.tensor([species.index(chemical_symbols[z]) for z in frame.atomic_numbers])
                rows[i] = _errors(basis, frame, types, torch.from_numpy(reference), torch.from_numpy(error))
        found[name] = dict(zip(("error", "electrons", "dipole"), rows.T, strict=True))
    return found


def _errors(basis: GaussianBasis, frame: Frame, types, reference, error) -> tuple[float, float, float]:
    positions = torch.from_numpy(frame.positions / BOHR)
    points, weights = quadrature(positions.numpy(), frame.atomic_numbers)
    difference = basis.density(torch.from_numpy(points), error, positions, types).abs().numpy()
    electrons = basis.moments(reference, positions, types)[0].sum()
    more, dipole = basis.moments(error, positions, types)
    return float(difference @ weights / electrons), float(more.sum()), float(dipole.norm() * BOHR)


def density_table(comparison: Comparison, errors: dict[str, dict[str, NDArray]]) -> Table | None:
    """Means and the largest error, of all frames and of groups of them; None where nothing is labelled."""
    table = Table(
        "density", "frames of",
        *numeric("frames", "∫|Δρ|/N\nmean, %", "largest\n%", "electrons\nmean |ΔN|", "dipole\nmean |Δ|, e Å"),
        title="Errors of densities", title_justify="left",
    )  # fmt: skip
    everything = np.ones(comparison.num_frames, dtype=bool)
    groups = [("all", everything), *((name or "", which) for _, name, which in frames_in_groups(comparison))]
    for name, columns in errors.items():
        for group, chosen in groups:
            error, electrons, dipole = (column[chosen] for column in columns.values())
            known = ~np.isnan(error)
            if known.any():
                numbers = 100 * error[known].mean(), 100 * error[known].max()
                means = np.abs(electrons[known]).mean(), dipole[known].mean()
                cells = [f"{number:.3f}" for number in numbers] + [f"{number:.4f}" for number in means]
                table.add_row(name, Path(group).name, str(known.sum()), *cells)
    return table if table.rows else None


def report_densities(
    comparison: Comparison, frames: Sequence[Frame], console: Console | None, output: Path | None
) -> list[Path]:
    """Print the errors of densities, if there are any, and write those of each frame; the file written."""
    errors = density_errors(comparison, frames)
    table = density_table(comparison, errors)
    if table is None:
        return []
    if console is not None:
        console.print(table)
    if output is None:
        return []

    def numbers(column: NDArray) -> list[float | None]:
        return [None if np.isnan(value) else value for value in column.tolist()]

    written = {name: {key: numbers(column) for key, column in of.items()} for name, of in errors.items()}
    write_json(output / DENSITIES, written)
    return [output / DENSITIES]
