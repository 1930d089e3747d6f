"""The hidden folder beside the output in which it is made, and where an interrupted run is continued."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nm_export.finished import write_stages
from nm_export.journal import Journal
from nm_export.publishing.folder import cannot_be_written, move_into_place
from nm_export.publishing.lock import alone

LEARNING = "learning"
RETIRED = "retired"
"""An earlier model while the new one gets its name."""


class Workspace:
    """`.<name>.work` beside a target folder `<name>`: a journal, what its stages wrote, and the folder to be.

    Attributes:
        target: the folder to write.
        folder: the workspace.
        model: its subfolder that becomes `target`.
        learning: its subfolder for the checkpoints of learning.
        journal: of the stages.
    """

    def __init__(self, target: Path, *, writable: bool = True) -> None:
        self.target = target
        self.folder = folder_for(target)
        self.model = self.folder / "model"
        self.learning = self.folder / LEARNING
        if writable:
            self.folder.mkdir(exist_ok=True)
        self.journal = Journal(self.folder, writable=writable, others=[LEARNING])
        if writable:
            self.journal.tidy()

    def finish(self, stages: Iterable[str]) -> None:
        """Give the model, made by `stages`, its final name, in place of what was there, and remove the workspace."""
        write_stages(self.model, {name: self.journal.entries[name] for name in stages}, f"{self.model.name}/")
        move_into_place(self.model, self.target, self.folder / RETIRED)
        self.remove()

    def remove(self) -> None:
        """Remove it with everything in it."""
        shutil.rmtree(self.folder)

    def describe(self) -> str:
        """Say what an interrupted run leaves."""
        done = list(self.journal.entries)
        if not self._worth_keeping():
            return "interrupted; nothing was finished yet, the same command starts again"
        what = f"what was finished ({', '.join(done)})" if done else "what was learned"
        return f"interrupted; {what} is kept in {self.folder}, and the same command goes on from there"

    def leave(self) -> None:
        """Keep finished stages for the next run, and nothing else."""
        if self._worth_keeping():
            self.journal.tidy()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _worth_keeping(self) -> bool:
        # the plan alone is quickly made again
        return bool(self.journal.entries.keys() - {"plan"}) or (self.learning.is_dir() and any(self.learning.iterdir()))


def folder_for(target: Path) -> Path:
    """The workspace of a target folder."""
    return target.with_name(f".{target.name}.work")


@contextmanager
def working_on(target: Path) -> Iterator[Workspace]:
    """Yield the workspace of `target`, which no other run has meanwhile; what a killed run left in it is there again.

    When the block ends without `finish`, finished stages stay for the next run.

    Raises:
        UserError: another run works there, or nothing can be written there.
    """
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(target))
            _recover(target)
            workspace = Workspace(target)
        except OSError as error:
            raise cannot_be_written(target, error) from error
        try:
            yield workspace
        finally:
            if workspace.folder.is_dir():
                workspace.leave()


def _recover(target: Path) -> None:
    """Give an earlier model its name back if a run was killed between taking it away and putting the new one there."""
    retired = folder_for(target) / RETIRED
    if retired.is_dir() and not target.exists():
        retired.rename(target)
