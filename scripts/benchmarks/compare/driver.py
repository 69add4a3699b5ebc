"""Workers, and the contenders of a case taking turns."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import ase.io
from cases import Case, Contender
from protocol import last_line

MAX_EDGE_DIFFERENCE = 1e-3  # relative; more than that is another task
_HERE = Path(__file__).parent


class WorkerError(Exception):
    """A contender cannot go on; the message is one line."""


@dataclass
class Result:
    """What a contender did. ``facts``: everything its worker said but the times."""

    name: str
    program: str
    num_atoms: float
    facts: dict = field(default_factory=dict)
    times: list[float] = field(default_factory=list)  # s per step, one per repeat
    cpu_times: list[float] = field(default_factory=list)  # the same of processor time, of all threads
    ratio: float | None = None  # median over repeats of this one's time over the first contender's
    cpu_ratio: float | None = None  # the same of processor time, which other jobs disturb less
    error: str | None = None

    @property
    def seconds(self) -> float | None:
        """Median time of a step."""
        return median(self.times) if self.times else None

    def to_dict(self) -> dict:
        return asdict(self) | {"median_s": self.seconds}


class Worker:
    """A process that computes when asked and waits otherwise.

    ``program`` names its script; it runs in ``folder`` and prints to ``log``.
    """

    def __init__(self, python: Path, program: str, folder: Path, log: Path, threads: int):
        self._log = log
        reading, writing = os.pipe()
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [python, _HERE / f"worker_{program}.py", str(writing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[writing],
                text=True,
                cwd=folder,
                env=_environment(python, folder, threads),
                start_new_session=True,  # a group, to be ended with the compilers it may have started
            )
        os.close(writing)
        self._answers = os.fdopen(reading)
        self.hello = self._read()

    def ask(self, **request) -> dict:
        """The answer to a request. Raises WorkerError if it failed or the process is gone."""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading says why
        return self._read()

    def close(self) -> None:
        """End the process and those it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._answers.close()

    def _read(self) -> dict:
        line = self._answers.readline()
        if not line:
            status = self._process.wait()
            raise WorkerError(f"{last_line(self._log.read_text())} (exit status {status})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer


class Runner:
    """Runs cases with one interpreter per program.

    ``pythons``: the interpreter of each program, or the error that there is none. ``logs``: a folder for
    what the workers print.
    """

    def __init__(self, pythons: dict[str, Path | Exception], logs: Path, threads: int, repeats: int):
        self._pythons, self._logs = pythons, logs
        self._threads, self._repeats = threads, repeats

    def run(self, case: Case) -> list[Result]:
        """The results of all contenders, failed ones included."""
        groups = [case.contenders] if case.in_turns else [[contender] for contender in case.contenders]
        results = [result for group in groups for result in self._run_group(case.name, group)]
        _compare(results)
        return results

    def _run_group(self, case: str, contenders: list[Contender]) -> list[Result]:
        """Prepare one contender after the other, then let them compute in turns."""
        results = [Result(c.name, c.program, c.num_atoms) for c in contenders]
        workers: list[Worker | None] = []
        with tempfile.TemporaryDirectory() as folder:
            try:
                for contender, result in zip(contenders, results, strict=True):
                    workers.append(self._prepare(case, contender, result, Path(folder)))
                for repeat in range(self._repeats):
                    _say(f"{case}: {repeat + 1} of {self._repeats}")
                    for worker, result in zip(workers, results, strict=True):
                        _turn(worker, result)
            finally:
                for worker in workers:
                    if worker is not None:
                        worker.close()
        return results

    def _prepare(self, case: str, contender: Contender, result: Result, folder: Path) -> Worker | None:
        """A worker that is ready to run; None, and the reason in ``result``, if there is none."""
        _say(f"{case}: preparing {contender.name}")
        name = "".join(c if c.isalnum() else "-" for c in f"{case} {contender.name}")
        folder = folder / name
        folder.mkdir()
        structures = folder / "structures.xyz"
        ase.io.write(structures, contender.frames, format="extxyz")
        worker = None
        try:
            python = self._pythons[contender.program]
            if isinstance(python, Exception):
                raise WorkerError(last_line(str(python)))
            worker = Worker(python, contender.program, folder, self._logs / f"{name}.log", self._threads)
            request = contender.request | {"structures": str(structures), "threads": self._threads}
            request["pythons"] = {name: str(path) for name, path in self._pythons.items()}
            result.facts = worker.hello | worker.ask(do="prepare", **request)
            _check(result.facts, contender)
        except BaseException as error:
            if worker is not None:
                worker.close()
            if not isinstance(error, WorkerError | OSError):
                raise
            _fail(result, error)
            return None
        return worker


def _turn(worker: Worker | None, result: Result) -> None:
    if worker is None or result.error is not None:
        return
    try:
        answer = worker.ask(do="run", repeats=1)
        result.times += answer.pop("times")
        result.cpu_times += answer.pop("cpu_times")
        result.facts |= answer
    except WorkerError as error:
        _fail(result, error)


def _fail(result: Result, error: Exception) -> None:
    result.error = last_line(str(error))
    _say(f"{result.name}: failed: {result.error}")


def _check(facts: dict, contender: Contender) -> None:
    """Raises WorkerError if the contender computes something else than the others."""
    expected, edges = contender.expected_edges, facts["edges"]
    if expected is not None and abs(edges - expected) > MAX_EDGE_DIFFERENCE * expected:
        raise WorkerError(f"{edges:.0f} edges per step, where ASE counts {expected:.0f}")
    if facts["dtype"] != "float32":
        raise WorkerError(f"the model is {facts['dtype']}, not float32")


def _compare(results: list[Result]) -> None:
    """Ratios to the first contender, from times of the same round: both saw the same noise."""
    first = results[0]
    for result in results[1:]:
        if result.program != first.program and first.error is None and result.error is None:
            result.ratio = _ratio(first.times, result.times)
            result.cpu_ratio = _ratio(first.cpu_times, result.cpu_times)


def _ratio(first: list[float], other: list[float]) -> float:
    return median(b / a for a, b in zip(first, other, strict=True))


def _environment(python: Path, folder: Path, threads: int) -> dict[str, str]:
    """Variables for a worker: the number of threads, and empty caches so that compilation counts."""
    environment = dict(os.environ)
    for library in ("OMP", "MKL", "OPENBLAS"):
        environment[f"{library}_NUM_THREADS"] = str(threads)
    environment["TORCHINDUCTOR_COMPILE_THREADS"] = str(threads)
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    if str(python) != sys.executable:
        environment.pop("PYTHONPATH", None)  # equipot's packages are not the peer's
    return environment


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
