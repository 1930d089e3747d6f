"""Documents of a Hub dataset, or of a local folder that `datasets` can load."""

import os
import re
from collections.abc import Iterator

from nm_export.calibration.columns import Render, text_column, text_of
from nm_export.errors import UserError
from nm_export.recipe import TextSection

_CACHE_UP_TO_BYTES = 1 << 30


def hub_documents(section: TextSection, render: Render | None = None) -> Iterator[str]:
    """Text of every row, in order.

    Datasets that are known to be small (1 GiB) are downloaded and cached; all others are streamed, as far as they are
    read.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f'{section.key}.dataset: {section.dataset} needs the datasets library; pip install "nm_export[data]" '
            "(local text and .jsonl files and builtin:python-docs do not need it)"
        ) from error
    try:
        builder = datasets.load_dataset_builder(section.dataset, section.name, revision=section.revision)
        splits = list(builder.info.splits or ())
        if splits and re.split(r"[\[+]", section.split)[0] not in {*splits, "all"}:
            raise _no_split(section, ", ".join(splits))
        small = 0 < (builder.info.download_size or 0) <= _CACHE_UP_TO_BYTES
        whole_split = re.fullmatch(r"[\w.-]+", section.split) is not None  # streaming knows no slices
        rows = datasets.load_dataset(
            section.dataset,
            section.name,
            split=section.split,
            revision=section.revision,
            streaming=whole_split and not small,
        )
        if rows.column_names:
            text_column(section, rows.column_names)
        for number, row in enumerate(rows, 1):
            yield text_of(row, section, render, f"row {number}")
    except UserError:
        raise
    except Exception as error:  # `datasets` raises the errors of many libraries
        raise _explained(error, section) from error


def _explained(error: Exception, section: TextSection) -> UserError:
    """Sort an error of `datasets` by what the user can change: the subset, the split, the name, the network."""
    kind, reason = type(error).__name__, " ".join(str(error).split())
    where = f"{section.key}.dataset: {section.dataset}"
    unreachable = re.search(r"connect|offline|resol(?:ve|ution)|couldn't reach|timed out", reason, re.IGNORECASE)
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE")
    if offline or unreachable or isinstance(error, (ConnectionError, TimeoutError)):
        return UserError(
            f"{where} cannot be fetched: the Hugging Face Hub is out of reach; check the network, or use a local file "
            "or builtin:python-docs"
        )
    if "BuilderConfig" in reason or "Config name is missing" in reason:
        return UserError(f"{section.key}.name: {section.dataset} has several subsets: {reason}")
    known = re.search(r"(?:Unknown split .* Should be one of|Bad split: .* Available splits:) \[(.*?)\]", reason)
    if known:
        return _no_split(section, known[1].replace("'", ""))
    if kind in ("GatedRepoError", "DatasetNotFoundError", "RepositoryNotFoundError"):
        return UserError(
            f"{where} does not exist on the Hugging Face Hub, or needs access that you do not have (hf auth login); "
            "it is no local file either"
        )
    return UserError(f"{where} cannot be loaded: {kind}: {reason[:300]}")


def _no_split(section: TextSection, known: str) -> UserError:
    return UserError(f"{section.key}.split: {section.dataset} has no split {section.split!r}, only {known}")
