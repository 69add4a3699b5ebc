"""The process that computes: it answers requests, one JSON object per line, until its input ends.

python worker.py ANSWERS PARTS     ANSWERS: number of the pipe to write to; PARTS: file that defines PARTS

{"do": "hello", ...}                             -> {"machine": facts, "parts": [all but their cases]}
{"do": "cases", "part": name, ...}               -> {"cases": [names]}
{"do": "run", "part": name, "case": name, ...}   -> {"rows": [...]}
a request that fails                             -> {"error": one line, "usable": whether to go on here}
"""

import faulthandler
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "compare"))  # structures.py

import torch
from machine import describe
from plan import Context, Part

from equipot.ops.operators import load_operators


def main() -> None:
    faulthandler.enable()  # a crash says where, in the log
    parts = {part.name: part for part in load_parts(Path(sys.argv[2]))}
    with os.fdopen(int(sys.argv[1]), "w") as answers:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                reply = answer(request, parts)
            except Exception as error:
                traceback.print_exc()
                reply = {"error": message(error), "usable": usable(request["device"])}
            answers.write(json.dumps(reply) + "\n")
            answers.flush()


def load_parts(file: Path) -> list[Part]:
    spec = importlib.util.spec_from_file_location("parts_of_the_check", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PARTS


def answer(request: dict, parts: dict[str, Part]) -> dict:
    context = Context(
        request["device"], request["size"], Path(request["folder"]), request["seconds"], request["known"]
    )
    if request["do"] == "hello":
        machine = describe(context.device)
        compiled = load_operators()
        machine["kernels"] = "compiled" if compiled else "NOT COMPILED: plain torch runs"
        keys = ("name", "title", "seconds", "longest")
        return {"machine": machine, "parts": [{k: getattr(p, k) for k in keys} for p in parts.values()]}
    cases = parts[request["part"]].cases(context)
    if request["do"] == "cases":
        return {"cases": list(cases)}
    return {"rows": cases[request["case"]](context)}


def message(error: Exception) -> str:
    """The exception in one line: what kind, and the first two lines that say something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:400]


def usable(device: str) -> bool:
    """Whether the device still computes: an illegal address ruins everything that follows in a process."""
    if device == "cpu":
        return True
    try:
        torch.cuda.synchronize()
        return float(torch.ones(3, device=device).sum()) == 3.0
    except Exception:
        return False


if __name__ == "__main__":
    main()
