"""The live lines: what they say fits on a terminal of 80 columns, with room for a bar on wider ones."""

import io

import pytest
from rich.console import Console

from equipot.training.progress import ProgressDisplay
from equipot.training.report import RunLog

ROW = {"epoch": 3, "learning_rate": 0.01, "epoch_s": 1.0} | {
    f"{part}_{label}_mae": 0.0796
    for part in ("train", "validation")
    for label in ("forces", "energy", "stress")
}


def shown(display: ProgressDisplay, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(display._bar.get_renderable())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize(("width", "bar"), [(80, False), (120, True)])
def test_lines_fit_the_terminal(width, bar):
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    display = ProgressDisplay(console, RunLog(console), epochs=200)
    display.start(0)
    try:
        display.epoch(ROW, is_best=True)
        display.epoch(ROW | {"epoch": 4}, is_best=False)
        display.batch("validation", 7, 37, {"forces_mae": 0.1234})
        epoch, batch = shown(display, width)
    finally:
        display.stop()
    assert epoch.startswith("epoch") and " 4/200" in epoch and epoch.endswith("best so far: epoch 3")
    assert batch.startswith("valid") and " 7/37" in batch
    assert batch.endswith("forces  79.6 /   123 meV/Å  energy  79.6 /  79.6 meV/atom")
    assert "…" not in epoch + batch
    assert ("━" in batch) == bar
    (left,) = shown(display, width)  # the batches are gone at the end
    assert left.startswith("epoch")
