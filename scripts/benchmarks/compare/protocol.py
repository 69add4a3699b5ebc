"""What the benchmark and its workers say to each other; the standard library only.

A worker reads requests from its standard input and writes answers to the pipe whose number is its argument,
one JSON object per line; what a library prints cannot get in between.

    {"do": "prepare", ...}              -> facts about the model and its input, seconds, memory
    {"do": "run", "repeats": k}         -> {"times": [k numbers], "cpu_times": ...}, seconds per step
    any request that fails              -> {"error": the exception, one line}
"""

import contextlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# What a worker can do on request: facts of the prepared model, and one step of it.
Prepare = Callable[[dict], tuple[dict, Callable[[], None]]]


def serve(prepare: Prepare) -> None:
    """Answer requests until the input ends."""
    with os.fdopen(int(sys.argv[1]), "w") as channel:

        def answer(reply: dict) -> None:
            channel.write(json.dumps(reply) + "\n")
            channel.flush()

        answer({"rss_load_mb": memory_mb("VmRSS")})
        step, steps = None, 1
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if request["do"] == "prepare":
                    steps = request["steps"]
                    reply, step = _prepare(prepare, request)
                else:
                    pairs = [_seconds_per_step(step, steps) for _ in range(request["repeats"])]
                    times, cpu_times = zip(*pairs, strict=True)
                    reply = {"times": times, "cpu_times": cpu_times, "peak_run_mb": memory_mb("VmHWM")}
            except Exception as error:
                traceback.print_exc()
                reply = {"error": first_line(f"{type(error).__name__}: {error}")}
            answer(reply)


def first_line(text: str) -> str:
    """What ``text`` says before its first line break, or after it if that is only a name and a colon."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])


def last_line(text: str) -> str:
    """The last line of ``text`` that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def memory_mb(field: str) -> float:
    """Megabytes of this process: ``VmRSS``, what it holds now, or ``VmHWM``, the most it held.

    Where there is no /proc, the most it ever held stands for both.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1024**2 if sys.platform == "darwin" else 1024)


def _prepare(prepare: Prepare, request: dict) -> tuple[dict, Callable[[], None]]:
    """Build the model and run the first steps, which compile what is compiled lazily."""
    start = time.perf_counter()
    facts, step = prepare(request)
    for _ in range(request["warm_up"]):
        step()
    facts["prepare_s"] = time.perf_counter() - start
    facts["rss_prepared_mb"] = memory_mb("VmRSS")
    facts["peak_prepare_mb"] = memory_mb("VmHWM")
    _forget_peak()
    return facts, step


def _seconds_per_step(step: Callable[[], None], steps: int) -> tuple[float, float]:
    """By the clock, and of processor time, of all threads."""
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps, (time.process_time() - cpu_start) / steps


def _forget_peak() -> None:
    """Count the peak from now on (Linux), so that a compilation's memory is not that of the steps."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
