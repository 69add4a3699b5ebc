"""The bookkeeping of a tensor product: which irreps meet, where they lie in memory, with what coefficients.

A feature row holds one block per irrep, each component-major with channels last: ``(2l+1, mul)``. Messages
are products of a neighbor's features with the spherical harmonics of the edge; all paths that end in the
same irrep share one output block, side by side along the channels, so that the linear map that follows is
one matrix product per block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor

_NO_IRREPS = o3.Irreps()


@dataclass(frozen=True)
class Path:
    """One allowed product: features of degree ``l_in`` times harmonics ``l_sh`` give ``l_out``."""

    l_in: int
    l_sh: int
    l_out: int
    channels: int
    in_block: int
    in_offset: int  # first element of the input block; its row length is ``channels``
    out_block: int
    weight_offset: int  # first of ``channels`` weights
    out_offset: int  # first element written; component k starts at out_offset + k * out_stride
    out_stride: int  # row length of the output block, all its paths together
    coefficients: Tensor  # (2 l_out + 1, 2 l_in + 1, 2 l_sh + 1) float64


@dataclass(frozen=True)
class PathTable:
    """All paths of one convolution, ordered by input block, then by output degree."""

    irreps_in: o3.Irreps
    irreps_sh: o3.Irreps
    irreps_out: o3.Irreps
    paths: tuple[Path, ...]

    @property
    def num_weights(self) -> int:
        return sum(path.channels for path in self.paths)

    def num_paths_into(self, out_block: int) -> int:
        return sum(path.out_block == out_block for path in self.paths)


def block_offsets(irreps: o3.Irreps) -> list[int]:
    """First element of each block of a feature row."""
    return [block.start for block in irreps.slices()]


def feature_irreps(l_max: int, parity: bool | str, channels: int | Sequence[int]) -> o3.Irreps:
    """Irreps of the features, ordered by degree.

    ``parity`` false keeps one irrep per degree, the one with the parity of a spherical harmonic, (−1)^l;
    energies are then still exactly invariant under inversion. "ignored" calls all of them even, harmonics too
    (`harmonic_irreps`): irreps of the rotations alone. ``channels``: one number, or one per degree up to at
    most ``l_max``.
    """
    per_degree = [channels] * (l_max + 1) if isinstance(channels, int) else list(channels)
    if len(per_degree) > l_max + 1:
        raise ValueError(f"expected {l_max + 1} numbers of channels for l_max {l_max}, got {per_degree}")
    if parity == "ignored":
        return o3.Irreps([(mul, (degree, 1)) for degree, mul in enumerate(per_degree)])
    signs = (1, -1) if parity else (1,)
    return o3.Irreps(
        [(mul, (degree, sign * (-1) ** degree)) for degree, mul in enumerate(per_degree) for sign in signs]
    )


def harmonic_irreps(l_max: int, parity: bool | str) -> o3.Irreps:
    """Those of the spherical harmonics; ``parity`` as in `feature_irreps`."""
    return o3.Irreps.spherical_harmonics(l_max, 1 if parity == "ignored" else -1)


def layer_targets(
    hidden: Sequence[o3.Irreps], irreps_sh: o3.Irreps, outputs: o3.Irreps = _NO_IRREPS
) -> list[o3.Irreps]:
    """What each layer has to produce of its ``hidden`` irreps so that the last one can produce scalars.

    Going back from the even scalars of the last layer, and those of its irreps that ``outputs`` have,
    irreps from which no product with ``irreps_sh`` leads on are dropped: they would never be used.
    """
    first, *others = hidden[-1]
    targets = [o3.Irreps([first, *(block for block in others if block.ir in outputs)])]
    for of_layer in reversed(hidden[:-1]):
        needed = [ir for _, ir in targets[0]]
        useful = [
            (mul, ir)
            for mul, ir in of_layer
            if ir in needed or any(out in needed for _, ir_sh in irreps_sh for out in ir * ir_sh)
        ]
        targets.insert(0, o3.Irreps(useful))
    return targets


def coupling(l_out: int, l_in: int, l_sh: int) -> Tensor:
    """(2 l_out + 1, 2 l_in + 1, 2 l_sh + 1) float64 Clebsch–Gordan coefficients.

    Normalised so that inputs whose components have unit variance give outputs whose components do.
    """
    return o3.wigner_3j(l_out, l_in, l_sh, dtype=torch.float64) * (2 * l_out + 1) ** 0.5


def convolution_paths(
    irreps_in: o3.Irreps | str, irreps_sh: o3.Irreps | str, irreps_target: o3.Irreps | str
) -> PathTable:
    """Every path from ``irreps_in`` ⊗ ``irreps_sh`` into an irrep that occurs in ``irreps_target``.

    ``irreps_sh``: those of the spherical harmonics, as `harmonic_irreps` or ``0e+1o+2e``. How many channels
    ``irreps_target`` has does not matter.

    Raises:
        ValueError: other harmonics; or no product gives one of the target's irreps.
    """
    irreps_in, irreps_sh, irreps_target = map(o3.Irreps, (irreps_in, irreps_sh, irreps_target))
    if [(mul, ir.l) for mul, ir in irreps_sh] != [(1, degree) for degree in range(len(irreps_sh))]:
        raise ValueError(f"expected one harmonic of each degree from 0, as in 0e+1o+2e, found {irreps_sh}")
    found = []  # (in_block, ir_out, l_sh)
    for in_block, (_, ir_in) in enumerate(irreps_in):
        for _, ir_sh in irreps_sh:
            found += [(in_block, ir, ir_sh.l) for ir in ir_in * ir_sh if ir in irreps_target]
    if not found:
        raise ValueError(f"no product of {irreps_in} with {irreps_sh} gives one of {irreps_target}")
    found.sort(key=lambda item: (item[0], item[1].l, item[1].p, item[2]))

    irreps_out = o3.Irreps(
        [
            (sum(irreps_in[b].mul for b, out, _ in found if out == ir), ir)
            for ir in dict.fromkeys(ir for _, ir in irreps_target)
            if any(out == ir for _, out, _ in found)
        ]
    )
    out_blocks = [ir for _, ir in irreps_out]
    out_start = {ir: start for (_, ir), start in zip(irreps_out, block_offsets(irreps_out), strict=True)}
    out_width = {ir: mul for mul, ir in irreps_out}
    in_start = block_offsets(irreps_in)

    paths, weight_offset = [], 0
    used = dict.fromkeys(out_width, 0)
    for in_block, ir_out, l_sh in found:
        mul, ir_in = irreps_in[in_block]
        paths.append(
            Path(
                l_in=ir_in.l,
                l_sh=l_sh,
                l_out=ir_out.l,
                channels=mul,
                in_block=in_block,
                in_offset=in_start[in_block],
                out_block=out_blocks.index(ir_out),
                weight_offset=weight_offset,
                out_offset=out_start[ir_out] + used[ir_out],
                out_stride=out_width[ir_out],
                coefficients=coupling(ir_out.l, ir_in.l, l_sh),
            )
        )
        weight_offset += mul
        used[ir_out] += mul
    return PathTable(irreps_in, irreps_sh, irreps_out, tuple(paths))
