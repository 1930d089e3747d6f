"""The first words of a command line: which command is meant, and what is said when none is."""

import difflib
import sys
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from nm_export.console import fail
from nm_export.errors import UserError
from nm_export.exported import is_repository

USAGE = 2
_UsageError: Any = typer.BadParameter.__base__  # click's, which typer may have as its own
_RENAMED = {"disable-genai": "enable-genai FOLDER --off"}
_MODEL_SUFFIXES = (".gguf", ".yaml", ".yml")


class Commands(TyperGroup):
    """A group whose first word may be something else than a command: the default command is put before it.

    Whatever is wrong with the words is said in one line, as all other mistakes are.
    """

    default = ""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line; see click."""
        options["standalone_mode"] = False
        try:
            sys.exit(super().main(*args, **options) or 0)
        except _UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # nothing was asked: the help is the answer
                error.show()
                sys.exit(USAGE)
            context = getattr(error, "ctx", None)
            path = " ".join(context.command_path.split()) if context else "nm-export"
            fail(f"{_one_line(error)}; {path} --help shows the options", USAGE)
        except UserError as error:
            fail(str(error), USAGE)
        except typer.Abort:
            fail("aborted", 1)
        except BrokenPipeError:
            sys.exit(1)  # whoever read our output has seen enough

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front of everything that is neither a command nor an option of the group."""
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if args and args[0] not in self.commands and args[0] not in own:
            if not args[0].startswith("-") and not self.is_meant(args[0]):
                raise UserError(self.unknown(args[0]))
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def is_meant(self, word: str) -> bool:
        """Whether a word that is no command is what the default command takes."""
        return Path(word).expanduser().exists()

    def unknown(self, word: str) -> str:
        """What to say of a word that is neither."""
        if word in _RENAMED:
            return f"there is no command {word}; nm-export {_RENAMED[word]} does that"
        nearest = self.nearest(word)
        hint = f"Did you mean {nearest[0]}?" if nearest else f"The commands are {', '.join(sorted(self.commands))}."
        return f"{word!r} is no command, and there is no {self.meant_for} of that name here. {hint}{self.remark}"

    def nearest(self, word: str) -> list[str]:
        """The command that a word is nearly."""
        return difflib.get_close_matches(word, self.commands, n=1, cutoff=0.75)

    meant_for, remark = "", ""


class CommandsAndRecipes(Commands):
    """`nm-export RECIPE ...` means `nm-export export RECIPE ...`."""

    default, meant_for = "export", "recipe or model folder"
    remark = " Models of the Hub are named with their owner, owner/name."

    def is_meant(self, word: str) -> bool:
        """Whether a word that is no command is a recipe or a model, or was meant to be one."""
        path = Path(word)
        is_file_name = path.suffix.lower() in _MODEL_SUFFIXES or path.parent != Path()
        return super().is_meant(word) or is_file_name or is_repository(word) or word.startswith("sample:")


class CommandsAndModels(Commands):
    """`nm-export bench MODEL ...` means `nm-export bench model MODEL ...`."""

    default, meant_for = "model", "folder"

    def is_meant(self, word: str) -> bool:
        """Whether a word is a folder or was meant to be one: all that is not nearly a command."""
        return super().is_meant(word) or not self.nearest(word)


def _one_line(error: Any) -> str:
    return " ".join(error.format_message().split()).rstrip(".")
