"""Errors of a response model, its acoustic sum rule, and dielectric constants beside those of the labels.

    equipot train scripts/benchmarks/response/sio2.yaml data.train=... run.directory=runs/sio2
    equipot deploy runs/sio2 --output model.pt
    scripts/benchmark response model.pt SiO2_test.xyz.gz

The commands, and what was found: docs/response.md.
"""

import argparse
from pathlib import Path

import ase.io
import numpy as np
from rich.console import Console

from equipot.data.text import counted
from equipot.evaluation.metrics import error_rows
from equipot.evaluation.report import error_table
from equipot.evaluation.run import evaluate
from equipot.units import EPSILON0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("file", type=Path, help="labelled frames, as polarizability and born_charges")
    chosen, console = parser.parse_args(), Console()
    found = evaluate(chosen.model, [chosen.file]).comparison
    frames = ase.io.read(chosen.file, ":")
    console.print(error_table(error_rows(found), f"{chosen.model} on {counted(len(frames), 'frame')}"))
    if "born_charges" in found.values:
        sums = [
            np.abs([of["born_charges"][found.atoms_of(i)].sum(axis=0) for i in range(len(frames))]).max()
            for of in (found.values, found.reference)
        ]
        errors = [found.error("born_charges")[found.atoms_of(i)] for i in range(len(frames))]
        of_frames = np.sqrt([np.mean(error**2) for error in errors])
        console.print(
            f"Born charges, RMSE of a frame (e): median {np.median(of_frames):.4f}, largest "
            f"{of_frames.max():.4f}, of frame {of_frames.argmax()}"
        )
        console.print("Largest component of Σ_i Z_i (e): predicted {:.1e}, labels {:.1e}".format(*sums))
    known = [atoms.info.get("polarization_unwrapped") for atoms in frames]
    if "polarization" in found.values and all(value is not None for value in known):
        error = found.values["polarization"] - np.array(known)
        cells = np.array([atoms.cell.array for atoms in frames])
        quanta = np.rint(np.einsum("sa,sak->sk", error, np.linalg.inv(cells)))
        console.print(
            f"Frames on the branch of polarization_unwrapped: {int((quanta == 0).all(axis=1).sum())} of "
            f"{len(frames)}; RMSE without folding {np.sqrt(np.mean(error**2)):.3f} e Å"
        )
    if "polarizability" in found.values:
        volumes = np.array([atoms.get_volume() for atoms in frames])
        constants = [
            1 + np.trace(of["polarizability"], axis1=1, axis2=2) / 3 / (EPSILON0 * volumes)
            for of in (found.values, found.reference)
        ]
        predicted, labels = constants
        console.print(
            f"Dielectric constant, a third of the trace of 1 + α/(ε₀ V): predicted {predicted.mean():.4f} ± "
            f"{predicted.std():.4f} over frames, labels {labels.mean():.4f} ± {labels.std():.4f}; RMSE "
            f"{np.sqrt(np.mean((predicted - labels) ** 2)):.4f}"
        )


if __name__ == "__main__":
    main()
