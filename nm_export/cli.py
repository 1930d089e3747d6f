"""The command line: words to calls of the package.

Everything heavy is imported inside the commands, so that `nm-export --help` answers at once.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nm_export.console import explained, show
from nm_export.exported import check_exported, check_model
from nm_export.interruption import EXITS_AFTER_SIGNALS
from nm_export.json_files import check_json_target, write_json
from nm_export.terminal import drop_output, write_every_character
from nm_export.words import CommandsAndModels, CommandsAndRecipes

if TYPE_CHECKING:
    from nm_export.recipe import Recipe

app = typer.Typer(
    cls=CommandsAndRecipes,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes are as wide as the window, and noise in a pipe
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="RECIPE [OPTIONS] | COMMAND ...",
    epilog="Options of an export: nm-export export --help",
)

bench = typer.Typer(
    cls=CommandsAndModels,
    no_args_is_help=True,
    rich_markup_mode=None,
    subcommand_metavar="MODEL [OPTIONS] | COMMAND ...",
    epilog="Options for a model: nm-export bench model --help",
)
app.add_typer(bench, name="bench")

Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More messages, and the traceback of a failure.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that an export wrote.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder that an export wrote, or the name of a published repository.")
]
RepoId = Annotated[str | None, typer.Option(metavar="USER/NAME", help="Repository to publish to: user/name.")]
Revision = Annotated[
    str | None, typer.Option(metavar="BRANCH", help="Branch of the repository; made when it does not exist.")
]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
CreatePR = Annotated[bool, typer.Option("--create-pr", help="Leave a pull request instead of changing the branch.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers here too.")]
MarkdownText = Annotated[bool, typer.Option("--markdown", help="Show Markdown in a terminal too, as in a file.")]
Prompts = Annotated[
    list[int] | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Length of prompt in tokens, the context of decoding; may be repeated. 64 and 256 by default.",
    ),
]
NewTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Tokens made after each prompt.")]
Repeats = Annotated[int, typer.Option(metavar="N", min=1, help="Alternating runs; the median counts.")]
Architecture = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="smollm2, mistral-7b, llama-3.1-8b, qwen2.5-7b or gemma-3-4b.", show_default=False
    ),
]


class Backend(StrEnum):
    """What runs an exported model."""

    torch = "torch"
    onnx = "onnx"
    genai = "genai"


class WeightsForm(StrEnum):
    """Which weights a folder holds."""

    full = "full"
    reference = "reference"


class MeasuredTime(StrEnum):
    """What a benchmark of operators measures."""

    wall = "wall"
    cpu = "cpu"


class ScoringBackend(StrEnum):
    """What runs a model whose logits are wanted."""

    torch = "torch"
    onnx = "onnx"


def main() -> None:
    """Entry point of `nm-export`."""
    write_every_character()
    try:
        app(prog_name="nm-export")
    except SystemExit as end:
        drop_output()
        if end.code in EXITS_AFTER_SIGNALS:  # threads that still fetch or write something are not waited for
            os._exit(int(end.code))
        raise


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            version = metadata.version("nm_export")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        typer.echo(f"nm-export {version}")
        raise typer.Exit


@app.callback()
def nm_export(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Make a language model sparse in its activations (N:M), and write, verify and publish it.

    \b
    Examples:
      nm-export recipes/smollm2_8of16.yaml
      nm-export recipes/mistral_8of16.yaml --dry-run
      nm-export recipes/mistral_8of16.yaml --push-to-hub --repo-id me/Mistral-7B-8of16
      nm-export recipes/smollm2_8of16.yaml --set sparsity.pattern=4:8 --output-dir out
      nm-export generate output/smollm2-135m-8of16 "Once upon a time" --backend onnx
    """


@app.command()
def export(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="The recipe, a YAML file (docs/recipes.md); or a model, which is exported with the defaults.",
        ),
    ],
    output_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder to write; the recipe's own by default.")
    ] = None,
    push_to_hub: Annotated[
        bool, typer.Option("--push-to-hub", help="Publish after everything was verified (log in first: hf auth login).")
    ] = False,
    repo_id: RepoId = None,
    revision: Revision = None,
    private: Private = False,
    create_pr: CreatePR = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would happen and what it would take; load no weights, write nothing. -v: every module.",
        ),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change a value of the recipe; may be repeated."),
    ] = None,
    skip_onnx: Annotated[bool, typer.Option("--skip-onnx", help="Write the PyTorch form only.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier output folder, and a repository's other contents.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Calibrate, write, export and verify the model of RECIPE.

    \b
    Examples:
      nm-export recipes/smollm2_8of16.yaml
      nm-export recipes/smollm2_8of16.yaml --set sparsity.pattern=4:8 --set calibration.num_samples=32
      nm-export recipes/mistral_8of16.yaml --push-to-hub --private
    """
    with explained(verbose):
        from nm_export.recipe.naming import name_recipe

        loaded, own_output_dir = name_recipe(recipe, settings or ())
        run_export(
            loaded,
            dry_run=dry_run,
            verbose=verbose,
            output_dir=output_dir or own_output_dir,
            push_to_hub=push_to_hub,
            repo_id=repo_id,
            revision=revision,
            private=private,
            create_pr=create_pr,
            skip_onnx=skip_onnx,
            overwrite=overwrite,
        )


@app.command()
def publish(
    folder: Folder,
    repo_id: RepoId = None,
    revision: Revision = None,
    private: Private = False,
    create_pr: CreatePR = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what nm-export did not write in the repository.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Publish a folder on the Hugging Face Hub.

    Continues where an earlier publication of it was interrupted (docs/publishing.md).

    \b
    Examples:
      nm-export publish output/smollm2-135m-8of16 --repo-id me/SmolLM2-8of16 --private
      nm-export publish output/smollm2-135m-8of16 --repo-id me/SmolLM2-8of16 --revision experiment --create-pr
    """
    with explained(verbose):
        check_exported(folder, doing="publish")
        from nm_export import pipeline

        show(
            pipeline.publish_folder(
                folder,
                repo_id=repo_id,
                revision=revision,
                private=private,
                create_pr=create_pr,
                overwrite=overwrite,
            )
        )


@app.command()
def convert(
    folder: Folder,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to write.")],
    weights: Annotated[
        WeightsForm | None,
        typer.Option(help="Which weights OUTPUT holds: all, or only the new ones; those of FOLDER by default."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The base model, a Hub id or a folder; the recipe's model by default."),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="REVISION", help="Branch, tag or commit of the base model; the exported one by default."),
    ] = None,
    skip_onnx: Annotated[bool, typer.Option("--skip-onnx", help="Leave out the ONNX export.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in OUTPUT.")] = False,
    verbose: Verbose = False,
) -> None:
    """Copy a folder with or without the base model's weights or its ONNX export.

    See docs/publishing.md, "Small repositories".

    \b
    Examples:
      nm-export convert output/Mistral-7B-8of16 small --weights reference --skip-onnx
      nm-export convert small whole --weights full
    """
    with explained(verbose):
        check_exported(folder, doing="convert")
        from nm_export.conversion import convert as write_other_form

        show(
            write_other_form(
                folder,
                output,
                weights.value if weights else None,
                base=base,
                revision=revision,
                skip_onnx=skip_onnx,
                overwrite=overwrite,
            )
        )


@app.command()
def verify(model: Model, json_file: JsonFile = None, verbose: Verbose = False) -> None:
    """Check again that every form of an exported model agrees.

    Ends with code 1 when it does not.
    """
    with explained(verbose), _measured(json_file) as report:
        check_exported(model, name_will_do=True)
        from nm_export import pipeline

        report(pipeline.verify_folder(model))


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")],
    backend: Annotated[Backend, typer.Option(help="What runs the model.")] = Backend.torch,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Longest continuation, in tokens.")] = 64,
    dense: Annotated[bool, typer.Option("--dense", help="Switch sparsity off, to compare.")] = False,
    verbose: Verbose = False,
) -> None:
    """Continue a text with an exported model.

    \b
    Example:
      nm-export generate output/smollm2-135m-8of16 "What is the capital of France?" --backend onnx
    """
    with explained(verbose):
        check_exported(model, name_will_do=True)
        from nm_export.generation import generate as continue_text

        show(continue_text(model, prompt, backend=backend.value, max_new_tokens=max_new_tokens, dense=dense))


@bench.callback()
def bench_group() -> None:
    """Time a model, or its operators, beside its dense twin.

    \b
    Examples:
      nm-export bench output/smollm2-135m-8of16 --prompt 64 --prompt 512
      nm-export bench ops --architecture mistral-7b --weights fp32 --weights int4
      nm-export bench decoder --architecture llama-3.1-8b --precision int4
    """


@bench.command("model")
def bench_model(
    model: Model,
    prompt: Prompts = None,
    new_tokens: NewTokens = 24,
    repeats: Repeats = 5,
    json_file: JsonFile = None,
    markdown: MarkdownText = False,
    verbose: Verbose = False,
) -> None:
    """Time an exported model beside its dense twin.

    In ONNX Runtime and, where it runs the graph, in onnxruntime-genai.
    """
    with explained(verbose), _measured(json_file, markdown) as report:
        check_exported(model, name_will_do=True)
        from nm_export.benchmark import benchmark_model
        from nm_export.benchmark.report import this_command

        prompts = tuple(prompt or (64, 256))
        report(benchmark_model(model, prompts=prompts, new_tokens=new_tokens, repeats=repeats, command=this_command()))


@bench.command("decoder")
def bench_decoder(
    architecture: Architecture,
    layers: Annotated[int, typer.Option(metavar="N", min=1, help="Layers.")] = 2,
    vocabulary: Annotated[
        int,
        typer.Option(
            metavar="N", min=2, help="Rows of the output layer, which stays dense: few, so that it does not count."
        ),
    ] = 512,
    pattern: Annotated[str, typer.Option(metavar="PATTERN", help="What every linear keeps: N:M or P%.")] = "8:16",
    precision: Annotated[str, typer.Option(metavar="FORMAT", help="Of the weights: fp32, int8 or int4.")] = "fp32",
    block_size: Annotated[
        int, typer.Option(metavar="N", help="Neighbouring inputs that share a scale, with int8 and int4.")
    ] = 32,
    prompt: Prompts = None,
    new_tokens: NewTokens = 24,
    repeats: Repeats = 5,
    json_file: JsonFile = None,
    markdown: MarkdownText = False,
    verbose: Verbose = False,
) -> None:
    """Time a few layers of an architecture, with random weights.

    Beside the same layers without sparsity.
    """
    with explained(verbose), _measured(json_file, markdown) as report:
        from nm_export.benchmark import benchmark_decoder
        from nm_export.benchmark.report import this_command

        report(
            benchmark_decoder(
                architecture,
                layers=layers,
                vocabulary=vocabulary,
                pattern=pattern,
                precision=precision,
                block_size=block_size,
                prompts=tuple(prompt or (64, 256)),
                new_tokens=new_tokens,
                repeats=repeats,
                command=this_command(),
            )
        )


@bench.command("ops")
def bench_operators(
    architecture: Architecture,
    tokens: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Rows of the input; may be repeated. 1, 4, 16, 128 and 512 by default."),
    ] = None,
    pattern: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="N:M or P%; may be repeated. 8:16 by default.")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT",
            help="fp32, fp16, bf16, int8 or int4, the last two with :BLOCK_SIZE if wanted; may be repeated.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of each session; all cores by default.")
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Alternating runs; the median counts.")] = 15,
    clock: Annotated[
        MeasuredTime, typer.Option(help="Elapsed time, or on a busy machine, with one thread, processor time.")
    ] = MeasuredTime.wall,
    memory: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="MB of weights to cycle through; twice the last-level cache by default."),
    ] = None,
    shared_selection: Annotated[
        bool, typer.Option("--shared-selection", help="Select once for all products, to time these alone.")
    ] = False,
    json_file: JsonFile = None,
    markdown: MarkdownText = False,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the roofline here (SVG).")] = None,
    verbose: Verbose = False,
) -> None:
    """Time the operators on the linear shapes of an architecture.

    Beside ONNX Runtime's own.
    """
    with explained(verbose), _measured(json_file, markdown) as report:
        from nm_export.benchmark import benchmark_operators, operators, roofline
        from nm_export.benchmark.report import this_command
        from nm_export.benchmark.timing import Clock

        if picture is not None:
            roofline.check_picture_target(picture)
        result = benchmark_operators(
            architecture,
            tokens=tuple(tokens or operators.DEFAULT_TOKENS),
            patterns=tuple(pattern or ("8:16",)),
            weights=tuple(weights or operators.DEFAULT_FORMATS),
            threads=threads,
            repeats=repeats,
            clock=Clock(clock.value),
            memory=None if memory is None else memory * 1_000_000,
            shared_selection=shared_selection,
            command=this_command(),
        )
        if picture is not None:
            roofline.draw_roofline(picture, result.products, result.machine)
        report(result)


@bench.command("page")
def bench_page(
    page: Annotated[Path, typer.Argument(metavar="PAGE", help="Markdown file to write; its picture goes beside it.")],
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Files that --json wrote.")],
    note: Annotated[str, typer.Option(metavar="TEXT", help="What a reader should know about the runs.")] = "",
    verbose: Verbose = False,
) -> None:
    """Write a page of results beside what was wanted."""
    with explained(verbose):
        from nm_export.benchmark.page import read_report, write_page

        write_page(page, [read_report(path) for path in results], note)
        show(f"Wrote {page}.")


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="An exported folder or repository, or any model that a recipe accepts."),
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="DENSE", help="Dense model to compare with; the exported model's own base by default."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="File, folder, builtin:python-docs or Hub dataset ID[:SUBSET], each with @SPLIT if wanted; may be "
            "repeated. builtin:python-docs when neither texts nor tasks are given.",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(metavar="TASKS", help="lm-eval tasks, separated by commas; may be repeated.")
    ] = None,
    backend: Annotated[ScoringBackend, typer.Option(help="What runs MODEL.")] = ScoringBackend.torch,
    window: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens in a window of text.")] = 512,
    windows: Annotated[
        int, typer.Option(metavar="N", min=1, help="At most so many windows a text, from its start.")
    ] = 24,
    generate: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Tokens that both models write after the first half of every window, to compare them; 0: none.",
        ),
    ] = 0,
    text_column: Annotated[
        str, typer.Option(metavar="NAME", help="Column or JSON key that holds the text of tables.")
    ] = "text",
    include_path: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Folder with further task files (YAML); may be repeated."),
    ] = None,
    task_data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the files that piqa_jsonl and arc_easy_jsonl read.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most so many examples a task.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Which examples --limit chooses.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Windows, or continuations, in one forward pass; 4 and 8 by default."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Where torch models run, for example cuda.")] = "cpu",
    json_file: JsonFile = None,
    markdown: MarkdownText = False,
    verbose: Verbose = False,
) -> None:
    """Measure a model on texts and tasks, beside the dense one.

    Perplexity, KL to the dense model, tasks of lm-eval, and what both models write (docs/evaluation.md).

    \b
    Examples:
      nm-export evaluate output/smollm2-135m-8of16 --text wiki.valid.txt --json scores.json
      nm-export evaluate output/smollm2-135m-8of16 --backend onnx --tasks piqa,arc_easy --limit 200
      nm-export evaluate sample:smollm2-135m-instruct --tasks piqa_jsonl --task-data data
    """
    with explained(verbose), _measured(json_file, markdown) as report:
        check_model(model)
        from nm_export.evaluation import evaluate as measure

        report(
            measure(
                model,
                against=against,
                texts=tuple(text or ()),
                tasks=tuple(name.strip() for names in tasks or () for name in names.split(",") if name.strip()),
                backend=backend.value,
                window=window,
                windows=windows,
                generate=generate,
                text_column=text_column,
                include_path=tuple(include_path or ()),
                task_data=task_data,
                limit=limit,
                seed=seed,
                batch_size=batch_size,
                device=device,
            )
        )


@app.command()
def card(
    folder: Folder,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A file of nm-export evaluate FOLDER --json; may be repeated."),
    ] = None,
    bench: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A file of nm-export bench FOLDER --json; may be repeated."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write sections anew that were changed or removed by hand.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Write the model card again, with further measurements.

    That is README.md, its pictures and report.html of FOLDER.

    What is given takes the place of what the folder has of that sort; nothing is computed again. What you have written
    into README.md outside of nm-export's sections stays, and so do metadata that you have changed.

    \b
    Example:
      nm-export card output/smollm2-135m-8of16 --evaluation scores.json --bench bench.json
    """
    with explained(verbose):
        check_exported(folder, doing="card")
        from nm_export.card import refresh_card

        path = refresh_card(folder, evaluations=evaluation or (), speeds=bench or (), overwrite=overwrite)
        show(f"Wrote {path}.")


@app.command()
def enable_genai(
    folder: Folder,
    off: Annotated[bool, typer.Option("--off", help="Remove it again; do so before you publish the folder.")] = False,
    verbose: Verbose = False,
) -> None:
    """Let onnxruntime-genai run a folder with the compiled kernel.

    Puts this platform's kernel beside the ONNX model and names it in genai_config.json.
    """
    with explained(verbose):
        if not folder.is_dir():
            check_exported(folder, doing="enable-genai")
        from nm_export.onnx import disable_library, enable_library

        if off:
            disable_library(folder)
            show(f"{folder} opens everywhere again, without the compiled kernel.")
        else:
            show(f"Wrote {enable_library(folder)}; onnxruntime-genai now runs {folder} with it.")


def run_export(recipe: "Recipe", *, dry_run: bool, verbose: bool, **options: Any) -> None:
    """Export a recipe and show what was done, or show what would be; `options` are those of `pipeline.run`."""
    check_model(recipe.model.source)  # before anything heavy is imported
    if dry_run:
        from nm_export.dry_run import dry_run as describe

        show(describe(recipe, **options, every_module=verbose))
    else:
        from nm_export import pipeline

        show(pipeline.run(recipe, **options, verbose=verbose))


@contextmanager
def _measured(json_file: Path | None, markdown: bool = False) -> Iterator[Callable[[Any], None]]:
    """Yield what writes a result to `json_file` and shows it; a file that cannot be written is refused at once."""
    if json_file is not None:
        check_json_target(json_file)

    def report(result: Any) -> None:
        if json_file is not None:
            write_json(json_file, result.to_dict())
        show(result.to_markdown() if markdown else result)

    yield report


if __name__ == "__main__":
    main()
