"""Looking at data before training on it: what `equipot data inspect` and `equipot data check` do."""

from equipot.data.quality.findings import Finding, Report
from equipot.data.quality.run import check_files, inspect_files
from equipot.data.quality.summary import Summary

__all__ = ["Finding", "Report", "Summary", "check_files", "inspect_files"]
