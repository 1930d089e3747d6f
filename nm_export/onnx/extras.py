"""Packages that only some users install: asked for when they are needed, named when they are missing."""

from importlib.util import find_spec

from nm_export.errors import UserError


def require(module: str, extra: str) -> None:
    """Raise a UserError that names the extra `nm_export[extra]` when `module` is not installed."""
    if find_spec(module) is None:
        raise UserError(f'This needs the package {module}, which is not installed: pip install "nm_export[{extra}]".')
