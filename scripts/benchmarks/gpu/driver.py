"""Runs parts in a worker process that may fail, crash or hang, and keeps what it has found."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
START_SECONDS = 240  # importing torch, waking a GPU and, unless that is done, compiling, at most
WHOLE = 480  # s, which the shares of parts add up to


class WorkerError(Exception):
    """A request failed. ``usable``: whether the worker can go on; ``late``: it took longer than it might."""

    def __init__(self, message: str, usable: bool, late: bool = False):
        super().__init__(message)
        self.usable, self.late = usable, late


class Worker:
    """The process. ``ask`` never waits longer than it is told to."""

    def __init__(self, parts: Path, log: Path):
        reading, writing = os.pipe()
        self._log, self._logged = log, log.stat().st_size if log.exists() else 0
        with log.open("a") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), str(writing), str(parts)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[writing],
                start_new_session=True,  # a group, to be ended with what it has started
            )
        os.close(writing)
        self._answers, self._pending = reading, b""

    def ask(self, request: dict, seconds: float) -> dict:
        """The answer. Raises WorkerError for an error, the process's end, and after ``seconds``."""
        with contextlib.suppress(BrokenPipeError):  # reading says why
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()
        end = time.monotonic() + seconds
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self._answers], [], [], max(end - time.monotonic(), 0))
            if not ready:
                raise WorkerError(f"did not end within {seconds:.0f} s and was stopped", False, late=True)
            read = os.read(self._answers, 1 << 16)
            if not read:
                raise WorkerError(self._how_it_ended(), usable=False)
            self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"], answer["usable"])
        return answer

    def close(self) -> None:
        """End the process and those it started; one that the driver does not let go of is left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        os.close(self._answers)

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "the process closed its answers and went on"
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        with self._log.open(errors="replace") as log:
            log.seek(self._logged)
            lines = [line.strip() for line in log if line.strip()]
        said = [line for line in lines if "rror" in line or "what()" in line]
        return f"the process ended {how}: {(said or lines or ['no message'])[-1]}"[:400]


class Check:
    """A run of the parts that the file ``parts`` defines, within ``limit`` seconds from now on.

    ``base``: what every request holds. ``say``: prints a line. ``save``: called with the machine and all
    results whenever there are new ones.
    """

    def __init__(self, base: dict, parts: Path, log: Path, limit: float, say: Callable, save: Callable):
        self._base, self._parts, self._log, self._say, self._save = base, parts, log, say, save
        self._end, self._limit = time.monotonic() + limit, limit
        self._worker: Worker | None = None
        self._known: dict = {}
        self._start_takes = 0.0  # s, of a worker
        self.machine: dict = {}
        self.parts: list[dict] = []  # all of them, as dictionaries without their cases

    def start(self) -> None:
        """Find out what machine this is and which parts there are. Raises WorkerError."""
        self._start(self._end)

    def run(self, only: Sequence[str] = ()) -> list[dict]:
        """What was found, one dictionary for each part, or for those of ``only``."""
        results: list[dict] = []
        chosen = [part for part in self.parts if not only or part["name"] in only]
        # A slow start must not cost the first part its share.
        share = (self._end - time.monotonic()) / max(sum(part["seconds"] for part in chosen), 1)
        share = max(min(share, self._limit / WHOLE), 0)
        for number, part in enumerate(chosen):
            # What earlier parts have not used goes to the next; later ones keep their shares.
            kept = sum(later["seconds"] for later in chosen[number + 1 :]) * share
            result = {"part": part["name"], "title": part["title"], "status": "done", "cases": []}
            results.append(result)
            start = time.monotonic()
            longest = part["longest"] * self._limit / WHOLE
            self._run_part(result, max(self._end - start - kept, 0), longest)
            result["seconds"] = round(time.monotonic() - start, 1)
            self._save(self.machine, results)
        return results

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _run_part(self, result: dict, seconds: float, longest: float) -> None:
        end = time.monotonic() + seconds
        self._say(f"{result['title']}: at most {seconds:.0f} s")
        if seconds < self._needs():
            self._no_time(result, ["all of it"])
            return
        try:
            names = self._ask({"do": "cases", "part": result["part"]}, end)["cases"]
        except WorkerError as error:
            self._failed(result, "all", error)
            return
        for number, name in enumerate(names):
            start = time.monotonic()
            if end - start < self._needs():
                self._no_time(result, names[number:])
                return
            try:
                request = {"do": "run", "part": result["part"], "case": name}
                rows = self._ask(request, end, longest)["rows"]
            except WorkerError as error:
                if error.late and time.monotonic() - start < 0.9 * longest:
                    self._no_time(result, names[number:])  # the part's time was short, not the case too long
                    return
                self._failed(result, name, error)
                continue
            self._found(result, name, rows, time.monotonic() - start)

    def _needs(self) -> float:
        """Seconds without which the next request need not be made."""
        return 1 + (1.5 * self._start_takes if self._worker is None else 0)

    def _no_time(self, result: dict, names: Sequence[str]) -> None:
        result["status"] = "failed" if result["status"] == "failed" else "cut short"
        result["note"] = f"no time was left for: {'; '.join(names)}"
        self._say(f"  {result['note']}")

    def _found(self, result: dict, case: str, rows: list[dict], seconds: float) -> None:
        for row in rows:
            self._known |= row.pop("known", {})
            self._say("  " + describe_row(case, row))
        if any(row.get("ok") is False for row in rows):
            result["status"] = "failed"
        result["cases"].append({"case": case, "seconds": round(seconds, 2), "rows": rows})

    def _failed(self, result: dict, case: str, error: WorkerError) -> None:
        result["status"] = "failed"
        result["cases"].append({"case": case, "rows": [], "error": str(error)})
        self._say(f"  {case}: FAILED: {error}")

    def _ask(self, request: dict, end: float, longest: float = START_SECONDS) -> dict:
        if self._worker is None:
            self._start(end)
        seconds = max(min(end - time.monotonic(), longest), 0.1)
        try:
            return self._worker.ask(
                self._base | request | {"seconds": seconds, "known": self._known}, seconds
            )
        except WorkerError as error:
            if not error.usable:
                self.close()
            raise

    def _start(self, end: float) -> None:
        begun = time.monotonic()
        seconds = max(min(START_SECONDS, end - begun), 0.1)
        self._worker = Worker(self._parts, self._log)
        try:
            request = self._base | {"do": "hello", "seconds": seconds, "known": {}}
            answer = self._worker.ask(request, seconds)
        except WorkerError as error:
            self.close()
            hint = "; give it more time by --limit" if error.late and not self.parts else ""
            raise WorkerError(f"no worker could be started: {error}{hint}", usable=False) from None
        self._start_takes = time.monotonic() - begun
        self.machine, self.parts = answer["machine"], answer["parts"]


def describe_row(case: str, row: dict) -> str:
    """A row as a line of the log."""
    verdict = {True: "", False: "WRONG: ", None: ""}[row.get("ok")]
    items = [f"{key} {figure(value)}" for key, value in row.items() if key != "ok"]
    return f"{verdict}{case}: {', '.join(items)}"


def figure(value) -> str:
    """A figure with three digits, everything else as it is."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "NO", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value and not 1e-3 <= abs(value) < 1e6:
            return f"{value:.1e}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
