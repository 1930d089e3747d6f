"""The small files of a model folder, before any library reads them: where they lead to, how large they are."""

from fnmatch import fnmatchcase
from pathlib import Path

from nm_export.errors import UserError
from nm_export.json_files import read_json_object

_STRICT = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Read here as JSON objects, whatever libraries would make of them."""

_LARGEST = {"tokenizer.json": 100, "vocab.*": 100, "merges.txt": 100, "*.model": 100, "*.tiktoken": 100, "*.jinja": 4}
"""Megabytes. The largest tokenizers have some 35."""


def check_folder(folder: Path, where: str) -> None:
    """Raise UserError for a folder that leads out of itself, or whose small files are too large or no JSON.

    Args:
        folder: a model folder.
        where: it in a few words, for messages.
    """
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            check_link(path, where)
    for name in _STRICT:
        if (folder / name).exists():
            read_json_object(folder / name)
    for path in folder.iterdir():
        limit = next((limit for pattern, limit in _LARGEST.items() if fnmatchcase(path.name, pattern)), None)
        if limit is not None and path.is_file() and path.stat().st_size > limit * 1_000_000:
            raise UserError(f"{path} is larger than {limit} MB, too large for such a file; is it damaged?")


def check_no_adapter(folder: Path, where: str) -> None:
    """Raise UserError for a folder of peft: what it holds changes a base model that nobody asked for."""
    path = folder / "adapter_config.json"
    if not path.exists():
        return
    base = read_json_object(path).get("base_model_name_or_path")
    of = f" for the base model {base[:200]!r}" if isinstance(base, str) and base else ""
    raise UserError(
        f"{where} holds an adapter{of} (adapter_config.json), not a model of its own; merge the two and give the "
        f'result: model = peft.AutoPeftModelForCausalLM.from_pretrained("{folder}").merge_and_unload(), then '
        'model.save_pretrained("merged"), and save the tokenizer there as well'
    )


def check_link(path: Path, where: str) -> None:
    """Raise UserError unless a link leads to a file of its folder, or to the blobs of a snapshot in the Hub's cache."""
    folder = path.parent.resolve()
    places = [folder]
    if folder.parent.name == "snapshots":
        places.append(folder.parent.parent / "blobs")
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is a link that leads nowhere; copy the file there") from error
    if not any(target.is_relative_to(place.resolve()) for place in places):
        raise UserError(f"{path} is a link that leads out of {where}; copy the file there, if you trust it")
