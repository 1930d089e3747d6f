"""Models of the Hugging Face Hub -> a local snapshot folder."""

from pathlib import Path

from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download

from nm_export.errors import UserError
from nm_export.recipe import ModelSection
from nm_export.sources.errors import SourceUnavailableError

CONFIG_FILES = ["config.json", "adapter_config.json", "*.py"]
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.py"]
MODEL_FILES = [*SMALL_FILES, "*.safetensors", "README.md", "recipe.yaml"]
DUPLICATES = ["consolidated*", "original/*", "onnx/*"]
"""The same weights in other formats, some as large as the model itself."""


def fetch_config(section: ModelSection) -> Path:
    """Snapshot folder with config.json only. Raises UserError or SourceUnavailableError."""
    return _snapshot(section, CONFIG_FILES)


def fetch_small_files(section: ModelSection) -> Path:
    """Snapshot folder with everything but the weights. Raises UserError or SourceUnavailableError."""
    return _snapshot(section, SMALL_FILES)


def fetch_model(section: ModelSection) -> Path:
    """Snapshot folder with weights, tokenizer and configuration; the folder's name is the commit.

    Takes safetensors and never pickles. Raises UserError or SourceUnavailableError.
    """
    return _snapshot(section, MODEL_FILES)


def _snapshot(section: ModelSection, files: list[str]) -> Path:
    name = f"{section.source}@{section.revision}" if section.revision else section.source
    try:
        return Path(
            snapshot_download(
                section.source, revision=section.revision, allow_patterns=files, ignore_patterns=DUPLICATES
            )
        )
    except hub_errors.GatedRepoError as error:
        raise SourceUnavailableError(
            f"model.source: {name} is gated; accept its terms on https://huggingface.co/{section.source} and log in "
            "with hf auth login"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UserError(
            f"model.revision: {section.source} has no branch, tag or commit {section.revision!r}"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UserError(
            f"model.source: {name} does not exist on the Hugging Face Hub, or is private (log in with hf auth login); "
            "it is no local folder either"
        ) from error
    except (hub_errors.HfHubHTTPError, hub_errors.LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise UserError(f"{name} cannot be stored at {error.filename}: {error.strerror}") from error
        nothing_answers = isinstance(error, (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled))
        reason = "no connection, and no copy in the cache" if nothing_answers else str(error).strip().partition("\n")[0]
        raise SourceUnavailableError(
            f"model.source: {name} is no local folder and cannot be fetched from the Hugging Face Hub ({reason}); "
            "check the network, or give a local folder or .gguf file"
        ) from error
