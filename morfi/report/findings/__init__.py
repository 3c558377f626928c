"""What an experiment says, as numbers with intervals: every report of it reads them here."""

from morfi.report.findings.claims import CANNOT, FAILS, HOLDS, IN_PART, RULE, Claim, Part, claims_of
from morfi.report.findings.experiment import Experiment, experiment_of

__all__ = [
    "CANNOT",
    "FAILS",
    "HOLDS",
    "IN_PART",
    "RULE",
    "Claim",
    "Experiment",
    "Part",
    "claims_of",
    "experiment_of",
]
