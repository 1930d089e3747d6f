"""The proof that every form of a published model computes what the calibrated model computes."""

from nm_export.verification.report import ModuleCheck, VerificationReport
from nm_export.verification.forms import verify

__all__ = ["ModuleCheck", "VerificationReport", "verify"]
