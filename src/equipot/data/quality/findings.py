"""What the checks found."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from equipot.data.frames import Frame

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing found: its check, what it means, and the frames it is about."""

    severity: str  # "error": do not train on it; "warning": look at it; "note": good to know
    check: str
    message: str
    frames: tuple[tuple[str, int], ...] = ()  # file, number of the frame from 0
    labels: tuple[str, ...] = ()  # that a training must use for this to matter; none: it always does
    share: float = 1.0  # of how much these labels vary, that they are wrong by

    def __str__(self) -> str:
        where = ", ".join(str(index) for _, index in self.frames[:6]) + ", ..." * (len(self.frames) > 6)
        return f"{self.check}: {self.message}" + (f" (frames {where})" if where else "")

    def to_dict(self) -> dict:
        """Plain types only."""
        frames = [{"file": file, "frame": index} for file, index in self.frames]
        return {"severity": self.severity, "check": self.check, "message": self.message, "frames": frames}


@dataclass(frozen=True)
class Findings:
    """All findings on some files."""

    findings: list[Finding]
    files: dict[str, int] = field(default_factory=dict)  # usable frames of each file

    def count(self, severity: str) -> int:
        """How many findings of a severity there are."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_dict(self) -> dict:
        """Plain types only."""
        counts = {f"{severity}s": self.count(severity) for severity in SEVERITIES}
        findings = [finding.to_dict() for finding in self.findings]
        return {"files": self.files, **counts, "findings": findings}


def frame_ids(frames: Sequence[Frame]) -> tuple[tuple[str, int], ...]:
    """As a finding names frames."""
    return tuple((frame.file, frame.index) for frame in frames)


def numbers(frames: Sequence[Frame], most: int = 6) -> str:
    """The numbers of some frames, in words."""
    shown = ", ".join(str(frame.index) for frame in frames[:most])
    return shown if len(frames) <= most else f"{shown}, ..."
