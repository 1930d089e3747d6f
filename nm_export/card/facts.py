"""What an exported folder says about itself, read for its card."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from nm_export.errors import UserError
from nm_export.modeling.configuration_nm_sparse import SCHEME_DEFAULTS
from nm_export.recipe import Recipe
from nm_export.recipe.reading import recipe_of_folder


@dataclass(frozen=True)
class Facts:
    """Everything that a card shows. Nothing in it was made for the card.

    Attributes:
        name: title.
        repository: what the lines that load the model name: a repository of the Hub or a folder.
        provenance: `nm_export.json`.
        sparsity: `NMSparseConfig.sparsity`.
        base_weights: `NMSparseConfig.base_weights`: where the weights are that the folder does not hold, or None.
        numbers: `measurements.json`.
        recipe: the resolved recipe.
        own_text: Markdown of the file that `publish.card_text` names, when the card is new.
        code_sha256: of the code that transformers runs when it loads the folder, by the files' names.
    """

    name: str
    repository: str
    provenance: dict[str, Any]
    sparsity: dict[str, Any]
    base_weights: dict[str, Any] | None
    numbers: dict[str, Any]
    recipe: Recipe
    code_sha256: dict[str, str]
    own_text: str | None = None

    @property
    def base_id(self) -> str | None:
        """Hub id of the model that was made sparse."""
        return self.provenance["base_model"].get("base_model")

    @property
    def base_name(self) -> str:
        """Its Hub id, or a name that tells nothing about the author's machine."""
        source: str = self.provenance["base_model"]["source"]
        return self.base_id or (source if source.startswith("sample:") else Path(source).name)

    @property
    def from_recipe(self) -> bool:
        """Whether a run of the recipe made the folder; else the recipe describes what was made in Python."""
        return "made_by" not in self.provenance

    @property
    def with_onnx(self) -> bool:
        """Whether the folder holds an ONNX model."""
        return bool(self.numbers.get("onnx"))

    @property
    def with_genai(self) -> bool:
        """Whether onnxruntime-genai opens it."""
        return bool(self.numbers.get("genai", self.with_onnx))

    @cached_property
    def short_recipe(self) -> str:
        """The recipe as YAML without what is default; of local files and folders their names only."""
        sections = self.recipe.model_dump(mode="json", exclude_defaults=True, exclude={"output_dir", "publish"})
        for section, key in (("model", "source"), ("calibration", "dataset"), ("evaluation", "dataset")):
            value = sections.get(section, {}).get(key)
            if value is not None and (Path(value).is_absolute() or Path(value).expanduser().exists()):
                sections[section][key] = Path(value).name
        return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=100)


def read_facts(folder: Path, *, name: str, repository: str, own_text: str | None = None) -> Facts:
    """Read a folder that `pipeline.run` wrote.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    config = _read(folder / "config.json", "sparsity")
    sparsity = config["sparsity"]
    return Facts(
        name=name,
        repository=repository,
        provenance=_read(folder / "nm_export.json", "base_model", "linear_macs", "versions"),
        sparsity={**sparsity, "schemes": [SCHEME_DEFAULTS | scheme for scheme in sparsity["schemes"]]},
        base_weights=config.get("base_weights"),
        numbers=_read(folder / "measurements.json", "verification"),
        recipe=recipe_of_folder(folder),
        code_sha256={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.py"))},
        own_text=own_text,
    )


def _read(path: Path, *keys: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in keys if key not in content]
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} has no {path.name}; give a folder that nm-export wrote from a recipe."
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); export the model again.") from error
    if missing:
        raise UserError(f"{path} says nothing about {missing[0]}; export the model again.")
    values: dict[str, Any] = content
    return values
