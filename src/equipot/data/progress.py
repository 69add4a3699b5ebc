"""A progress bar that appears only when the work turns out to be long."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def track(
    items: Iterable[T],
    description: str,
    total: int | None,
    delay: float = 2.0,
    size: Callable[[T], int] = lambda _: 1,
    done: int = 0,
) -> Iterator[T]:
    """Yield the items; after ``delay`` seconds show a bar on the terminal (nothing when it is not one).

    An item moves the bar by its ``size``; ``done`` of ``total`` were there before.
    """
    console = Console(stderr=True)
    start, bar, task = time.monotonic(), None, None
    try:
        for item in items:
            yield item
            done += size(item)
            if bar is None and console.is_terminal and time.monotonic() - start > delay:
                bar = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeRemainingColumn(),
                    console=console,
                    transient=True,
                )
                bar.start()
                task = bar.add_task(description, total=total)
            if bar is not None:
                bar.update(task, completed=done)
    finally:
        if bar is not None:
            bar.stop()
