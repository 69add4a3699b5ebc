"""What models of other codes may have; where in e3nn's tensors channels of irreps, paths and gates lie."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from e3nn import o3
from torch import Tensor

from equipot.errors import ModelFileError
from equipot.models.nequip import NequIPLayer

SCALAR = o3.Irrep("0e")


def refuse(path: Any, found: str, known: str) -> NoReturn:
    """Raises ModelFileError: the file uses what equipot has not."""
    raise ModelFileError(f"{path}: this checkpoint uses {found}, which equipot does not have ({known}).")


def require_layer(path: Any, irreps: o3.Irreps, l_max: int) -> None:
    """Raises ModelFileError unless these are irreps that a layer of equipot's can have."""
    by_degree = {ir.l: mul for mul, ir in irreps}
    repeated = len({ir for _, ir in irreps}) < len(irreps)
    if repeated or any(by_degree[ir.l] != mul for mul, ir in irreps):
        refuse(path, f"irreps {irreps}", "one number of channels for each l")
    if sorted(by_degree) != list(range(len(by_degree))) or max(by_degree) > l_max:
        refuse(path, f"irreps {irreps}", f"every l up to some l, at most that of the harmonics, {l_max}")


def channels_of(irreps: o3.Irreps) -> list[int]:
    """Channels of each l, from 0 on."""
    return [next(mul for mul, ir in irreps if ir.l == degree) for degree in range(irreps.lmax + 1)]


def have_parity_of_harmonics(layers: Iterable[o3.Irreps]) -> bool:
    """Whether all irreps have the parity (−1)^l."""
    return all(ir.p == (-1) ** ir.l for irreps in layers for _, ir in irreps)


def sign_of(path: Any, stored: Tensor, degrees: tuple[int, int, int]) -> float:
    """Of the coupling coefficients with which weights were trained: e3nn has changed some."""
    right = o3.wigner_3j(*degrees, dtype=torch.float64)
    for sign in (1.0, -1.0):
        if torch.allclose(stored, sign * right, atol=1e-6):
            return sign
    raise ModelFileError(f"{path}: its coupling coefficients of degrees {degrees} are not e3nn's.")


@contextmanager
def readable(path: Any) -> Iterator[None]:
    """Inside, whatever wrong content leads into becomes a ModelFileError."""
    try:
        yield
    except KeyError as error:
        raise ModelFileError(f"{path}: the checkpoint lacks {error}.") from None
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ModelFileError(
            f"{path}: the checkpoint is damaged, or its weights are not those of its configuration ({what})."
        ) from None


class Paths:
    """SevenNet's paths of one layer: which there are, and in which order."""

    def __init__(self, irreps_in: o3.Irreps, harmonics: o3.Irreps, l_max: int, even: bool):
        found = [
            (mul, (ir_in, ir_sh.l, ir_out))
            for mul, ir_in in irreps_in
            for _, ir_sh in harmonics
            for ir_out in ir_in * ir_sh
            if ir_out.l <= l_max and (ir_out.p > 0 or not even)
        ]
        self._as_made = found
        # By output irrep, in e3nn's order of irreps; those of equal irreps stay in their order.
        self._sorted = sorted(found, key=lambda item: item[1][2])
        self.irreps_out = o3.Irreps([(mul, key[2]) for mul, key in self._sorted]).simplify()
        self.num_weights = sum(mul for mul, _ in found)

    def columns(self, *key: Any, before_sorting: bool) -> list[int]:
        """Radial weights of a path."""
        return _places(self._as_made if before_sorting else self._sorted, key)

    def rows(self, *key: Any) -> list[int]:
        """Channels of a path among those of its output irrep."""
        return _places([item for item in self._sorted if item[1][2] == key[2]], key)


class Gate:
    """e3nn's Gate of ``irreps_out``: 0e holds scalars, then gates in the order of what they gate."""

    def __init__(self, irreps_out: o3.Irreps):
        self.scalars = irreps_out.count(SCALAR)
        self.gated = [(mul, ir) for mul, ir in irreps_out if ir.l > 0]
        gates = sum(mul for mul, _ in self.gated)
        odd = [(mul, ir) for mul, ir in irreps_out if ir.l == 0 and ir.p < 0]
        blocks = [*odd, (self.scalars + gates, SCALAR), *self.gated]
        self.irreps_in = o3.Irreps(sorted(blocks, key=lambda block: block[1]))

    def columns(self, ir: o3.Irrep, layer: NequIPLayer) -> list[int]:
        """Of the block of an irrep, those that the gate of ``layer`` has, in its order."""
        if ir != SCALAR:
            return list(range(self.irreps_in.count(ir)))
        found = list(range(self.scalars))
        for _, gated in layer.irreps_out:
            if gated.l > 0:
                found += [self.scalars + place for place in _places(self.gated, gated)]
        return found


def _places(items: Sequence[tuple[int, Any]], key: Any) -> list[int]:
    """Where the block ``key`` lies if blocks (size, key) lie one after the other."""
    start = 0
    for size, name in items:
        if name == key:
            return list(range(start, start + size))
        start += size
    raise KeyError(str(key))


def position(irreps: o3.Irreps, wanted: o3.Irrep) -> int:
    """The number of its block."""
    return next(k for k, (_, ir) in enumerate(irreps) if ir == wanted)


def paths_of(layer: NequIPLayer) -> list[tuple[o3.Irrep, int, o3.Irrep]]:
    """Input irrep, degree of the harmonic and output irrep of each path of a layer of ours."""
    table = layer.paths
    return [(table.irreps_in[p.in_block].ir, p.l_sh, table.irreps_out[p.out_block].ir) for p in table.paths]
