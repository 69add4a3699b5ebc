"""Looking at data before training on it: what `equipot data inspect` and `equipot data check` do."""

from equipot.data.quality.findings import Finding, Findings
from equipot.data.quality.run import check_files, inspect_files
from equipot.data.quality.summary import Summary

__all__ = ["Finding", "Findings", "Summary", "check_files", "inspect_files"]
