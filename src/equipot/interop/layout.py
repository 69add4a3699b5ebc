"""Where in SevenNet's tensors, which are e3nn's, the channels of each irrep, path and gate lie."""

from collections.abc import Sequence
from typing import Any

from e3nn import o3

from equipot.models.nequip import NequIPLayer

SCALAR = o3.Irrep("0e")


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
