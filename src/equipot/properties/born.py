"""Born charges and the dielectric tensor: a model's own, or from phonopy's BORN or YAML and JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from equipot.errors import ConfigError, DataError
from equipot.properties import supercells
from equipot.quantities import QUANTITIES
from equipot.units import EPSILON0, size_in

if TYPE_CHECKING:
    from phonopy import Phonopy


MODEL = "model"  # in place of a file's name
_OUTPUTS = {"born_charges": "e", "polarizability": "e^2*Ang^2/eV"}  # of a model, and the units taken
_MARKUP = (".yaml", ".yml", ".json")


def check_born(given: str | None, calculator: BaseCalculator) -> None:
    """Before the work: raise as `born_of` where the model lacks these outputs, or there is no such file."""
    if given == MODEL:
        for name in _OUTPUTS:
            if name not in calculator.implemented_properties:
                raise ConfigError(
                    f"--born {MODEL} needs a model with outputs {' and '.join(_OUTPUTS)}; this one has no "
                    f"{name}."
                )
    elif given is not None:
        if not (path := Path(given)).is_file():
            raise DataError(f"There is no file {path} with Born charges.")
        if path.suffix.lower() in _MARKUP:
            _read(path)


def born_of(given: str, phonon: "Phonopy", symprec: float, calculator: BaseCalculator) -> dict[str, Any]:
    """As `read_born` and `born_of_model`, by what ``--born`` says."""
    check_born(given, calculator)
    if given == MODEL:
        return born_of_model(calculator, phonon, symprec)
    return read_born(given, phonon, symprec)


def born_of_model(calculator: BaseCalculator, phonon: "Phonopy", symprec: float) -> dict[str, Any]:
    """What ``Phonopy.nac_params`` takes, from outputs ``born_charges`` and ``polarizability`` of a model.

    The dielectric tensor is that of clamped ions, ε = 1 + α / (ε₀ V).

    Raises:
        ConfigError: it has no such outputs, or in other units.
        DataError: a dielectric tensor that is not positive definite.
    """
    from phonopy.structure.symmetry import symmetrize_borns_and_epsilon

    atoms, found = supercells.from_phonopy(phonon.unitcell), []
    for name, unit in _OUTPUTS.items():
        own = QUANTITIES[name].unit if name in QUANTITIES else unit
        found.append(size_in(own, unit) * np.array(calculator.get_property(name, atoms)))
    born, dielectric = found[0], np.eye(3) + found[1] / (EPSILON0 * atoms.get_volume())
    _require_positive("The model", dielectric)
    born, dielectric = symmetrize_borns_and_epsilon(
        born, dielectric, phonon.unitcell, primitive=phonon.primitive, symprec=symprec
    )
    return _factor() | {"born": born, "dielectric": dielectric}


def _factor() -> dict[str, float]:
    from phonopy.physical_units import get_physical_units

    units = get_physical_units()
    return {"factor": units.Hartree * units.Bohr}


def read_born(path: str | Path, phonon: "Phonopy", symprec: float) -> dict[str, Any]:
    """What ``Phonopy.nac_params`` takes: charges of the primitive cell's atoms, symmetrized.

    YAML and JSON have ``dielectric`` (3, 3) and ``born``: one tensor (3, 3) or number, in e, for each atom of
    the file's cell or of the primitive cell, or for each element by its symbol. Phonopy's file is for the
    symmetrically distinct atoms of the primitive cell, in its order.

    Raises:
        DataError: no such file, or not that.
    """
    from phonopy.file_IO import parse_BORN
    from phonopy.structure.symmetry import symmetrize_borns_and_epsilon

    path = Path(path)
    factor = _factor()
    if path.suffix.lower() not in _MARKUP:
        try:
            found = parse_BORN(phonon.primitive, symprec, filename=path)
        except (ValueError, IndexError, RuntimeError) as error:
            raise DataError(
                f"{path}: expected a BORN file of phonopy ({error}); other files end in .yaml or .json."
            ) from None
        _require_positive(path, found["dielectric"])
        return factor | {key: value for key, value in found.items() if value is not None}
    content = _read(path)
    dielectric = _tensor(path, "dielectric", content["dielectric"])
    _require_positive(path, dielectric)
    cell = phonon.unitcell
    born = _born(path, content["born"], cell.symbols, phonon.primitive.symbols)
    if len(born) == len(cell):
        born, dielectric = symmetrize_borns_and_epsilon(
            born, dielectric, cell, primitive=phonon.primitive, symprec=symprec
        )
    else:
        born, dielectric = symmetrize_borns_and_epsilon(born, dielectric, phonon.primitive, symprec=symprec)
    return factor | {"born": born, "dielectric": dielectric}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is neither YAML nor JSON: {error}") from None
    missing = [key for key in ("born", "dielectric") if not isinstance(content, dict) or key not in content]
    if missing:
        raise DataError(
            f"{path}: expected the keys born and dielectric, found no {' and no '.join(missing)}."
        )
    return content


def _born(path: Path, given: Any, symbols: list[str], primitive: list[str]) -> NDArray:
    """(N, 3, 3) of the file's cell or of the primitive one."""
    if isinstance(given, dict):
        missing = sorted(set(symbols) - given.keys())
        if missing:
            raise DataError(f"{path}: born has no {', '.join(missing)}.")
        given = [given[symbol] for symbol in symbols]
    if not isinstance(given, list) or len(given) not in (len(symbols), len(primitive)):
        counts = " or ".join(str(count) for count in sorted({len(symbols), len(primitive)}))
        found = len(given) if isinstance(given, list) else given
        raise DataError(f"{path}: born must have {counts} tensors, one for each atom; found {found}.")
    return np.array([_tensor(path, f"born of atom {index}", one) for index, one in enumerate(given)])


def _require_positive(path: Path | str, dielectric: NDArray) -> None:
    if not (np.linalg.eigvalsh(dielectric) > 0).all():
        raise DataError(
            f"{path}: the dielectric tensor must be positive definite, found {dielectric.tolist()}."
        )


def _tensor(path: Path, name: str, given: Any) -> NDArray:
    try:
        value = np.array(given, dtype=np.float64)
        tensor = value.reshape(3, 3) if value.size == 9 else value.reshape(()) * np.eye(3)
    except (ValueError, TypeError):
        raise DataError(f"{path}: {name} must be 3×3 numbers, or one, found {given!r}.") from None
    if not np.isfinite(tensor).all():
        raise DataError(f"{path}: {name} is not finite.")
    return tensor
