"""The comment line of extended XYZ, read so that no key that means something is dropped.

ASE knows its keys in one spelling only, and takes what it does not know for a remark: a crystal with
``lattice=`` is a molecule there. Here known keys count in any case of letters, and one that looks like a cell
and is not used is an error.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.io.extxyz import key_val_str_to_dict
from numpy.typing import NDArray

from equipot.errors import DataError

# key=value; a value in quotes, in braces, in brackets (of which there may be two levels), or up to a blank
_TOKEN = re.compile(
    r"""([^\s="'{}\[\],]+)\s*=\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\{[^{}]*\}"""
    r"""|\[(?:[^\[\]]|\[[^\[\]]*\])*\]|\S*)"""
)
_FORTRAN = re.compile(r"(?<=[\d.])[dD](?=[+-]?\d)")
_FORTRAN_NUMBER = re.compile(r"""["']?[+-]?(\d+\.\d*|\.\d+)[dD][+-]?\d+["']?""")
_NUMBER = r"[-+.\d][-+.\de]*"
_WITHOUT_EQUALS = re.compile(  # as in i-PI's comments
    rf"\b((?:lattice|cell|box)\w*\s*(?:[({{\[]\w*[)}}\]])?)\s*:\s*{_NUMBER}(?:[\s,]+{_NUMBER}){{2}}", re.I
)
_CELLS = ("cell", "unitcell", "box", "simulationcell", "simulationbox", "boxvectors", "cellvectors", "latt",
          "lat", "cellpar", "cellparameters", "cellmatrix", "abc", "lattvec", "latvec", "hmat",
          "h", "hmatrix")  # fmt: skip
_VECTORS = ({"a", "b", "c"}, {"a1", "a2", "a3"}, {"va", "vb", "vc"})  # one key for each
_PERIODIC = re.compile("(is_?)?periodic(ity)?|pbcs|periodic_?boundar(y|ies)(_?conditions?)?", re.I)
_TRUE = dict.fromkeys(("t", "true", "1", "yes", ".true."), True)
_FLAGS = _TRUE | dict.fromkeys(("f", "false", "0", "no", ".false."), False)
# Column names by what they mean, with their type and number; the first of each is the standard one.
_COLUMNS = {
    ("S", 1): ("species", "symbols", "symbol", "element", "elements", "atom", "atoms"),
    ("I", 1): ("Z", "numbers", "atomic_numbers", "atomic_number", "atomicnumber"),
    ("R", 3): ("pos", "positions", "position", "coords", "coordinates", "coord"),
}


@dataclass(frozen=True)
class Header:
    """What a comment line says."""

    info: dict[str, Any]
    cell: NDArray[np.float64] | None  # (3, 3), rows are lattice vectors
    pbc: tuple[bool, ...] | None
    columns: list[tuple[str, str, int]]  # name, type (R, I, S, L), number; standard names for standard ones
    has_columns: bool  # the line names them


def read_header(line: str) -> Header:
    """Read a comment line. Stresses and virials are arrays of 6 or 9 numbers, as they stand there.

    Raises:
        DataError: a key is there twice; a cell, ``pbc`` or ``Properties`` that cannot be read; a cell,
            stress or virial that would not be used. The message goes on from "FILE, line N:".
    """
    tokens, rest = _tokens(line)
    cell = _cell(tokens)
    pbc = _pbc(tokens)
    properties = _standard(tokens, "Properties")
    info = key_val_str_to_dict(rest) if rest.strip() else {}
    arrays = {key: _numbers(value) for key, value in tokens.items()}
    for key, value in tokens.items():
        if key == "stress" and arrays[key] is None:
            raise DataError(f"'stress' must be 6 or 9 numbers, but is {value[:60]}.")
        info[key] = _unquoted(value) if arrays[key] is None else arrays[key]
    everything = {**info, **{key: arrays[key] for key in tokens if arrays[key] is not None}}
    _refuse_unused(line, everything, cell, pbc)
    columns = _columns(properties) if properties is not None else [("species", "S", 1), ("pos", "R", 3)]
    return Header(info, cell, pbc, columns, properties is not None)


def _tokens(line: str) -> tuple[dict[str, str], str]:
    """The keys that are read here with their values as text, and the rest of the line, for ASE."""
    ours: dict[str, str] = {}
    seen: dict[str, str] = {}
    kept, end = [], 0
    for match in _TOKEN.finditer(line):
        key, value = match.groups()
        if seen.setdefault(key, value) != value:
            raise DataError(f"the key '{key}' is there twice, as {seen[key][:60]} and as {value[:60]}.")
        name = key.lower()
        if (
            name in ("lattice", "pbc", "properties")
            or (("stress" in name or "virial" in name) and _size(value) in (6, 9))
            or key in ("stress", "virial")
            or re.match(r"""["'{]?\s*(_JSON\s*)?\[""", value)
            or _FORTRAN_NUMBER.fullmatch(value)
        ):
            ours[key] = value
            kept.append(line[end : match.start()])
            end = match.end()
    return ours, " ".join([*kept, line[end:]])


def fortran_number(word: str) -> float:
    """A number as programs write it, 1.0D+02 included. Raises ValueError where it is none."""
    return float(_FORTRAN.sub("e", word))


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] in "\"'{" else value


def _numbers(value: str) -> NDArray[np.float64] | Any:
    """Its numbers, nested lists of equal rows as a matrix, one as a scalar; None if not all are numbers."""
    text = _unquoted(value).removeprefix("_JSON")
    words = re.findall(r"[^\s,;\[\](){}]+", text)
    try:
        array = np.array([fortran_number(word) for word in words])
    except ValueError:
        return None
    rows = text.count("[") - 1
    if rows > 1 and len(array) and len(array) % rows == 0 and len(array) != 9:
        return array.reshape(rows, -1)
    return array if len(array) != 1 else array[0]


def _size(value: str) -> int:
    numbers = _numbers(value)
    return 0 if numbers is None else np.size(numbers)


def _standard(tokens: dict[str, str], name: str) -> str | None:
    """Take the value of a standard key, in its own or any other case of letters."""
    found = [key for key in tokens if key.lower() == name.lower()]
    if name in tokens:  # `lattice=fcc` beside it is something else
        found = [key for key in found if key == name or _size(tokens[key]) == _size(tokens[name])]
    values = {key: _unquoted(tokens.pop(key)) for key in found}
    if len({value.lower() for value in values.values()}) > 1:
        raise DataError(f"{' and '.join(found)} are both there and differ; keep one of them.")
    return values[found[0]] if found else None


def _cell(tokens: dict[str, str]) -> NDArray[np.float64] | None:
    value = _standard(tokens, "Lattice")
    if value is None:
        return None
    numbers = _numbers(value)
    if numbers is None or np.size(numbers) not in (3, 9):
        raise DataError(
            "Lattice must be 9 numbers, the three lattice vectors one after the other, or 3 edges of a "
            f"rectangular cell, but is '{value[:80]}'."
        )
    return np.diag(numbers) if np.size(numbers) == 3 else np.reshape(numbers, (3, 3))


def _pbc(tokens: dict[str, str]) -> tuple[bool, ...] | None:
    value = _standard(tokens, "pbc")
    if value is None:
        return None
    words = _flags(value)
    if words is None:
        raise DataError(f"pbc must be three times T or F, as in pbc=\"T T F\", but is '{value[:60]}'.")
    return tuple(_FLAGS[word] for word in words)


def _flags(value: str) -> list[str] | None:
    """The three words of a ``pbc``; None if it has others."""
    words = re.findall(r"[^\s,;\[\](){}\"']+", value.lower().removeprefix("_json"))
    if len(words) == 1:
        words = list(words[0]) if re.fullmatch(r"[tf01]{3}", words[0]) else words * 3
    return words if len(words) == 3 and all(word in _FLAGS for word in words) else None


def _looks_like_cell(key: str) -> bool:
    name = re.sub(r"[^a-z]", "", key.lower())
    if "reciprocal" in name:
        return False
    return (
        name in _CELLS
        or "lattice" in name
        or bool(difflib.get_close_matches(name, ["lattice", "latticevectors"], 1, 0.8))
    )


def _refuse_unused(
    line: str, info: dict[str, Any], cell: NDArray | None, pbc: tuple[bool, ...] | None
) -> None:
    """Raise DataError for what means a cell, or needs one, and would go unused."""
    advice = 'write it as Lattice="ax ay az bx by bz cx cy cz" (Å)'
    for key, value in info.items():
        numbers = value if isinstance(value, np.ndarray) else np.zeros(0)
        if numbers.dtype.kind not in "if" or numbers.size not in (3, 6, 9):
            continue
        if _looks_like_cell(key) and cell is None:
            raise DataError(f"'{key}' looks like a cell, but is not a key of extended XYZ: {advice}.")
        if _looks_like_cell(key) and numbers.size == 9:
            given = numbers.reshape(3, 3)
            if not any(np.allclose(cell, one, rtol=1e-4) for one in (given, given.T)):
                raise DataError(f"'{key}' and Lattice are different cells; remove the one that is wrong.")
        is_stress = ("stress" in key.lower() or "virial" in key.lower()) and numbers.size != 3
        if is_stress and cell is None and (pbc is None or any(pbc)) and np.nan_to_num(numbers).any():
            raise DataError(f"there is a '{key}', but no cell: {advice}, or remove '{key}'.")
    for key, value in _TOKEN.findall(line) if pbc is None else ():
        words = _flags(value) if _PERIODIC.fullmatch(key) else None
        if words and any(_FLAGS[word] != (cell is not None) for word in words):
            raise DataError(f"'{key}' means periodic directions, but is not read: write it as pbc={value}.")
    vectors = {key.lower() for key, value in info.items() if np.size(value) == 3}
    named = next((names for names in _VECTORS if names <= vectors), None)
    if named and cell is None:
        raise DataError(f"{', '.join(sorted(named))} look like a cell, but are not read: {advice}.")
    match = _WITHOUT_EQUALS.search(line)
    if match and cell is None:
        raise DataError(f"'{match.group(1).strip()}:' looks like a cell, but is not read: {advice}.")


def _columns(text: str) -> list[tuple[str, str, int]]:
    fields = text.strip().split(":")
    triples = list(zip(fields[::3], fields[1::3], fields[2::3], strict=False))
    if len(fields) % 3 or not all(t.upper() in ("R", "I", "S", "L") and n.isdigit() for _, t, n in triples):
        raise DataError(
            f"Properties must be NAME:TYPE:NUMBER for each column, TYPE one of R, I, S, L, but is '{text}'."
        )
    columns = [(name, kind.upper(), int(number)) for name, kind, number in triples]
    for shape, names in _COLUMNS.items():
        same = [i for i, column in enumerate(columns) if column[1:] == shape]
        exact = [i for i in same if columns[i][0] in names[:2]]
        found = exact or [i for i in same if columns[i][0].lower() in [name.lower() for name in names]]
        if found:
            columns[found[0]] = (names[0], *shape)
    known = [name for name, _, _ in columns]
    twice = next((name for name in known if known.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"Properties names the column '{twice}' twice.")
    for wanted, what in (
        (("species", "Z"), "elements (species:S:1 or Z:I:1)"),
        (("pos",), "positions (pos:R:3)"),
    ):
        if not set(wanted) & set(known):
            raise DataError(f"Properties has no column of {what}; it is '{text}'.")
    return columns
