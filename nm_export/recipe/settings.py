"""Settings `key.path=value` (`--set`) on top of the values of a recipe file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from nm_export.errors import UserError
from nm_export.recipe.yaml_values import KeyPath, dotted, parse_yaml

_OF_A_DATASET = ("name", "split", "text_column", "revision")


@dataclass(frozen=True)
class Setting:
    """One value to change."""

    key_path: str
    """Names separated by dots; numbers index into lists: `sparsity.overrides.0.dense`."""

    value: str
    """YAML."""

    origin: str
    """How the user wrote it, for messages."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `key.path=value`. Raises UserError for anything else."""
        key_path, equals, value = text.partition("=")
        if not equals or not all(key_path.strip().split(".")):
            raise UserError(f"--set {text}: write key.path=value, for example --set sparsity.pattern=4:8")
        return cls(key_path.strip(), value, f"--set {text}")


def apply_settings(values: dict[str, Any], settings: Sequence[str | Setting]) -> dict[KeyPath, str]:
    """Write settings into the nested `values` of a recipe; returns where each of them comes from, by key path.

    A dataset that a setting names takes the place of the file's: what the file says of its own dataset (subset, split,
    column, revision) goes with that, unless it is set too.
    """
    before = {section: _dataset(values, section) for section in ("calibration", "evaluation")}
    origins: dict[KeyPath, str] = {}
    for setting in settings:
        parsed = Setting.parse(setting) if isinstance(setting, str) else setting
        origins[_apply(values, parsed)] = parsed.origin
    for section, replaced in before.items():
        inherits = section == "evaluation" and _dataset(values, section) is None
        chosen = "calibration" if inherits and replaced is None else section
        if (chosen, "dataset") in origins and _dataset(values, chosen) != before[chosen]:
            _forget(values, section, origins)
    return origins


def split_output_dir(settings: Sequence[str | Setting]) -> tuple[list[str | Setting], str | None]:
    """Take `output_dir` out of settings: whoever runs the recipe says where to write, as with `--output-dir`."""
    others: list[str | Setting] = []
    folder = None
    for setting in settings:
        parsed = Setting.parse(setting) if isinstance(setting, str) else setting
        value = parse_yaml(parsed.value, parsed.origin)[0] if parsed.key_path == "output_dir" else None
        if isinstance(value, str) and value:
            folder = value
        else:
            others.append(setting)
    return others, folder


def _dataset(values: dict[str, Any], section: str) -> Any:
    content = values.get(section)
    return content.get("dataset") if isinstance(content, dict) else None


def _forget(values: dict[str, Any], section: str, origins: dict[KeyPath, str]) -> None:
    content = values.get(section)
    if isinstance(content, dict) and (section,) not in origins:
        for key in _OF_A_DATASET:
            if (section, key) not in origins:
                content.pop(key, None)


def _apply(values: dict[str, Any], setting: Setting) -> KeyPath:
    value, _ = parse_yaml(setting.value, setting.origin)
    words = setting.key_path.split(".")
    at: Any = values
    path: KeyPath = ()
    for depth, word in enumerate(words):
        last = depth == len(words) - 1
        if isinstance(at, list):
            if not word.isdecimal() or int(word) >= len(at):
                has = f"the entries 0 to {len(at) - 1}" if at else "no entries"
                raise UserError(f"{setting.origin}: {dotted(path)} has {has}, and so no {word!r}")
            key: str | int = int(word)
        elif isinstance(at, dict):
            key = word
            if not last and at.get(key) is None:
                if words[depth + 1].isdecimal():
                    raise UserError(
                        f"{setting.origin}: the recipe has no {dotted((*path, key))}, and so no entry "
                        f"{words[depth + 1]}; give the whole list: --set '{dotted((*path, key))}=[...]'"
                    )
                at[key] = {}
        else:
            raise UserError(f"{setting.origin}: {dotted(path)} is a single value and has no key {word!r}")
        path = (*path, key)
        if last:
            at[key] = value
        else:
            at = at[key]
    return path
