"""What a folder of `nm_export.save` says of itself, so that all commands read it as they read one of a recipe.

A model that was made in Python has no recipe. Its schemes are written as one, which describes the model and cannot make
it again: it says neither which text was read nor what was trained.
"""

import glob
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from nm_export.card import refresh_card, write_card
from nm_export.errors import UserError
from nm_export.finished import record_written
from nm_export.json_files import read_json
from nm_export.modeling.configuration_nm_sparse import SCHEME_DEFAULTS
from nm_export.plan import Plan, PlannedLinear
from nm_export.recipe import Recipe, Scheme
from nm_export.recipe.model import yaml_text
from nm_export.recipe.sections import SchemeFields
from nm_export.verification import VerificationReport
from nm_export.versions import RECORDED, installed_versions
from nm_export.whole_file import write_whole

MADE_BY = "nm_export.save"
"""What `nm_export.json` says of folders that no recipe has made."""

_HEADER = (
    "# Describes a model that was made in Python: what is pruned, and how. It says neither which text was read nor\n"
    "# what was trained, so that running it would make another model.\n"
)


def describe(model: Any, folder: Path, name: str) -> None:
    """Write recipe.yaml, nm_export.json, measurements.json and the card of a sparse model into its folder.

    Args:
        model: the sparse model.
        folder: folder that holds its weights, configuration and code.
        name: title of the card.

    Raises:
        UserError: its schemes are none that a recipe can have.
    """
    recipe = recipe_of(model)
    sections = recipe.model_dump(mode="json", exclude_none=True, include={"model", "sparsity", "evaluation"})
    sections["evaluation"] = {"enabled": False}
    text = _HEADER + yaml_text(sections)
    plan = plan_of(model)
    record = {
        "format": 1,
        "made_by": MADE_BY,
        "base_model": _base_model(model),
        "recipe_sha256": _identity(model, text),
        "linear_macs": plan.macs_record(),
        "versions": {"python": platform.python_version(), **installed_versions(RECORDED)},
    }
    numbers = {
        "perplexity": None,
        "verification": None,
        "onnx": False,
        "genai": False,
        "learning": None,
        "layers": None,
    }
    write_whole(folder / "recipe.yaml", text)
    write_whole(folder / "nm_export.json", _json(record))
    write_whole(folder / "measurements.json", _json(numbers))
    write_card(folder, name=name, repository=name)


def is_saved(folder: Path) -> bool:
    """Whether `save` has written a folder, and no recipe."""
    try:
        record = read_json(folder / "nm_export.json")
    except (OSError, UserError):
        return False
    return isinstance(record, dict) and record.get("made_by") == MADE_BY


def record_verification(folder: Path, report: VerificationReport | None) -> None:
    """Keep what verification has found in a folder of `save`, and show it on the card; leave other folders alone.

    Args:
        folder: the folder.
        report: None where what was verified has changed since.
    """
    if not is_saved(folder):
        return
    path = folder / "measurements.json"
    try:
        numbers = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); save the model again.") from error
    numbers["verification"] = report.to_dict() if report else None
    numbers["onnx"] = (folder / "onnx" / "model.onnx").is_file()
    numbers["genai"] = (folder / "onnx" / "genai_config.json").is_file()
    write_whole(path, _json(numbers))
    refresh_card(folder)
    if report:
        record_written(folder, "save")  # publishing compares: what was verified is what is sent


def recipe_of(model: Any) -> Recipe:
    """Return a recipe that resolves to the schemes of a sparse model, module by module.

    Raises:
        UserError: a recipe cannot say that.
    """
    first, *others = model.config.sparsity["schemes"]
    overrides = []
    for scheme in others:
        changes = {field: value for field, value in _fields(scheme).items() if value != _fields(first)[field]}
        overrides.append({"modules": _exactly(scheme["modules"]), **changes})
    names = [name for scheme in (first, *others) for name in scheme["modules"]]
    sparsity = {**_fields(first), "targets": _exactly(names), "ignore": (), "overrides": overrides}
    sections = {
        "model": {"source": _base_model(model)["source"]},
        "sparsity": sparsity,
        "evaluation": {"enabled": False},
    }
    try:
        return Recipe.model_validate(sections, context={"runs": False})
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise UserError(f"The schemes of this model cannot be written as a recipe ({problem}).") from error


def plan_of(model: Any) -> Plan:
    """Return the linears of a sparse model's decoder, each with its scheme."""
    schemes = {name: Scheme(**_fields(s)) for s in model.config.sparsity["schemes"] for name in s["modules"]}
    head = model.get_output_embeddings()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    return Plan(
        tuple(
            PlannedLinear(name, linear.in_features, linear.out_features, schemes.get(name), number)
            for number, (name, linear) in enumerate(linears.items())
        )
    )


def _fields(scheme: dict[str, Any]) -> dict[str, Any]:
    return {field: scheme.get(field, SCHEME_DEFAULTS.get(field)) for field in SchemeFields.model_fields}


def _exactly(names: list[str]) -> list[str]:
    """Wildcards that match these names only."""
    return [glob.escape(name) for name in names]


def _base_model(model: Any) -> dict[str, Any]:
    """What the model says of where it came from."""
    config = model.config.base_config
    source = str(config.name_or_path or model.name_or_path or "")
    earlier = _record(Path(source)) if source else None
    if earlier is not None:  # loaded from an exported folder
        return earlier
    revision = getattr(config, "_commit_hash", None)  # set where the files came from the Hub
    found = {
        "source": source or "a model in memory",
        "kind": "memory",
        "base_model": source if revision else None,
        "revision": revision,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return {key: value for key, value in found.items() if value is not None}


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        base = read_json(folder / "nm_export.json")["base_model"]
    except (OSError, UserError, KeyError, TypeError):
        return None
    return dict(base) if isinstance(base, dict) and isinstance(base.get("source"), str) else None


def _identity(model: Any, recipe: str) -> str:
    """By which measurements know the model: its schemes and its sparsity parameters."""
    digest = hashlib.sha256(recipe.encode())
    for name, tensor in model.state_dict().items():
        if ".nm_" in name:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
