"""From a folder that holds all weights to one that leaves the base model's where they are, and back."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nm_export.card import refresh_card
from nm_export.errors import NMExportError, UserError
from nm_export.loading import check_exported, load_exported
from nm_export.modeling import NMSparseForCausalLM
from nm_export.publishing.base_weights import (
    BaseWeights,
    base_weights_of,
    bits_equal,
    find_base_weights,
    refer,
)
from nm_export.publishing.folder import check_target, replacing
from nm_export.quiet import quiet_transformers
from nm_export.recipe import ModelSection
from nm_export.sources.checkpoint import weight_files
from nm_export.verification import verify

_NOT_COPIED = ("model.safetensors.index.json", "config.json", "stages.json")  # the last says what a run wrote
_TOKENS = 64


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote.

    Attributes:
        folder: the new folder.
        base: what its weights are left to, in words; None when it holds all weights.
        bytes_before: size of the weight files of the folder that was converted.
        bytes_after: size of those of the new one.
    """

    folder: Path
    base: str | None
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        where = f"the others stay in {self.base}" if self.base else "none is elsewhere"
        return (
            f"{self.folder}: {_size(self.bytes_after)} of weights instead of {_size(self.bytes_before)}, {where}; "
            "reloaded, every tensor and the logits are bit-equal"
        )


def convert(
    folder: str | Path,
    output: str | Path,
    weights: Literal["full", "reference"],
    *,
    base: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write an exported folder in the other form; everything but the weights is copied.

    The new folder appears when, reloaded by its own code where nm_export cannot be imported, it computes the same
    logits bit for bit, and not before.

    Args:
        folder: a folder that an export wrote.
        output: folder to write.
        weights: `full`, all weights; `reference`, only those that the base model does not have.
        base: repository or folder whose files `reference` leaves weights to; the recipe's model by default.
        revision: branch, tag or commit of that repository; the one that was exported by default.
        overwrite: whether an earlier export in `output` may be replaced.

    Raises:
        UserError: the folder has that form already, or there is nothing that weights can be left to.
        NMExportError: the new folder gives other numbers.
    """
    folder, target = Path(folder).resolve(), Path(output).expanduser().resolve()
    check_exported(folder)
    check_target(target, overwrite=overwrite)
    if target.is_relative_to(folder) or folder.is_relative_to(target):
        raise UserError(f"{target} and {folder} lie in each other; choose another OUTPUT.")
    if (weights == "reference") == (base_weights_of(folder) is not None):
        raise UserError(f"The weights of {folder} are {weights} already.")
    if weights == "full" and (base or revision):
        raise UserError("--base and --revision are for --weights reference; a full model has all its weights.")
    with quiet_transformers():
        model, _, recipe = load_exported(folder)
        found = _base(folder, recipe.model, base, revision) if weights == "reference" else None
        with replacing(target, overwrite=overwrite) as partial:
            if found:
                _copy_others(folder, partial)
                shutil.copyfile(folder / "config.json", partial / "config.json")
                model.copy_code(partial)
                refer(folder, partial, found, recipe.publish.max_shard_size)
            else:
                model.save_pretrained(partial, max_shard_size=recipe.publish.max_shard_size)
                _copy_others(folder, partial)
            if (partial / "measurements.json").is_file():
                refresh_card(partial)  # it says where the weights are
            _check(partial, model)
            sizes = _weight_bytes(folder), _weight_bytes(partial)
    return Conversion(target, str(found) if found else None, *sizes)


def _base(folder: Path, section: ModelSection, base: str | None, revision: str | None) -> BaseWeights:
    if base is None and revision is None:
        record = json.loads((folder / "nm_export.json").read_text(encoding="utf-8"))
        revision = record["base_model"].get("revision")
    changes = {"source": base or section.source, "revision": revision}
    return find_base_weights(section.model_copy(update=changes))


def _copy_others(folder: Path, target: Path) -> None:
    """Copy what is neither weight nor code, and not hidden."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if any(part.startswith(".") or part == "__pycache__" for part in name.parts) or not path.is_file():
            continue
        if len(name.parts) == 1 and (path.suffix in (".safetensors", ".py") or path.name in _NOT_COPIED):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def _check(folder: Path, model: Any) -> None:
    """Raise NMExportError unless `folder`, reloaded, is `model` in every tensor and computes the same."""
    expected = model.state_dict()
    found = NMSparseForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    for name in sorted(expected.keys() | found.keys()):
        if not (name in expected and name in found and bits_equal(expected[name], found[name])):
            raise NMExportError(f"Conversion failed: {name} is another tensor in the new folder; nothing was written.")
    del found
    ids = torch.randint(0, model.config.vocab_size, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
    verify(folder, model, ids, onnx=False)


def _weight_bytes(folder: Path) -> int:
    elsewhere = base_weights_of(folder)
    files = (
        weight_files(folder, str(folder)) if elsewhere is None else [folder / name for name in elsewhere["new_files"]]
    )
    return sum(file.stat().st_size for file in files)


def _size(number: int) -> str:
    return f"{number / 1e9:,.2f} GB" if number >= 1e9 else f"{number / 1e6:,.2f} MB"
