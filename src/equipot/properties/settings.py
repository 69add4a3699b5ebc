"""What the commands are told. Imports nothing heavy, as the command line makes its options of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipot.errors import ConfigError
from equipot.integrations.settings import Settings, require, setting
from equipot.units import size_in


@dataclass(frozen=True)
class Common(Settings):
    """What every property is told, and its options. Raises ConfigError for what makes no sense."""

    relax: bool = setting(
        False, "Relax first: positions and, of a crystal, the cell; its symmetry is kept.", option="--relax"
    )
    keep_cell: bool = setting(False, "Relax positions only.", option="--keep-cell")
    max_force: float = setting(0.01, "eV/Å; a structure with larger forces is no minimum and refused.")
    max_stress: float = setting(0.5, "GPa; the same for the stress of a crystal; inf for one under pressure.")
    symprec: float = setting(
        1e-3, "Å by which atoms may be off the places that symmetry gives them.", within=(1e-6, 10.0, "Å")
    )
    species_map: str | None = setting(
        None, "Elements of labels in the file, as data.species_map.", metavar="LABEL=SYMBOL,..."
    )
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N.")
    output: Path | None = setting(  # noqa: RUF009
        None, "Folder for numbers, pictures and report; by default the command's name.", metavar="DIR"
    )
    overwrite: bool = setting(False, "Replace an earlier result in DIR.", option="--overwrite")

    def __post_init__(self):
        super().__post_init__()
        for name, unit in (("max_force", "eV/Å"), ("max_stress", "GPa")):
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            require(value > 0, option, f"a number greater than 0 ({unit})", value)
        if self.keep_cell and not self.relax:
            raise ConfigError("--keep-cell says how to relax: give --relax with it.")


@dataclass(frozen=True)
class PhononSettings(Settings):
    """What `phonons` is told beside `Common`."""

    supercell: tuple[int, int, int] | None = setting(
        None, "Copies of the file's cell in which atoms are displaced; by default enlarged until converged."
    )
    tolerance: float = setting(
        0.05,
        "THz; a larger supercell has to change special points by less, or one still larger is taken.",
        above_0="THz",
    )
    max_atoms: int = setting(600, "No larger supercell is tried.", least=1)
    # Forces of less are rounding.
    displacement: float = setting(0.01, "Å, in both directions.", within=(0.0001, 0.3, "Å"))
    checks: bool = setting(
        True, "Repeat with a larger supercell and a larger displacement.", option="--checks/--no-checks"
    )
    hessian: bool = setting(
        False,
        "Compare with second derivatives by automatic differentiation (torch, float64, no tables).",
        option="--hessian",
    )
    born: str | None = setting(
        None,
        "Born charges and dielectric tensor for LO-TO splitting: phonopy's BORN, or YAML or JSON; or model: "
        "those of the model's own outputs born_charges and polarizability.",
        metavar="FILE|model",
    )
    mesh: float = setting(
        60.0, "Å; q points of DOS and thermal properties are 2π over this apart.", within=(4.0, 1000.0, "Å")
    )
    t_max: float = setting(1000.0, "K, of thermal properties.", above_0="K")
    t_step: float = setting(10.0, "K.", above_0="K")

    def __post_init__(self):
        super().__post_init__()
        _check_supercell(self.supercell)
        require(self.t_step <= self.t_max, "--t-step", f"at most --t-max, {self.t_max:g} K", self.t_step)


@dataclass(frozen=True)
class KappaSettings(Settings):
    """What `kappa` is told beside `Common`."""

    supercell: tuple[int, int, int] | None = setting(
        None, "Copies of the file's cell in which atoms are displaced; by default 10 Å wide at least."
    )
    pair_cutoff: float | None = setting(
        None, "Å; pairs of atoms farther apart are not displaced together. By default all are.", above_0="Å"
    )
    displacement: float = setting(0.03, "Å.", within=(0.001, 0.3, "Å"))
    mesh: float = setting(
        40.0,
        "Å; q points are 2π over this apart. Repeated with three quarters of it.",
        within=(4.0, 500.0, "Å"),
    )
    temperatures: str = setting("100,200,300,400,500,600,800,1000", "K.", metavar="K,K,...")
    lbte: bool = setting(
        False, "Solve the linearized Boltzmann equation; else relaxation times.", option="--lbte"
    )
    isotopes: bool = setting(True, "Scattering by natural isotopes.", option="--isotopes/--no-isotopes")
    born: str | None = setting(
        None,
        "Born charges and dielectric tensor: BORN, YAML or JSON; or model: its own.",
        metavar="FILE|model",
    )

    def __post_init__(self):
        super().__post_init__()
        _check_supercell(self.supercell)
        self.kelvins()

    def kelvins(self) -> list[float]:
        """The temperatures (K)."""
        try:
            found = [float(part) for part in self.temperatures.split(",")]
        except ValueError:
            found = []
        if not found or not all(0 < value < math.inf for value in found):
            raise ConfigError(
                f"--temperatures must be numbers above 0 with commas between, found '{self.temperatures}'."
            )
        return found


def _check_supercell(supercell: tuple[int, int, int] | None) -> None:
    if supercell is not None and min(supercell) < 1:
        raise ConfigError(f"--supercell: expected three numbers of at least 1, found {supercell}.")


@dataclass(frozen=True)
class DensitySettings(Settings):
    """What `density` is told: of any molecule, which need not be at a minimum."""

    name: str | None = setting(None, "Output that is the density, where the model has several.")
    charge: float = setting(0.0, "e, of the molecule.")
    spacing: float = setting(0.1, "Å between points of the cube file.", above_0="Å")
    margin: float = setting(3.0, "Å around the atoms that the cube file covers.", above_0="Å")
    species_map: str | None = setting(
        None, "Elements of labels in the file, as data.species_map.", metavar="LABEL=SYMBOL,..."
    )
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N.")
    output: Path | None = setting(  # noqa: RUF009
        None, "Folder for numbers, cube file, picture and report; by default density.", metavar="DIR"
    )
    overwrite: bool = setting(False, "Replace an earlier result in DIR.", option="--overwrite")

    def __post_init__(self):
        super().__post_init__()
        require(math.isfinite(self.charge), "--charge", "a number (e)", self.charge)


@dataclass(frozen=True)
class _Relaxing(Settings):
    """How structures relax that a command makes by itself."""

    fmax: float = setting(
        1e-4, "eV/Å to which structures relax that are strained or moved.", within=(1e-8, 0.1, "eV/Å")
    )
    steps: int = setting(500, "Steps at most to relax each.", least=1)


def require_amplitudes(strains: Sequence[float], given: Any) -> None:
    """Raises ConfigError for amplitudes that make no sense."""
    fits = bool(strains) and all(1e-5 <= one <= 0.1 for one in strains) and len({*strains}) == len(strains)
    require(fits, "--strains", "different numbers from 0.00001 to 0.1, as 0.005,0.01", given)


@dataclass(frozen=True)
class ElasticSettings(_Relaxing):
    """What `elastic` is told beside `Common`."""

    strains: str = setting("0.0025,0.005,0.01", "Amplitudes, each with both signs.", metavar="STRAIN,...")
    clamped: bool = setting(
        False, "Leave ions at their fractional coordinates; by default they relax.", option="--clamped"
    )

    @property
    def amplitudes(self) -> tuple[float, ...]:
        try:
            found = tuple(float(text) for text in self.strains.split(","))
        except ValueError:
            found = ()
        require_amplitudes(found, self.strains)
        return found

    def __post_init__(self):
        super().__post_init__()
        self.amplitudes  # noqa: B018 - an error before anything is computed


@dataclass(frozen=True)
class EosSettings(_Relaxing):
    """What `eos` is told beside `Common`."""

    span: float = setting(
        0.06,
        "Volumes go this far to each side, of that of the structure.",
        within=(0.005, 0.3, "of the volume, to each side"),
    )
    points: int = setting(
        11, "Volumes; five or more, as there are four parameters.", least=5, within=(5, 1000, "volumes")
    )
    shape: str = setting(
        "auto",
        "Shape of the cell at each volume: relax, keep, or auto: relax if not cubic.",
        choices=("auto", "relax", "keep"),
    )
    elastic: bool = setting(
        True, "Compare with the bulk modulus of the elastic tensor.", option="--elastic/--no-elastic"
    )


@dataclass(frozen=True)
class VibrationSettings(Settings):
    """What `vibrations` is told beside `Common`."""

    displacement: float = setting(
        0.01, "Å, in both directions; half of it is taken, too.", within=(0.0001, 0.1, "Å")
    )
    temperature: float = setting(298.15, "K, of the thermochemistry.", within=(1.0, 10_000.0, "K"))
    pressure: float = setting(1.0, "bar, of the ideal gas.", within=(1e-12, 1e6, "bar"))
    symmetry_number: int | None = setting(
        None, "Rotations onto itself; by default those that are found.", least=1, within=(1, 120, "rotations")
    )
    spin: float | None = setting(
        None, "S of the electrons; by default 0, or 0.5 for an odd number of them.", within=(0, 50, "")
    )
    saddle: bool = setting(False, "It is a saddle: expect one imaginary mode.", option="--saddle")


@dataclass(frozen=True)
class NebSettings(Settings):
    """What `neb` is told beside `Common`."""

    images: int = setting(7, "Between the ends.", least=1, within=(1, 1000, "images"))
    interpolation: str = setting("idpp", "idpp or linear, of the first path.", choices=("idpp", "linear"))
    climb: bool = setting(True, "Let the highest image climb to the saddle.", option="--climb/--no-climb")
    method: str = setting(
        "improvedtangent",
        "ASE's: improvedtangent, aseneb, eb, spline or string.",
        choices=("improvedtangent", "aseneb", "eb", "spline", "string"),
    )
    spring: float = setting(0.1, "eV/Å².", within=(1e-4, 1000.0, "eV/Å²"))
    fmax: float = setting(0.03, "eV/Å to which the band relaxes, and its ends with --relax.", above_0="eV/Å")
    steps: int = setting(500, "Steps at most.", least=1)
    keep_order: bool = setting(
        False, "Atoms of one element do change places between the ends.", option="--keep-order"
    )
    check_saddle: bool = setting(
        False, "Count the imaginary modes at the saddle, by moving every free atom.", option="--check-saddle"
    )
    resume: bool = setting(False, "Go on with the band in DIR, or begin.", option="--resume")


@dataclass(frozen=True)
class SpectrumSettings(Settings):
    """What `spectrum` is told beside `Common`."""

    interval: float | None = setting(
        None, "fs between frames; by default as the trajectory says (time_ps).", above_0="fs"
    )
    temperature: float | None = setting(
        None, "K; by default the mean of the trajectory's, or that of its velocities.", above_0="K"
    )
    skip: int = setting(0, "Frames at the start to leave out.", least=0)
    resolution: float = setting(
        10.0, "cm⁻¹, full width of a line at half its height (Gaussian).", within=(0.5, 1000.0, "cm⁻¹")
    )
    max_wavenumber: float = setting(4500.0, "cm⁻¹; spectra go up to it.", above_0="cm⁻¹")
    correction: str = setting(
        "harmonic",
        "Quantum correction of infrared and Raman: harmonic, standard, schofield or none.",
        choices=("harmonic", "standard", "schofield", "none"),
    )
    laser: float = setting(532.0, "nm, of Raman intensities; activities do not depend on it.", above_0="nm")
    dipole: str = setting("dipole", "Name of the dipole in the trajectory, or of the model's output.")
    polarizability: str = setting("polarizability", "The same of the polarizability.")
    dipole_unit: str = setting("e*Ang", "Unit in the trajectory; a model says its own.")
    polarizability_unit: str = setting("Ang^3", "The same of the polarizability, as Ang^3 or e^2*Ang^2/eV.")

    def __post_init__(self):
        super().__post_init__()
        units = {"--dipole-unit": self.dipole_unit, "--polarizability-unit": self.polarizability_unit}
        for (option, unit), expected in zip(units.items(), ("e*Ang", "e^2*Ang^2/eV"), strict=True):
            try:
                size_in(unit, expected)
            except ConfigError as error:
                raise ConfigError(f"{option}: {error}") from None
