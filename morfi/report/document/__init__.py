"""The report of an experiment, as one HTML file or in Markdown: `morfi report`."""

from morfi.report.document.write import write_as, write_report

__all__ = ["write_as", "write_report"]
