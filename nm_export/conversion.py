"""From a folder that holds all weights to one that leaves the base model's where they are, and back."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nm_export.arguments import require_folder
from nm_export.card import refresh_card
from nm_export.card.write import is_hand_made
from nm_export.errors import NMExportError, UserError
from nm_export.exported import check_exported
from nm_export.finished import STAGES_FILE, record_written
from nm_export.json_files import read_json_object
from nm_export.loading import load_exported
from nm_export.modeling import NMSparseForCausalLM
from nm_export.progress import doing
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
from nm_export.sizes import size_in_words
from nm_export.sources.checkpoint import weight_files
from nm_export.verification import verify
from nm_export.whole_file import write_whole

logger = logging.getLogger(__name__)

_WEIGHTS = ("model.safetensors.index.json", "config.json")  # and *.safetensors; the last says where weights are
_TOKENS = 64


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote.

    Attributes:
        folder: the new folder.
        base: what its weights are left to, in words; None when it holds all weights.
        bytes_before: size of the weight files of the folder that was converted.
        bytes_after: size of those of the new one.
        onnx_before: size of `onnx/` in the folder that was converted.
        onnx_after: in the new one.
    """

    folder: Path
    base: str | None
    bytes_before: int
    bytes_after: int
    onnx_before: int
    onnx_after: int

    def __str__(self) -> str:
        where = f"the others stay in {self.base}" if self.base else "none is elsewhere"
        onnx = ""
        if self.onnx_after:
            onnx = f"onnx/ holds {size_in_words(self.onnx_after)} more"
            onnx += ", which --skip-onnx leaves out; " if self.onnx_after > self.bytes_after else "; "
        elif self.onnx_before:
            onnx = f"{size_in_words(self.onnx_before)} of onnx/ are left out; "
        before, after = size_in_words(self.bytes_before), size_in_words(self.bytes_after)
        return (
            f"{self.folder}: {after} of weights instead of {before}, {where}; "
            f"{onnx}reloaded, every tensor and the logits are bit-equal"
        )


def convert(
    folder: str | Path,
    output: str | Path,
    weights: Literal["full", "reference"] | None = None,
    *,
    base: str | None = None,
    revision: str | None = None,
    skip_onnx: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Write an exported folder in the other form; everything but the weights is copied.

    The new folder appears when, reloaded by its own code where nm_export cannot be imported, it computes the same
    logits bit for bit, and not before.

    Args:
        folder: a folder that an export wrote.
        output: folder to write.
        weights: `full`, all weights; `reference`, only those that the base model does not have; None leaves them as
            they are.
        base: repository or folder whose files `reference` leaves weights to; the recipe's model by default.
        revision: branch, tag or commit of that repository; the one that was exported by default.
        skip_onnx: whether to leave out the ONNX export, and what was measured with it.
        overwrite: whether an earlier export in `output` may be replaced.

    Raises:
        UserError: the folder has that form already, or there is nothing that weights can be left to.
        NMExportError: the new folder gives other numbers.
    """
    folder = require_folder(folder, "convert").resolve()
    target = require_folder(output, "convert").expanduser().resolve()
    if weights not in (None, "full", "reference"):
        raise UserError(f"convert: weights is {weights!r:.40}; it is full or reference.")
    check_exported(folder)
    check_target(target, overwrite=overwrite)
    if target.is_relative_to(folder) or folder.is_relative_to(target):
        raise UserError(f"{target} and {folder} lie in each other; choose another OUTPUT.")
    form = "full" if base_weights_of(folder) is None else "reference"
    if weights is None and not skip_onnx:
        raise UserError("Say what is to change: --weights full, --weights reference or --skip-onnx.")
    if weights == form and not skip_onnx:
        raise UserError(f"The weights of {folder} are {weights} already.")
    if skip_onnx and not (folder / "onnx").is_dir():
        raise UserError(f"{folder} has no ONNX export that could be left out.")
    if (weights in ("full", None) or weights == form) and (base or revision):
        raise UserError("--base and --revision are for --weights reference; a full model has all its weights.")
    with quiet_transformers(), doing(f"Converting {folder}"):
        model, _, recipe = load_exported(folder)
        changed = weights is not None and weights != form
        found = _base(folder, recipe.model, base, revision) if changed and weights == "reference" else None
        with replacing(target, overwrite=overwrite) as partial:
            if not changed:
                _copy(folder, partial, weights=True, onnx=False)
                model.copy_code(partial)
            elif found:
                _copy(folder, partial, onnx=not skip_onnx)
                shutil.copyfile(folder / "config.json", partial / "config.json")
                model.copy_code(partial)
                refer(folder, partial, found, recipe.publish.max_shard_size)
            else:
                model.save_pretrained(partial, max_shard_size=recipe.publish.max_shard_size)
                _copy(folder, partial, onnx=not skip_onnx)
            if skip_onnx:
                _forget_onnx(partial)
            _describe(partial, target.name)
            _check(partial, model)
            record_written(partial, "convert")
            sizes = (_weight_bytes(folder), _weight_bytes(partial), _bytes(folder / "onnx"), _bytes(partial / "onnx"))
    return Conversion(target, str(found) if found else None, *sizes)


def _base(folder: Path, section: ModelSection, base: str | None, revision: str | None) -> BaseWeights:
    if base is None and revision is None:
        record = json.loads((folder / "nm_export.json").read_text(encoding="utf-8"))
        revision = record["base_model"].get("revision")
    changes = {"source": base or section.source, "revision": revision}
    return find_base_weights(section.model_copy(update=changes))


def _copy(folder: Path, target: Path, *, weights: bool = False, onnx: bool = True) -> None:
    """Copy what is neither code, nor hidden, nor the record of a run; weights and the ONNX export if wanted."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if any(part.startswith(".") or part == "__pycache__" for part in name.parts) or not path.is_file():
            continue
        if len(name.parts) == 1 and (path.suffix == ".py" or path.name == STAGES_FILE):
            continue
        if len(name.parts) == 1 and not weights and (path.suffix == ".safetensors" or path.name in _WEIGHTS):
            continue
        if name.parts[0] == "onnx" and not onnx:
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def _forget_onnx(folder: Path) -> None:
    """Take what was found out about the ONNX export out of a folder's measurements."""
    path = folder / "measurements.json"
    if not path.is_file():
        return
    numbers = read_json_object(path)
    numbers |= {"onnx": False, "genai": False, "quantization": None, "speed": []}
    if "evaluations" in numbers:
        numbers["evaluations"] = [e for e in numbers["evaluations"] if e["model"]["backend"] != "onnx"]
    report = numbers.get("verification") or {}
    for key in ("modules", "end_to_end", "greedy_agreement"):
        if key in report:
            report[key] = {form: found for form, found in report[key].items() if not form.startswith("onnx")}
    report |= {key: empty for key, empty in (("against_dense", {}), ("floor", None)) if key in report}
    write_whole(path, json.dumps(numbers, indent=2) + "\n")


def _describe(folder: Path, name: str) -> None:
    """Write the card of the new folder: it says where the weights are, and what there is beside them."""
    if not (folder / "measurements.json").is_file():
        return
    if is_hand_made(folder):
        logger.warning(
            "README.md has no marks of nm-export and was copied as it is: it may say something else than the new "
            "folder holds; `nm-export card %s --overwrite` writes it anew.",
            name,
        )
    else:
        refresh_card(folder, called=name)


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


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
