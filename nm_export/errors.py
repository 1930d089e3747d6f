"""What the toolkit says when it stops: one sentence that names what went wrong, where, and what to do."""


class NMExportError(Exception):
    """A failure of ours: a backend that disagrees, an upload that did not arrive. Ends the command with exit code 1."""

    exit_code = 1


class UserError(NMExportError):
    """Something the user can correct: a recipe, a path, an unsuited model. Ends the command with exit code 2."""

    exit_code = 2
