"""What the stages of a run have read and written, by content, so that a later run takes over what still holds."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nm_export.digests import file_sha256
from nm_export.whole_file import sync, write_whole

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """A stage that was finished.

    Attributes:
        read: hashes of what decides the result, by a few words for it.
        wrote: SHA-256 of the files, by their path in the journal's folder.
        result: what the stage found out. JSON values.
        seconds: how long it took.
        peak_memory: bytes, of its process up to its end.
    """

    read: dict[str, str]
    wrote: dict[str, str]
    result: Any = None
    seconds: float = 0.0
    peak_memory: int = 0


class Journal:
    """The finished stages of a folder, kept in its `journal.json`.

    A stage holds as long as it would read the same again and its files are what it wrote.

    Args:
        folder: the folder.
        writable: False changes nothing in it: of several processes one writes.
        others: names in the folder that are not the journal's business.

    Attributes:
        entries: by the name of the stage, in the order in which they were finished.
    """

    def __init__(self, folder: Path, *, writable: bool = True, others: Iterable[str] = ()) -> None:
        self.folder, self.writable, self._others = folder, writable, tuple(others)
        self.entries: dict[str, Entry] = {}
        try:
            known = json.loads((folder / "journal.json").read_text(encoding="utf-8"))
            if known["format"] == FORMAT:
                self.entries = {name: Entry(**entry) for name, entry in known["stages"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass  # as good as none: the work is done again

    def why_not(self, stage: str, read: Mapping[str, str]) -> str | None:
        """Why a stage must be done again, in a few words; None if it holds. One that was never done raises KeyError."""
        entry = self.entries[stage]
        changed = differences(entry.read, read)
        if changed:
            return changed
        for name, sha256 in entry.wrote.items():
            path = self.folder / name
            if not path.is_file() or path.is_symlink() or file_sha256(path) != sha256:
                return f"{path.name} is not as it was written"
        return None

    def record(
        self, stage: str, read: Mapping[str, str], files: Iterable[Path], result: Any, seconds: float, peak_memory: int
    ) -> Entry:
        """Keep a finished stage once its files, in the journal's folder, are on the disk."""
        files = sorted(files)
        sync(files)
        sync({path.parent for path in files})
        wrote = {path.relative_to(self.folder).as_posix(): file_sha256(path) for path in files}
        self.entries.pop(stage, None)
        result = json.loads(json.dumps(result))  # what a later run finds
        self.entries[stage] = Entry(dict(read), wrote, result, seconds, peak_memory)
        self._write()
        return self.entries[stage]

    def keep_only(self, stages: Iterable[str]) -> None:
        """Drop all stages but these."""
        for name in set(self.entries) - set(stages):
            self.forget(name)

    def forget(self, stage: str) -> None:
        """Drop a stage and the files that it wrote."""
        if self.entries.pop(stage, None) is not None and self.writable:
            self._write()
            self.tidy()

    def tidy(self) -> None:
        """Remove everything from the folder that no stage wrote."""
        known = {"journal.json", *self._others, *(name for entry in self.entries.values() for name in entry.wrote)}
        folders = []
        for path in list(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if name.split("/")[0] in known or name in known:
                continue
            if path.is_dir() and not path.is_symlink():
                folders.append(path)
            else:
                path.unlink()
        for path in sorted(folders, reverse=True):
            if not any(path.iterdir()):
                path.rmdir()

    def _write(self) -> None:
        entries = {name: asdict(entry) for name, entry in self.entries.items()}
        write_whole(self.folder / "journal.json", json.dumps({"format": FORMAT, "stages": entries}, indent=1) + "\n")


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What of the things that a stage reads has changed, in a few words; "" if nothing has."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return f"{' and '.join(names)} changed" if names else ""
