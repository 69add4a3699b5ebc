"""What a part of the check is, and what its cases are told; the standard library only.

A part is a list of named cases. A case is a function of a `Context` that returns rows for the report: flat
dictionaries whose keys are the columns, with their units. Three keys mean something: ``ok``, False where a
result is wrong; ``note``, what else there is to say (not installed, does not fit, ...); ``known``, figures
that later cases are told and the report does not print.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Rows = list[dict]


@dataclass(frozen=True)
class Context:
    """``seconds``: left for the case. ``known``: figures of earlier cases, such as the copy's GB/s."""

    device: str  # cuda or cpu
    size: str  # full, small or tiny
    folder: Path  # for files that later cases may use
    seconds: float
    known: dict = field(default_factory=dict)

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"


Case = Callable[[Context], Rows]


@dataclass(frozen=True)
class Part:
    """``seconds``: its share of 480; what earlier parts leave comes on top. ``longest``: of a single case, so
    that one that hangs does not use all of that up. Both are for a limit of 480 s, and grow with it.
    """

    name: str
    title: str
    seconds: float
    cases: Callable[[Context], dict[str, Case]]
    longest: float = 60
