"""What follows from force constants: bands, densities of states, thermal properties, imaginary modes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import seekpath
from numpy.typing import NDArray
from phonopy import Phonopy

from equipot.properties.settings import PhononSettings

if TYPE_CHECKING:
    from phonopy.structure.cells import Primitive

IMAGINARY = 0.05  # THz; less is rounding of forces, and interpolation near Γ
_POINTS = 51  # of the longest segment of the path
_SMEARING = 0.01  # of the highest frequency
_DOS_POINTS = 400


@dataclass(frozen=True)
class Bands:
    """Along a path of segments, points being in the primitive cell's reciprocal lattice."""

    labels: list[tuple[str, str]]  # of the ends of each segment; Γ, X, ...
    points: list[NDArray]  # (P, 3)
    distances: list[NDArray]  # (P,) 1/Å along the path, without 2π
    frequencies: list[NDArray]  # (P, 3n) THz, imaginary ones negative

    def special_points(self) -> list[tuple[str, NDArray, NDArray]]:
        """Each label once, its point, frequencies ascending."""
        found = {}
        for labels, points, of in zip(self.labels, self.points, self.frequencies, strict=True):
            for place in (0, -1):
                found.setdefault(labels[place], (labels[place], points[place], np.sort(of[place])))
        return list(found.values())

    def columns(self) -> dict[str, NDArray]:
        """As a table: segment, distance, q, frequencies."""
        segment = [np.full(len(of), number) for number, of in enumerate(self.distances)]
        table = {"segment": np.concatenate(segment), "distance_per_A": np.concatenate(self.distances)}
        table |= dict(zip(("q1", "q2", "q3"), np.concatenate(self.points).T, strict=True))
        frequencies = np.concatenate(self.frequencies).T
        return table | {f"frequency_{number}_THz": of for number, of in enumerate(frequencies, 1)}


@dataclass(frozen=True)
class Modes:
    """Imaginary modes of one frequency at one q point, or at those that symmetry makes of it."""

    label: str  # of a special point, else empty
    q: NDArray  # (3,) in the primitive cell's reciprocal lattice
    frequency_THz: float  # negative
    degeneracy: int
    kind: str  # acoustic sum rule; instability; interpolation
    shares: dict[str, float]  # of each element in the squared displacement times mass

    @property
    def shares_text(self) -> str:
        shown = sorted(self.shares.items(), key=lambda item: -item[1])
        return ", ".join(f"{symbol} {share:.0%}" for symbol, share in shown if share > 0.005)

    def __str__(self) -> str:
        name = self.label or f"q = ({', '.join(f'{x:.3g}' for x in self.q)})"
        return f"{abs(self.frequency_THz):.2f}i THz at {name} ({self.shares_text})"


def special_points(
    primitive: "Primitive", symprec: float
) -> tuple[list[tuple[str, str]], list[tuple[NDArray, NDArray]]]:
    """Labels and ends of the segments of the standard path, in this primitive cell's reciprocal lattice.

    Source: Hinuma et al., Comput. Mater. Sci. 128, 140 (2017), by seekpath.
    """
    found = seekpath.get_path_orig_cell(primitive.totuple(), symprec=symprec)
    coordinates = {name: np.array(point) for name, point in found["point_coords"].items()}
    names = [tuple(name.replace("GAMMA", "Γ") for name in ends) for ends in found["path"]]
    return names, [(coordinates[start], coordinates[end]) for start, end in found["path"]]


def band_structure(phonon: Phonopy, symprec: float) -> Bands:
    """Along the standard path, with directional limits at Γ where charges are given."""
    labels, ends = special_points(phonon.primitive, symprec)
    reciprocal = np.linalg.inv(phonon.primitive.cell).T
    lengths = np.array([np.linalg.norm((stop - start) @ reciprocal) for start, stop in ends])
    counts = np.maximum(np.rint(_POINTS * lengths / lengths.max()), 5).astype(int)
    paths = [np.linspace(start, stop, n) for (start, stop), n in zip(ends, counts, strict=True)]
    found = phonon.run_band_structure(paths)
    return Bands(labels, paths, list(found.distances), list(found.frequencies))


def densities(phonon: Phonopy, mesh: float) -> dict[str, NDArray]:
    """Density of states (1/THz per primitive cell; its integral is 3n) and each element's part of it.

    Gaussians of 1 % of the highest frequency on an irreducible mesh: the parts of elements, unlike those of
    atoms, have the symmetry of the crystal.
    """
    found = phonon.run_mesh(mesh, with_eigenvectors=True)
    symbols = np.array(phonon.primitive.symbols)
    frequencies, weights = found.frequencies, found.weights / found.weights.sum()
    width = _SMEARING * frequencies.max()
    axis = np.linspace(min(frequencies.min(), 0.0) - 5 * width, frequencies.max() + 5 * width, _DOS_POINTS)
    parts = (np.abs(found.eigenvectors) ** 2).reshape(len(weights), len(symbols), 3, -1).sum(axis=2)
    dos = {"frequency_THz": axis, "total_per_THz": np.zeros_like(axis)}
    for symbol in dict.fromkeys(symbols):
        heights = parts[:, symbols == symbol].sum(axis=1) * weights[:, None]
        # The smoothing of a fine histogram: a sum over all modes and points of the axis takes much memory.
        edges = np.linspace(axis[0], axis[-1], 20 * _DOS_POINTS + 1)
        counts, _ = np.histogram(frequencies, bins=edges, weights=heights)
        centers = 0.5 * (edges[1:] + edges[:-1])
        gaussians = np.exp(-0.5 * ((axis[:, None] - centers) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        dos[f"{symbol}_per_THz"] = gaussians @ counts
        dos["total_per_THz"] = dos["total_per_THz"] + dos[f"{symbol}_per_THz"]
    return dos


def thermal_properties(phonon: Phonopy, settings: PhononSettings) -> dict[str, NDArray]:
    """Harmonic, for a mole of primitive cells; imaginary modes and the three translations are left out."""
    phonon.run_mesh(settings.mesh)
    found = phonon.run_thermal_properties(
        t_max=settings.t_max, t_step=settings.t_step, exclude_gamma_acoustic=True
    )
    return {
        "temperature_K": found.temperatures,
        "free_energy_kJ_per_mol": found.free_energy,
        "entropy_J_per_K_mol": found.entropy,
        "heat_capacity_J_per_K_mol": found.heat_capacity,
        "zero_point": found.zero_point_energy,
    }


def imaginary_modes(phonon: Phonopy, bands: Bands) -> list[Modes]:
    """Below −0.05 THz: at all points that the supercell has, where frequencies are exact, and along the path.

    A translation at Γ would be the sum rule's failure, a mode at a point that the supercell has is an
    instability, others may come from interpolation.
    """
    from phonopy.harmonic.dynmat_to_fc import get_commensurate_points

    within = np.rint(np.linalg.inv(phonon.primitive.primitive_matrix)).astype(int)  # the supercell in it
    exact = get_commensurate_points(within)
    below = phonon.run_qpoints(exact).frequencies.min(axis=1) < -IMAGINARY
    along = zip(bands.points, bands.frequencies, strict=True)
    between = [q for points, frequencies in along for q in _lowest(points, frequencies)]
    labels = {tuple(_wrapped(q)): name for name, q, _ in bands.special_points()}
    keys = {tuple(q) for q in _wrapped(exact)}
    operations = phonon.primitive_symmetry.pointgroup_operations
    found, seen = [], set()
    for q in [*exact[below], *between]:
        images = {tuple(_wrapped(sign * rotation.T @ q)) for rotation in operations for sign in (1, -1)}
        if images & seen:
            continue
        seen |= images
        named = next((image for image in sorted(images) if image in labels), tuple(_wrapped(q)))
        found += _modes_at(phonon, np.array(named), labels.get(named, ""), bool(keys & images))
    return sorted(found, key=lambda mode: mode.frequency_THz)


def _lowest(points: NDArray, frequencies: NDArray) -> list[NDArray]:
    """The lowest point of a segment, and its ends, as far as they are imaginary."""
    places = {0, len(points) - 1, int(frequencies.min(axis=1).argmin())}
    return [points[place] for place in sorted(places) if frequencies[place].min() < -IMAGINARY]


def _modes_at(phonon: Phonopy, q: NDArray, label: str, exact: bool) -> list[Modes]:
    result = phonon.run_qpoints([q], with_eigenvectors=True)
    frequencies, vectors = result.frequencies[0], result.eigenvectors[0]
    symbols, masses = np.array(phonon.primitive.symbols), phonon.primitive.masses
    found, place = [], 0
    while place < len(frequencies) and frequencies[place] < -IMAGINARY:
        same = np.flatnonzero(np.abs(frequencies - frequencies[place]) < 1e-3)
        parts = (np.abs(vectors[:, same]) ** 2).reshape(len(symbols), 3, -1).sum(axis=1).mean(axis=1)
        shares = {str(s): float(parts[symbols == s].sum()) for s in dict.fromkeys(symbols)}
        rigid = np.sqrt(masses / masses.sum()) @ vectors[:, place].reshape(-1, 3)
        acoustic = not q.any() and np.linalg.norm(rigid) ** 2 > 0.9
        kind = "acoustic sum rule" if acoustic else "instability" if exact else "interpolation"
        found.append(Modes(label, q, float(frequencies[place]), len(same), kind, shares))
        place = same[-1] + 1
    return found


def _wrapped(q: NDArray) -> NDArray:
    """Into (−1/2, 1/2], without noise."""
    q = np.round(q - np.rint(q), 6)
    return np.where(q <= -0.5, q + 1.0, q) + 0.0
