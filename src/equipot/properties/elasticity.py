"""What a 6×6 elastic tensor says: symmetry, moduli, stability, sound.

Tensors are in GPa and Voigt order (xx yy zz yz xz xy, engineering shear strains), in Cartesian axes.
"""

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from equipot.errors import DataError
from equipot.properties.start import symmetry_dataset
from equipot.units import GPA

_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_INDEX = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
_MANDEL = np.sqrt([1, 1, 1, 2, 2, 2])

# Point groups of each Laue class and its independent constants, in the axes of spglib's standard cell.
# Source: J. F. Nye, Physical Properties of Crystals (Oxford, 1985), table 9.
_CLASSES = {
    "triclinic": ("1 -1", " ".join(f"{i}{j}" for i in range(1, 7) for j in range(i, 7))),
    "monoclinic": ("2 m 2/m", "11 12 13 15 22 23 25 33 35 44 46 55 66"),
    "orthorhombic": ("222 mm2 mmm", "11 12 13 22 23 33 44 55 66"),
    "tetragonal, 4/m": ("4 -4 4/m", "11 12 13 16 33 44 66"),
    "tetragonal, 4/mmm": ("422 4mm -42m 4/mmm", "11 12 13 33 44 66"),
    "trigonal, -3": ("3 -3", "11 12 13 14 15 33 44"),
    "trigonal, -3m": ("32 3m -3m", "11 12 13 14 33 44"),
    "hexagonal": ("6 -6 6/m 622 6mm -62m 6/mmm", "11 12 13 33 44"),
    "cubic": ("23 m-3 432 -43m m-3m", "11 12 44"),
}


@dataclass(frozen=True)
class CrystalSymmetry:
    """What spglib finds in a crystal."""

    number: int
    space_group: str
    point_group: str
    crystal_class: str  # of the elastic tensor: a Laue class
    constants: tuple[str, ...]  # independent ones, such as "11" "12" "44"
    rotations: NDArray  # (n, 3, 3) Cartesian, proper and improper
    to_standard: NDArray  # (3, 3) turns Cartesian vectors into the axes of spglib's standard cell

    @property
    def label(self) -> str:
        return f"{self.space_group} ({self.number})"


def crystal_symmetry(atoms: Atoms, symprec: float = 1e-3) -> CrystalSymmetry:
    """Space group and point group within ``symprec`` (Å).

    Raises:
        DataError: spglib finds none, as with two atoms in one place.
    """
    found = symmetry_dataset(atoms, symprec)
    if found is None:
        raise DataError(
            f"spglib finds no space group within {symprec:g} Å. Are there atoms in one place, or is the "
            "tolerance larger than a distance?"
        )
    group = found.pointgroup
    name, (_, constants) = next((n, c) for n, c in _CLASSES.items() if group in c[0].split())
    columns = atoms.cell.array.T
    rotations = columns @ found.rotations @ np.linalg.inv(columns)
    symbols = tuple(constants.split())
    return CrystalSymmetry(
        *(found.number, found.international, group, name, symbols, rotations), found.std_rotation_matrix
    )


def rotated(tensor: NDArray, rotation: NDArray) -> NDArray:
    """(6, 6) in axes turned by ``rotation`` (3, 3): C'_abcd = R_ai R_bj R_ck R_dl C_ijkl."""
    full = tensor[_INDEX[:, :, None, None], _INDEX]
    turned = np.einsum("ai,bj,ck,dl,ijkl->abcd", *[rotation] * 4, full, optimize=True)
    a, b = np.array(_VOIGT).T
    return turned[a[:, None], b[:, None], a, b]


def symmetrised(tensor: NDArray, rotations: NDArray) -> NDArray:
    """(6, 6): the mean over the rotations of a group, with C_ij = C_ji."""
    mean = np.mean([rotated(tensor, rotation) for rotation in rotations], axis=0)
    return 0.5 * (mean + mean.T)


def stiffness_eigenvalues(tensor: NDArray) -> NDArray:
    """(6,) GPa, ascending, of Kelvin's form, which do not depend on the axes; all positive: Born-stable.

    Source: F. Mouhat and F.-X. Coudert, Phys. Rev. B 90, 224104 (2014).
    """
    return np.linalg.eigvalsh(tensor * np.outer(_MANDEL, _MANDEL))


def moduli(tensor: NDArray) -> dict[str, float]:
    """Bulk, shear and Young's moduli (GPa) and Poisson's ratio of polycrystals, and the anisotropy.

    Voigt (equal strain), Reuss (equal stress), Hill (their mean; R. Hill, Proc. Phys. Soc. A 65, 349 (1952)).
    Universal anisotropy: Ranganathan and Ostoja-Starzewski, Phys. Rev. Lett. 101, 055504 (2008).
    """
    c, s = tensor, np.linalg.inv(tensor)
    trace, off = c[:3, :3].trace(), c[0, 1] + c[0, 2] + c[1, 2]
    of_s, off_s = s[:3, :3].trace(), s[0, 1] + s[0, 2] + s[1, 2]
    shears, shears_s = c[3:, 3:].trace(), s[3:, 3:].trace()
    bulk = {"voigt": (trace + 2 * off) / 9, "reuss": 1 / (of_s + 2 * off_s)}
    shear = {"voigt": (trace - off + 3 * shears) / 15, "reuss": 15 / (4 * of_s - 4 * off_s + 3 * shears_s)}
    found = {}
    for each in (bulk, shear):
        each["hill"] = 0.5 * (each["voigt"] + each["reuss"])
    for mean in ("voigt", "reuss", "hill"):
        k, g = bulk[mean], shear[mean]
        found |= {
            f"bulk_{mean}_GPa": k,
            f"shear_{mean}_GPa": g,
            f"young_{mean}_GPa": 9 * k * g / (3 * k + g),
            f"poisson_{mean}": (3 * k - 2 * g) / (6 * k + 2 * g),
        }
    ratio = 5 * shear["voigt"] / shear["reuss"] + bulk["voigt"] / bulk["reuss"] - 6
    return {name: float(value) for name, value in found.items()} | {"universal_anisotropy": float(ratio)}


def youngs_modulus(tensor: NDArray, directions: NDArray) -> NDArray:
    """(...) GPa, along unit vectors (..., 3): 1 / (S_ijkl n_i n_j n_k n_l)."""
    x, y, z = np.moveaxis(directions, -1, 0)
    products = np.stack([x * x, y * y, z * z, y * z, x * z, x * y], axis=-1)
    return 1 / np.einsum("...i,ij,...j->...", products, np.linalg.inv(tensor), products)


def sound(tensor: NDArray, atoms: Atoms) -> dict[str, float]:
    """Velocities of sound of a polycrystal (m/s; of Hill's moduli) and the Debye temperature (K) by them.

    Source: O. L. Anderson, J. Phys. Chem. Solids 24, 909 (1963).
    """
    of = moduli(tensor)
    bulk, shear = of["bulk_hill_GPa"], of["shear_hill_GPa"]
    density = atoms.get_masses().sum() / atoms.get_volume()  # u/Å³
    speed = units.m / units.s
    long = np.sqrt((bulk + 4 / 3 * shear) * GPA / density)
    transverse = np.sqrt(shear * GPA / density)
    mean = ((2 / transverse**3 + 1 / long**3) / 3) ** (-1 / 3)
    frequency = mean * (3 * len(atoms) / (4 * np.pi * atoms.get_volume())) ** (1 / 3)
    planck = 2 * np.pi * units._hbar * units.J * units.s
    return {
        "density_g_per_cm3": float(density * 1e24 / units.mol),
        "sound_longitudinal_m_per_s": float(long / speed),
        "sound_transverse_m_per_s": float(transverse / speed),
        "sound_mean_m_per_s": float(mean / speed),
        "debye_temperature_K": float(planck * frequency / units.kB),
    }
