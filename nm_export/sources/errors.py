"""The error of a model that may be right but is out of reach."""

from nm_export.errors import UserError


class SourceUnavailableError(UserError):
    """The model could not be looked at: no network, no access, not fetched yet. A dry run reports it and goes on."""
