"""``equipot elastic``: the elastic tensor of a crystal, its moduli and its stability."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from equipot.properties.elastic_tensor import ElasticTensor, elastic_tensor, require_crystal_in
from equipot.properties.elasticity import moduli, sound, stiffness_eigenvalues, youngs_modulus
from equipot.properties.output import Result, Table
from equipot.properties.settings import Common, ElasticSettings
from equipot.properties.start import Model, prepare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of the largest constant; more is worth a word.
_FORBIDDEN, _NONLINEAR, _UNCONVERGED, _STRESSED = 0.02, 0.05, 0.02, 0.01
_MEANS = ("voigt", "reuss", "hill")


def elastic(
    structure: str | Path | Atoms,
    model: Model,
    common: Common | None = None,
    settings: ElasticSettings | None = None,
) -> Result:
    """The elastic tensor by the stress of strained cells (`elastic_tensor`), and what it says.

    Args:
        structure, model: as `prepare`.

    Raises what `prepare` and `elastic_tensor` raise.
    """
    common, settings = common or Common(), settings or ElasticSettings()
    require_crystal_in(structure, common.species_map, "Elastic constants")
    start = prepare(structure, model, common, periodic=True)
    found = elastic_tensor(
        start.atoms,
        settings.amplitudes,
        clamped=settings.clamped,
        fmax=settings.fmax,
        steps=settings.steps,
        symprec=common.symprec,
    )
    numbers = start.described | _numbers(found)
    if found.stable:
        numbers |= moduli(found.tensor) | sound(found.tensor, start.atoms) | _young_extremes(found)
    paragraphs = [_summary(numbers, found), _checks(found)]
    pictures = {"young.png": plot_young(found)} if found.stable else {}
    tables = _tables(found, numbers)
    return Result("elastic", numbers, paragraphs, tables, pictures, doubts=_doubts(found))


def _numbers(found: ElasticTensor) -> dict[str, Any]:
    symmetry = found.symmetry
    return {
        "crystal_class": symmetry.crystal_class,
        "point_group": symmetry.point_group,
        "ions": "relaxed" if found.relaxed else "clamped",
        "constants_GPa": found.constants,
        "tensor_GPa": found.tensor,
        "tensor_standard_axes_GPa": found.standard,
        "standard_axes": symmetry.to_standard,
        "tensor_as_measured_GPa": found.measured,
        "tensor_by_strain_GPa": found.by_amplitude,
        "strains": found.amplitudes,
        "voigt_order": "xx yy zz yz xz xy, engineering shear strains",
        "stress_GPa": found.stress,
        "symmetry_forbids_GPa": found.forbidden,
        "asymmetry_GPa": found.asymmetry,
        "nonlinearity_GPa": found.nonlinearity,
        "convergence_GPa": found.convergence,
        "eigenvalues_GPa": stiffness_eigenvalues(found.tensor),
        "born_stable": found.stable,
        "evaluations": found.evaluations,
    }


def _summary(numbers: dict[str, Any], found: ElasticTensor) -> str:
    constants = ", ".join(f"{name} {value:.1f}" for name, value in found.constants.items())
    ions = "Ions were relaxed in each strained cell" if found.relaxed else "Ions were clamped"
    least = stiffness_eigenvalues(found.tensor)[0]
    text = (
        f"Elastic constants of {numbers['formula']}, {found.symmetry.label}, crystal class "
        f"{found.symmetry.crystal_class}, in GPa: {constants} (axes of spglib's standard cell). {ions}. "
    )
    if not found.stable:
        return f"{text}The crystal is not stable (Born): a strain gains energy, by {least:.1f} GPa."
    bulk, shear, young = (f"{numbers[f'{kind}_hill_GPa']:.1f} GPa" for kind in ("bulk", "shear", "young"))
    return (
        f"{text}It is stable (Born): all eigenvalues of the tensor are positive, the least {least:.1f} GPa. "
        f"Polycrystals (Hill) have a bulk modulus of {bulk}, a shear modulus of {shear}, a Young's modulus "
        f"of {young}, Poisson's ratio {numbers['poisson_hill']:.3f} and a Debye temperature of "
        f"{numbers['debye_temperature_K']:.0f} K; the universal anisotropy is "
        f"{numbers['universal_anisotropy']:.2f}."
    )


def _checks(found: ElasticTensor) -> str:
    strains = ", ".join(f"{a:g}" for a in found.amplitudes)
    if len(found.amplitudes) > 1:
        linear = (
            f"Extrapolated from strains of {strains}: the smallest alone differs by {found.convergence:.2g} "
            f"GPa at most, the largest by {found.nonlinearity:.2g} GPa."
        )
    else:
        linear = f"From one strain, {strains}: linearity was not checked."
    return (
        f"{linear} What symmetry forbids was {found.forbidden:.2g} GPa at most, and was taken off; C_ij "
        f"and C_ji differed by {found.asymmetry:.2g} GPa. The stress before straining is at most "
        f"{abs(found.stress).max():.2g} GPa. {found.evaluations} evaluations."
    )


def _doubts(found: ElasticTensor) -> list[str]:
    size, texts = abs(found.tensor).max(), []
    if found.forbidden > _FORBIDDEN * size:
        texts.append(
            "The tensor has less symmetry than the crystal: forces are noisy, or strained cells relaxed into "
            "structures of another kind."
        )
    if found.nonlinearity > _NONLINEAR * size:
        texts.append("Stress is not linear up to the largest strain: leave it out of --strains.")
    if found.convergence > _UNCONVERGED * size:
        texts.append(
            "The smallest strain disagrees with the others: forces are too noisy for it (a float32 model?), "
            "or ions relaxed too little (--fmax)."
        )
    if abs(found.stress).max() > _STRESSED * size:
        texts.append(
            "The crystal is under stress: these are second derivatives of the energy by Lagrangian strain; "
            "stress-strain coefficients differ by terms of the size of that stress."
        )
    return texts


def _tables(found: ElasticTensor, numbers: dict[str, Any]) -> list[Table]:
    shown = found.standard.round(1) + 0.0  # no "-0.0"
    names = ["xx", "yy", "zz", "yz", "xz", "xy"]
    rows = [[name, *(f"{x:.1f}" for x in row)] for name, row in zip(names, shown, strict=True)]
    tables = [Table("Elastic tensor in standard axes (GPa)", ["", *names], rows)]
    if not found.stable:
        return tables
    kinds = {"bulk": "bulk (GPa)", "shear": "shear (GPa)", "young": "Young's (GPa)"}
    rows = [[t, *(numbers[f"{kind}_{mean}_GPa"] for mean in _MEANS)] for kind, t in kinds.items()]
    rows.append(["Poisson's ratio", *(numbers[f"poisson_{mean}"] for mean in _MEANS)])
    return [*tables, Table("Moduli of polycrystals", ["", *map(str.capitalize, _MEANS)], rows)]


def _sphere(steps: int = 36) -> NDArray:
    """(steps + 1, 2 steps + 1, 3) unit vectors."""
    polar, around = np.linspace(0, np.pi, steps + 1)[:, None], np.linspace(0, 2 * np.pi, 2 * steps + 1)
    parts = np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar) + 0 * around
    return np.stack(parts, axis=-1)


def _young_extremes(found: ElasticTensor) -> dict[str, Any]:
    directions = _sphere(180).reshape(-1, 3)
    young = youngs_modulus(found.standard, directions)
    ends = {"least": young.argmin(), "largest": young.argmax()}
    return {
        key: value
        for name, k in ends.items()
        for key, value in ((f"young_{name}_GPa", young[k]), (f"young_{name}_along", directions[k].round(3)))
    }


def plot_young(found: ElasticTensor) -> "Figure":
    """Young's modulus by direction, in standard axes: a surface, and sections through it."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    surface = figure.add_subplot(1, 2, 1, projection="3d")
    directions = _sphere()
    young = youngs_modulus(found.standard, directions)
    scale = Normalize(young.min(), young.max() + 1e-9)
    colors = colormaps["viridis"](scale(young))
    x, y, z = np.moveaxis(directions * young[..., None], -1, 0)
    surface.plot_surface(x, y, z, facecolors=colors, rstride=1, cstride=1, shade=False, antialiased=False)
    limit = young.max()
    surface.set(xlim=(-limit, limit), ylim=(-limit, limit), zlim=(-limit, limit), box_aspect=(1, 1, 1))
    surface.set(xlabel="x", ylabel="y", zlabel="z", title="Young's modulus (GPa)")
    surface.tick_params(labelsize=7)
    surface.locator_params(nbins=5)
    figure.colorbar(ScalarMappable(scale, "viridis"), ax=surface, shrink=0.6, pad=0.12)
    sections = figure.add_subplot(1, 2, 2, projection="polar")
    angle = np.linspace(0, 2 * np.pi, 361)
    for (a, b), style in zip(((0, 1), (0, 2), (1, 2)), ("-", "--", ":"), strict=True):
        circle = np.zeros((361, 3))
        circle[:, a], circle[:, b] = np.cos(angle), np.sin(angle)
        name = f"{'xyz'[a]}{'xyz'[b]}, from {'xyz'[a]}"
        sections.plot(angle, youngs_modulus(found.standard, circle), style, label=name)
    sections.set(ylim=(0, 1.05 * limit), title="in three planes (GPa)")
    sections.yaxis.set_major_locator(MaxNLocator(4))
    sections.legend(loc="lower center", bbox_to_anchor=(0.5, -0.22), ncols=3, fontsize=8, frameon=False)
    return figure
