"""The report of an experiment as one HTML file: `morfi report`."""

from morfi.report.document.write import write_report

__all__ = ["write_report"]
