"""Exact restart, put to the test: SIGKILL at random moments, then the same bits as without."""

import argparse
import csv
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

TIMES = ("time_s", "epoch_s")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/kill_test", description=__doc__, allow_abbrev=False)
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the configuration")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, default=Path("runs/kill_test"), help="both runs go there")
    options = parser.parse_args()
    # A checkpoint every second or so, also within epochs, so that kills hit all that can be hit.
    settings = ["run.checkpoint_minutes=0.02", *options.overrides]
    whole, broken = options.output / "whole", options.output / "broken"
    shutil.rmtree(options.output, ignore_errors=True)

    start = time.monotonic()
    subprocess.run(command(options.config, whole, settings), check=True, stdout=subprocess.DEVNULL)
    duration = time.monotonic() - start
    print(f"Left alone: {duration:.0f} s")
    kills, starts = kill_and_resume(options, broken, settings, duration)
    print(f"Killed {kills} times in {starts} starts")
    if kills < options.kills:
        print("The training ended before all kills were done: give it more epochs.")
        return 1
    differences = compare(whole, broken)
    for difference in differences:
        print(f"Differs: {difference}")
    if not differences:
        print("Weights, averages, optimizer and metrics are equal bit for bit.")
    return 1 if differences else 0


def command(config: str, directory: Path, settings: list[str]) -> list[str]:
    run = f"run.directory={directory}"
    return [sys.executable, "-m", "equipot.cli", "train", config, run, *settings, "--resume", "auto"]


def kill_and_resume(
    options: argparse.Namespace, directory: Path, settings: list[str], duration: float
) -> tuple[int, int]:
    """Run to the end; the number of kills and of starts. The time to a kill counts from the first step."""
    generator = random.Random(options.seed)
    kills = starts = 0
    while True:
        process = subprocess.Popen(
            command(options.config, directory, settings), stdout=subprocess.PIPE, text=True
        )
        starts += 1
        if kills == options.kills:
            process.communicate()
            process.wait()
            return kills, starts
        for line in process.stdout:
            if line.startswith(("Training:", "Resuming after")):
                break
        try:
            process.wait(timeout=generator.uniform(0, 1.5 * duration / options.kills))
            return kills, starts  # it has ended by itself
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            print(f"  kill {kills}: {last_epoch(directory)}", flush=True)


def last_epoch(directory: Path) -> str:
    checkpoint = directory / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        return "before the first checkpoint"
    content = torch.load(checkpoint, weights_only=True)
    return f"last checkpoint at step {content['global_step']}"


def compare(one: Path, other: Path) -> list[str]:
    """Names of what is not equal in two run directories."""
    found = []
    for name in ("last", "best"):
        a, b = (torch.load(d / "checkpoints" / f"{name}.ckpt", weights_only=True) for d in (one, other))
        for key in ("state_dict", "optimizer_states", "equipot_resume", "global_step", "epoch"):
            found += differences(a[key], b[key], f"{name}.{key}")
        for key in ("ema", "validation"):
            found += differences(a["equipot"][key], b["equipot"][key], f"{name}.{key}")
    rows = [read_rows(d / "metrics.csv") for d in (one, other)]
    return found + differences(*rows, "metrics.csv")


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def differences(a, b, place: str) -> list[str]:
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [place]
    if isinstance(a, dict) and a.keys() == b.keys():
        return [line for key in a for line in differences(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, list | tuple) and len(a) == len(b):
        return [line for i in range(len(a)) for line in differences(a[i], b[i], f"{place}[{i}]")]
    return [] if a == b else [place]


if __name__ == "__main__":
    sys.exit(main())
