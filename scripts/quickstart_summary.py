"""Print what scripts/quickstart made; exit with 1 if the force error misses the target.

Usage: python scripts/quickstart_summary.py RUN_DIR TARGET_MEV_PER_ANGSTROM
"""

import json
import sys
from pathlib import Path


def main(run: Path, target: float) -> int:
    errors = json.loads((run / "evaluation" / "errors.json").read_text(encoding="utf-8"))["errors"]
    energy, forces = errors["energy"], errors["forces"]
    print(f"Errors on {energy['frames']} held-out frames")
    print(f"  energy  MAE {energy['mae']:7.2f}  RMSE {energy['rmse']:7.2f}  meV/atom")
    print(f"  forces  MAE {forces['mae']:7.2f}  RMSE {forces['rmse']:7.2f}  meV/Å (target: MAE < {target:g})")
    print("Files")
    for name, pattern in FILES.items():
        for file in sorted(run.glob(pattern)):
            print(f"  {name:<15} {file}")
    if not forces["mae"] < target:
        print(f"Error: the force MAE, {forces['mae']:.2f} meV/Å, misses {target:g} meV/Å.", file=sys.stderr)
        return 1
    print(
        "Next: your own data in a copy of configs/molecule_nequip_small.yaml, then `equipot train copy.yaml`."
    )
    return 0


FILES = {
    "model": "model.pt",
    "checkpoint": "checkpoints/best.ckpt",
    "learning curve": "plots/*.png",
    "parity plots": "evaluation/*.png",
    "MD plot": "md/*.png",
    "MD log": "md/*.csv",
    "trajectory": "md/trajectory*",
}

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
