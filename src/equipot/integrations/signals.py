"""Ctrl-C and SIGTERM as a request that a loop answers when its files are whole."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StopRequest:
    """The number of the signal that arrived, or None."""

    signal: int | None = None

    def leave(self) -> None:
        """End as the signal would have: KeyboardInterrupt for Ctrl-C, exit status 143 for SIGTERM."""
        raise SystemExit(128 + signal.SIGTERM) if self.signal == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM instead of acting on it; a second one acts as it did before.

    Outside the main thread, where Python allows no handlers, nothing is noted.
    """
    request = StopRequest()
    previous = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def note(number: int, _) -> None:
        request.signal = number
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as in nohup's or a background job
                previous[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
