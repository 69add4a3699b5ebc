"""Functions run in processes of their own, which end when this one does, however it ends.

Python's own pools either copy this process, with its locks and open files, or run its main script again.
Here a worker is a fresh interpreter that reads calls from a pipe: where this process dies, the pipe breaks.
"""

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from typing import Any, TypeVar

T = TypeVar("T")

_COMMAND = "from equipot.data.workers import serve; serve()"


def map_in_order(function: Callable[[Any], T], items: Iterable[Any], workers: int) -> Iterator[T]:
    """``function`` of every item, in order, computed in ``workers`` processes (in this one if 1).

    At most two items for each worker are under way, so that neither items nor results pile up. Two items or
    fewer start no process. ``function`` and what it takes, returns and raises must be picklable.

    Raises:
        ChildProcessError: a process was killed, usually because memory ran out.
    """
    iterator = iter(items)
    first = list(islice(iterator, 3))
    if workers < 2 or len(first) < 3:
        yield from map(function, chain(first, iterator))
        return
    pool = _Pool(workers)
    try:
        pending: deque[Future] = deque()
        for item in chain(first, iterator):
            pending.append(pool.submit(function, item))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.close()


class _Pool:
    """A thread for each worker process hands it one call after another."""

    def __init__(self, workers: int):
        self._processes: list[subprocess.Popen] = []
        self._local = threading.local()
        self._threads = ThreadPoolExecutor(workers)

    def submit(self, function: Callable, item: Any) -> Future:
        return self._threads.submit(self._call, function, item)

    def close(self) -> None:
        """End the processes, also in the middle of a call."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.kill()  # also one that a thread started meanwhile
            process.wait()
            process.stdout.close()
            with suppress(BrokenPipeError):  # what it had not read yet
                process.stdin.close()

    def _call(self, function: Callable, item: Any) -> Any:
        process = getattr(self._local, "process", None)
        if process is None:
            process = self._local.process = _start()
            self._processes.append(process)
        try:
            pickle.dump((function, item), process.stdin)
            process.stdin.flush()
            succeeded, result = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            code = process.wait()
            why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            message = f"A worker process ended early ({why}); if memory ran out, use fewer workers"
            raise ChildProcessError(errno.ECHILD, message) from error
        if succeeded:
            return result
        raise result


def _start() -> subprocess.Popen:
    # One thread each: the workers are as many as the cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )


def serve() -> None:
    """What a worker process does: answer calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is for the process that started this one
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    while True:
        try:
            function, item = pickle.load(calls)
        except EOFError:
            return
        try:
            answer = pickle.dumps((True, function(item)))
        except Exception as error:
            answer = pickle.dumps((False, error))
        try:
            answers.write(answer)
            answers.flush()
        except BrokenPipeError:
            return
