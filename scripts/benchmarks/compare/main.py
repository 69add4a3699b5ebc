"""equipot beside NequIP, Allegro, MACE and SevenNet: same structures, hyperparameters and threads, in turns.

    python scripts/benchmarks/compare/main.py [--case NAME ...] [--threads 1] [--repeats 7]
        [--molecules FILE] [--water FILE] [--peer sevennet|nequip] [--output benchmark-results]

Run it with equipot's interpreter. The peers get virtual environments of their own in .benchmark-envs unless
--nequip-python, --mace-python or --sevennet-python name interpreters that have them. Every contender is a
process of its own; after all are prepared they compute one step after the other, round by round, so that
what disturbs the machine disturbs all of them. A training step is energies and forces of a batch, the mean
squares of their errors, the gradient and Adam's update; graphs are built before. An MD step is a small random
displacement of all atoms and ASE's get_forces(), with whatever neighbor list the calculator keeps.

What has the same name in equipot and in a peer has the same size in both. NequIP's self-connection acts on an
embedding of the species, equipot's on the species themselves, so the embedding is given as many features as
there are species: with NequIP's default, 64, a step costs it a third more. equipot draws splines through its
radial networks; "no splines" trains with these evaluated at every edge, as the peers do.

SevenNet's cases run its pretrained model 7net-0, which equipot imports, deploys and evaluates; those of
`--peer nequip` the presets S, M and L of NequIP's foundation models, with random weights.

The ratio is a peer's time over equipot's, the median over rounds. "prepared in" holds model, neighbor lists,
compilation and the first steps; the peak is that of the steps after it.
"""

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path

from cases import (
    ALLEGRO,
    DEFAULT_MOLECULES,
    DISPLACEMENT,
    LEARNING_RATE,
    MACE,
    NEQUIP,
    TITLES,
    Contender,
    make_case,
)
from driver import Runner
from environments import PACKAGES, peer_python
from report import plot, print_table, write_json
from rich.console import Console

ROOT = Path(__file__).resolve().parents[3]


def main() -> int:
    options = parse_arguments()
    console = Console() if sys.stdout.isatty() else Console(width=110)
    # Ended by a signal, it ends its workers too: a compilation would go on for minutes.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if options.list:
        for name, title in TITLES.items():
            print(f"{name:24}{title}")
        return 0
    names = [name for name in options.case or TITLES if name.startswith(options.peer or "")]
    cases = [make_case(name, options) for name in dict.fromkeys(names)]
    cases = [replace(case, contenders=[c for c in case.contenders if wanted(c, options)]) for case in cases]
    logs = options.output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    programs = {contender.program for case in cases for contender in case.contenders}
    runner = Runner(find_pythons(programs, options), logs.resolve(), options.threads, options.repeats)
    settings = {
        "threads": options.threads,
        "repeats": options.repeats,
        "md_steps_per_repeat": options.md_steps,
        "molecules": options.molecules.name,
        "water": options.water.name if options.water else None,
        "displacement_angstrom": DISPLACEMENT,
        "learning_rate": LEARNING_RATE,
        "models": {"nequip": NEQUIP, "allegro": ALLEGRO, "mace": MACE},
    }
    results = {}
    for case in cases:
        results[case.name] = runner.run(case)
        print_table(case.name, results[case.name], console)
        # After every case: an interrupted benchmark keeps what it has.
        write_json(options.output / "compare.json", settings, results)
        plot(options.output / "compare.png", results, options.threads)
    console.print(f"Written: {options.output}/compare.json, compare.png, logs/", highlight=False)
    failed = [result for rows in results.values() for result in rows if result.error is not None]
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark compare", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "--case", action="append", choices=list(TITLES), metavar="NAME", help="may be repeated; default: all"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--peer", choices=["sevennet", "nequip"], help="only the cases of its models")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="TEXT", help="contenders with this in their name"
    )
    parser.add_argument("--threads", type=positive, default=1, help="of every contender; default 1")
    parser.add_argument("--repeats", type=positive, default=7, help="rounds; default 7")
    parser.add_argument("--md-steps", type=positive, default=5, help="MD steps per round; default 5")
    parser.add_argument(
        "--max-atoms", type=positive, default=10_000, help="of the scaling cases; default 10000"
    )
    parser.add_argument(
        "--molecules",
        type=Path,
        default=ROOT / DEFAULT_MOLECULES,
        help=f"frames with energy and forces; default {DEFAULT_MOLECULES}",
    )
    parser.add_argument("--water", type=Path, help="its first frame; default: 64 molecules on a grid")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"), help="a folder")
    parser.add_argument("--nequip-python", type=Path, help="default: made in .benchmark-envs/nequip")
    parser.add_argument("--mace-python", type=Path, help="default: made in .benchmark-envs/mace")
    parser.add_argument("--sevennet-python", type=Path, help="default: made in .benchmark-envs/sevennet")
    return parser.parse_args()


def wanted(contender: Contender, options: argparse.Namespace) -> bool:
    """Whether no ``--skip`` names it; equipot, which the others are compared with, always runs."""
    return contender.name == "equipot" or not any(text in contender.name for text in options.skip)


def positive(text: str) -> int:
    """For argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {value}")
    return value


def find_pythons(programs: set[str], options: argparse.Namespace) -> dict[str, Path | Exception]:
    """The interpreter of each program; an error where there is none, which fails its rows only."""
    given = {name: getattr(options, f"{name}_python") for name in ("nequip", "mace", "sevennet")}
    pythons: dict[str, Path | Exception] = {"equipot": Path(sys.executable)}
    for program in sorted(programs & PACKAGES.keys()):
        try:
            # Not resolved: a virtual environment's interpreter is a link.
            pythons[program] = (
                given[program].absolute()
                if given[program]
                else peer_python(program, ROOT / ".benchmark-envs" / program, ROOT / "constraints.txt")
            )
        except (OSError, RuntimeError) as error:
            pythons[program] = error
    return pythons


if __name__ == "__main__":
    sys.exit(main())
