"""`optimum-cli export nm-sparse`: words to a recipe, and the export of that recipe.

optimum loads this module at every start of its command line: everything heavy is imported by `run`.
"""

import json
from argparse import ArgumentParser, Namespace, RawTextHelpFormatter
from typing import TYPE_CHECKING, Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from nm_export.errors import UserError

if TYPE_CHECKING:
    from nm_export.recipe import Recipe, Setting

_RECIPE_SUFFIXES = (".yaml", ".yml")

_USAGE = """optimum-cli export nm-sparse RECIPE [OUTPUT] [options]
       optimum-cli export nm-sparse MODEL [OUTPUT] [options]
       optimum-cli export nm-sparse --model MODEL [OUTPUT] [options]"""

_EXAMPLES = """examples:
  optimum-cli export nm-sparse mistralai/Mistral-7B-v0.3 mistral-8of16 --score weight_norm
  optimum-cli export nm-sparse recipes/smollm2_8of16.yaml out --pattern 4:8 --dry-run

What the options above do not reach, --set does; the keys are in docs/recipes.md."""

# option: (key of the recipe, metavar, help)
_VALUES = {
    "--model": ("model.source", "MODEL", "Hub id, folder, .gguf file or sample:smollm2-135m-instruct."),
    "--revision": ("model.revision", "REVISION", "Branch, tag or commit of a model on the Hub."),
    "--dtype": ("model.dtype", "DTYPE", "float32, bfloat16, float16 or auto."),
    "--pattern": (
        "sparsity.pattern",
        "N:M",
        "Keep N of M neighbouring channels, or P%% of all; 8:16 by default.",
    ),
    "--score": ("sparsity.score", "SCORE", "What makes a channel worth keeping; magnitude by default."),
    "--shift": ("sparsity.shift", "SHIFT", "What is subtracted before pruning; none by default."),
    "--dataset": ("calibration.dataset", "DATASET", "Calibration text: Hub dataset or local file."),
    "--num-samples": ("calibration.num_samples", "COUNT", "Calibration sequences."),
    "--sequence-length": ("calibration.sequence_length", "TOKENS", "Tokens in a calibration sequence."),
    "--precision": ("onnx.precision", "PRECISION", "Weights of the ONNX graph: fp32, int8 or int4."),
}
_LISTS = {
    "--targets": ("sparsity.targets", "WILDCARD", "Linear layers to prune; may be repeated; all by default."),
    "--ignore": ("sparsity.ignore", "WILDCARD", "Linear layers to leave dense; may be repeated."),
}
_FLAGS = {
    "--trust-remote-code": ("model.trust_remote_code", "Run Python code that comes with the model."),
    "--variance-correction": ("sparsity.variance_correction", "Rescale what is kept to the token's variance."),
}


class NMSparseExportCommand(BaseOptimumCLICommand):
    """The command `nm-sparse` of `optimum-cli export`."""

    COMMAND = CommandInfo(
        name="nm-sparse", help="Calibrate, export and verify a model with N:M activation sparsity (PyTorch and ONNX)."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.usage, parser.epilog, parser.formatter_class = _USAGE, _EXAMPLES, RawTextHelpFormatter
        parser.add_argument("paths", nargs="*", metavar="RECIPE | MODEL, OUTPUT", help="What to export, and where to.")
        for option, (_, metavar, text) in _VALUES.items():
            short = ["-m"] if option == "--model" else []
            parser.add_argument(*short, option, metavar=metavar, help=text)
        for option, (_, metavar, text) in _LISTS.items():
            parser.add_argument(option, metavar=metavar, action="append", help=text)
        for option, (_, text) in _FLAGS.items():
            parser.add_argument(option, action="store_true", help=text)
        parser.add_argument(
            "--set",
            metavar="KEY.PATH=VALUE",
            action="append",
            default=[],
            dest="settings",
            help="Change any value of the recipe; may be repeated.",
        )
        parser.add_argument("--dry-run", action="store_true", help="Say what would happen; load and write nothing.")
        parser.add_argument("--skip-onnx", action="store_true", help="Write the PyTorch form only.")
        parser.add_argument("--overwrite", action="store_true", help="Replace an earlier output folder.")
        parser.add_argument("--push-to-hub", action="store_true", help="Publish after everything was verified.")
        parser.add_argument("--repo-id", metavar="USER/NAME", help="Repository to publish to.")
        parser.add_argument("--private", action="store_true", help="Make a new repository private.")
        parser.add_argument("--create-pr", action="store_true", help="Leave a pull request, change no branch.")
        parser.add_argument("-v", "--verbose", action="store_true", help="More messages, tracebacks of failures.")

    def run(self) -> None:
        """Export, or say what an export would do."""
        from nm_export.cli import run_export
        from nm_export.console import explained

        args = self.args
        with explained(args.verbose):
            recipe, output = read_arguments(args)
            run_export(
                recipe,
                dry_run=args.dry_run,
                verbose=args.verbose,
                output_dir=output,
                push_to_hub=args.push_to_hub,
                repo_id=args.repo_id,
                private=args.private,
                create_pr=args.create_pr,
                skip_onnx=args.skip_onnx,
                overwrite=args.overwrite,
            )


def read_arguments(args: Namespace) -> "tuple[Recipe, str | None]":
    """The recipe that the words of a command line make, and the output folder if one is named.

    Raises:
        UserError: words that name no model, or a recipe that is not valid.
    """
    from nm_export.recipe import load_recipe, recipe_from_settings
    from nm_export.recipe.settings import split_output_dir

    paths: list[str] = list(args.paths)
    file = paths.pop(0) if paths and paths[0].lower().endswith(_RECIPE_SUFFIXES) else None
    if file is None and args.model is None:
        if not paths:
            raise UserError("name a recipe (a .yaml file) or a model; optimum-cli export nm-sparse --help shows how")
        args.model = paths.pop(0)
    output = paths.pop(0) if paths else None
    if paths:
        raise UserError(f"{paths[0]!r} is one word too many; name a recipe or a model, and a folder to write")
    settings, own_output = split_output_dir([*_settings(args), *args.settings])
    recipe = recipe_from_settings(settings) if file is None else load_recipe(file, settings)
    return recipe, output or own_output


def _settings(args: Namespace) -> "list[Setting]":
    from nm_export.recipe import Setting

    settings = []
    for option, (key, *_) in {**_VALUES, **_LISTS, **_FLAGS}.items():
        value: Any = getattr(args, option.lstrip("-").replace("-", "_"))
        if value is None or value is False:
            continue
        words = value if isinstance(value, list) else [] if value is True else [value]
        settings.append(Setting(key, json.dumps(value), " ".join([option, *words])))
    return settings
