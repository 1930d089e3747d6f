"""The proof that every form of a published model computes what the calibrated model computes."""

from nm_export.verification.forms import verify
from nm_export.verification.report import ModuleCheck, VerificationReport

__all__ = ["ModuleCheck", "VerificationReport", "verify"]
