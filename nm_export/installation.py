"""How somebody else installs this package."""

from importlib import metadata

_LABELS = ("repository", "source", "homepage")


def project_url() -> str | None:
    """Address of the project, as the package's metadata name it, or None."""
    try:
        entries = metadata.metadata("nm_export").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return None
    found = {
        label.strip().lower(): address.strip() for label, _, address in (entry.partition(",") for entry in entries)
    }
    return next((found[label] for label in _LABELS if found.get(label, "").startswith("https://")), None)


def how_to_install(extra: str) -> str:
    """What to do, as a part of a Markdown sentence; it works whether or not a package index has this package."""
    url = project_url()
    if url is None:
        return f'`pip install ".[{extra}]"` in the source folder of nm_export'
    return f'`pip install "nm_export[{extra}] @ git+{url}"` ([nm_export]({url}))'
