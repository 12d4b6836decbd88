"""The commands: parse, one call, print. Whatever is heavy is imported inside a command, so that --help is quick."""

import contextlib
import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperGroup

import seqpyramid
from seqpyramid.errors import RecipeError, ResourceError, StoppedError, UserError


class Commands(TyperGroup):
    """All commands; what click refuses before one begins is said as JSON too where --json was given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember whether JSON is wanted."""
        ctx.meta["as_json"] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error of click's, which knows how to word itself, goes on to be shown."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if ctx.meta["as_json"] and hasattr(error, "format_message"):
                print(json.dumps({"error": error.format_message(), "exit_code": 2}))
            raise


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 ok, 1 bug, 2 usage or recipe, 3 data, 4 diverged, 5 checkpoint or cache, "
    "6 resource, 128+n stopped by signal n (resumable).",
)


class KernelMode(StrEnum):
    """Which of two twins models run."""

    plain = "plain"
    fused = "fused"
    auto = "auto"


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a bundled one.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.lr=2e-3.")
]
ModelRow = Annotated[str | None, typer.Option("--model", "-m", help="Row of the recipe, or 'all'.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="SEQPYRAMID_DATA",
        help="Where downloads and caches live.",
        show_default="~/.cache/seqpyramid",
    ),
]
Source = Annotated[
    Path | None, typer.Option("--source", help="Folder with your own copy of the data; works offline.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never download; say what is missing instead.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 or auto.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; default: as suits the model.")
]
Kernels = Annotated[
    KernelMode,
    typer.Option("--kernels", help="Compiled recurrences (auto: where they are) or their plain twins."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]

C = TypeVar("C", bound=Callable[..., None])


class Kind(StrEnum):
    """What ``list`` can list."""

    models = "models"
    tasks = "tasks"
    recipes = "recipes"


class EvalSplit(StrEnum):
    """Splits that ``eval`` reads."""

    train = "train"
    validation = "validation"
    test = "test"


class Format(StrEnum):
    """How ``compare`` prints."""

    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"
    html = "html"


def explained(command: C) -> C:
    """Turn a :class:`UserError` into its sentence and its exit code; with --json, into a JSON object too."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            with interruptible():
                command(*args, **options)
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (reader has gone: `| head`)
            raise typer.Exit(0) from None
        except KeyboardInterrupt as stop:
            leave(stopped(stop), as_json=bool(options.get("as_json")))
        except (UserError, MemoryError, OSError, RuntimeError) as error:
            leave(as_user_error(error), as_json=bool(options.get("as_json")))

    return run  # type: ignore[return-value]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let the other stop signals end a command as Ctrl-C does: worker processes end, locks and files are let go."""
    if threading.current_thread() is not threading.main_thread():  # others cannot take signals
        yield
        return

    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(stop: KeyboardInterrupt) -> StoppedError:
    """Say which signal ended a command."""
    number = stop.args[0] if stop.args else signal.SIGINT
    return StoppedError(
        number,
        f"stopped by {signal.Signals(number).name}; nothing is half-written, and what was read of the data is kept; "
        "run the same command again to continue",
    )


def as_user_error(error: BaseException) -> UserError:
    """Say what the machine refused as a :class:`ResourceError`; let a bug stay a bug."""
    if isinstance(error, UserError):
        return error
    if (
        isinstance(error, MemoryError)
        or "out of memory" in str(error)
        or "can't allocate memory" in str(error)
    ):
        return ResourceError("not enough memory; lower train.batch_size or raise train.accumulate")
    if isinstance(error, OSError) and error.strerror:
        return ResourceError(f"{error.filename or 'the system'}: {error.strerror}")
    raise error


def leave(error: UserError, *, as_json: bool) -> NoReturn:
    """Print the sentence and end the process with the error's code."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": str(error), "exit_code": error.code}))
    raise typer.Exit(error.code)


def print_json(content: object) -> None:
    """The one object of --json."""
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def say_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        print(f"seqpyramid {seqpyramid.__version__}")
        raise typer.Exit


@app.callback()
def seqpyramid_options(
    version: Annotated[
        bool, typer.Option("--version", callback=say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, evaluate, profile and compare sequence classifiers that see many time scales."""


@app.command()
@explained
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    model: ModelRow = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed, instead of the recipe's.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Several seeds, such as 0,1,2 or 0-4.")] = None,
    data_dir: DataDir = None,
    source: Source = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The run's folder; with several rows or seeds, the folder above them.",
            show_default="runs/<recipe>/<row>/seed-<n>",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--force", help="Continue where the run stopped, or start it anew.")
    ] = True,
    device: Device = "auto",
    threads: Threads = None,
    kernels: Kernels = KernelMode.auto,
    offline: Offline = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard event files too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train rows of a recipe; the same command again continues, or returns at once if it is finished."""
    from seqpyramid import console
    from seqpyramid.recipe import load
    from seqpyramid.rundir import RunDir
    from seqpyramid.train.launch import pick_device, tune_process
    from seqpyramid.train.observe import Observer, Observers, TensorBoard
    from seqpyramid.train.run import Means, train_run

    if seed is not None and seeds is not None:
        raise RecipeError("--seed and --seeds exclude each other; give one of them")
    loaded = load(recipe, overrides=overrides or [], wanted=model)
    wanted = parse_seeds(seeds) if seeds is not None else [seed]
    plans = [loaded.plan(row, number) for row in loaded.rows(model) for number in wanted]
    several = seeds is not None or model == "all"
    tune_process(kernels.value)
    chosen, place = pick_device(device), data_place(data_dir, source, offline)
    results = []
    for plan in plans:
        above = Path("runs") / plan.recipe if out is None else out
        run = RunDir(above / plan.row / f"seed-{plan.seed}" if several or out is None else above)
        progress = console.TrainingProgress(
            f"{plan.recipe} {plan.row} seed {plan.seed}", plan.task.build().selection.metric
        )
        observer: Observer = progress
        if tensorboard:
            observer = Observers(progress, TensorBoard(run.tensorboard))
        build = console.BuildProgress()
        try:
            results.append(
                train_run(
                    plan, run, Means(place, chosen, observer, typed(), threads, build), force=not resume
                )
            )
        finally:
            progress.close()
            build.close()
    if as_json:
        print_json(results[0] if len(results) == 1 else {"runs": results})
    else:
        console.print_results(results)


@app.command(name="eval")
@explained
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    split: Annotated[EvalSplit, typer.Option("--split", help="Which split to report on.")] = EvalSplit.test,
    again: Annotated[
        bool, typer.Option("--again", help="Read the split anew even if its predictions are there (counted).")
    ] = False,
    data_dir: DataDir = None,
    source: Source = None,
    device: Device = "auto",
    threads: Threads = None,
    kernels: Kernels = KernelMode.auto,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Report on a run's best checkpoint: predictions, per-class report, confusion matrix (PNG).

    The test split was read once, when training ended, and its predictions are used again; --again reads it anew.
    """
    from seqpyramid import console
    from seqpyramid.recipe import plan_from_yaml
    from seqpyramid.rundir import RunDir
    from seqpyramid.train.launch import pick_device, tune_process
    from seqpyramid.train.observe import Observer
    from seqpyramid.train.predictions import read_predictions, write_confusion, write_report
    from seqpyramid.train.run import Means, evaluate_run

    tune_process(kernels.value)
    folder = RunDir(run)
    means = Means(data_place(data_dir, source, offline), pick_device(device), Observer(), typed(), threads)
    found = evaluate_run(folder, means, split.value, again=again)
    plan = plan_from_yaml(folder.recipe)
    names = found["classes"]
    report = ""
    if names is not None:
        predictions = read_predictions(folder.predictions(split))
        report = write_report(folder.report(split), predictions, names)
        title = f"{plan.recipe} {plan.row} seed {plan.seed}, {split.value}"
        write_confusion(folder.confusion(split), predictions, names, title)
        found |= {"report": str(folder.report(split)), "confusion": str(folder.confusion(split))}
    if as_json:
        print_json(found)
        return
    console.out.print(report, highlight=False) if report else None
    numbers = {k: v for k, v in found[split.value].items() if isinstance(v, float)}
    rows = [(name, console.score(numbers, name)) for name in numbers]
    rows += [(name, found[name]) for name in ("predictions", "report", "confusion") if found.get(name)]
    rows.append(("test split read", f"{found['test_accesses']} time(s)"))
    console.print_rows(f"{plan.recipe} {plan.row} seed {plan.seed}: {split.value}", ("what", "value"), rows)


@app.command()
@explained
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="New sequences, as the run's were.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this CSV file instead.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    kernels: Kernels = KernelMode.auto,
    as_json: AsJson = False,
) -> None:
    """Name the class of new files, with a probability for every class, as CSV; the training data is not needed.

    A file that cannot be read is named on stderr; the others are answered, and the exit code is 3.
    """
    from seqpyramid.console import note
    from seqpyramid.rundir import RunDir, write_atomically
    from seqpyramid.train.launch import pick_device, tune_process
    from seqpyramid.train.predict import open_run, to_csv
    from seqpyramid.train.predict import predict as predict_files

    tune_process(kernels.value)
    chosen = pick_device(device)
    found = predict_files(open_run(RunDir(run), chosen, threads), files, device=chosen)
    if output is not None:
        write_atomically(output, to_csv(found).encode())
        note(f"written to {output}")
    if as_json:
        names = found.class_names or ()
        rows = [
            {
                "name": row.name,
                "predicted": row.predicted,
                "probabilities": dict(zip(names, row.probabilities, strict=True)),
            }
            for row in found.rows
        ]
        print_json({"run": str(run), "predictions": rows, "problems": [str(p) for p in found.problems]})
    elif output is None:
        print(to_csv(found), end="")
    for problem in found.problems:
        print(f"error: {problem}", file=sys.stderr)
    if found.problems:
        raise typer.Exit(found.problems[0].code)


@app.command()
@explained
def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many sequences.")] = 1,
    steps: Annotated[int, typer.Option("--steps", min=1, help="The longest that one may get.")] = 500,
    temperature: Annotated[
        float,
        typer.Option("--temperature", min=0.0, help="1: as learnt; below: safer; 0: always the likeliest."),
    ] = 1.0,
    prime: Annotated[str, typer.Option("--prime", help="Text that the model reads before it goes on.")] = "",
    stop: Annotated[str | None, typer.Option("--stop", help="End a sequence at this symbol.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the chance in it.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write here instead; a .png is a picture of strokes."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    kernels: Kernels = KernelMode.auto,
    as_json: AsJson = False,
) -> None:
    """Let a trained model go on by itself: text of a character language model, strokes of handwriting."""
    import torch

    from seqpyramid.console import note
    from seqpyramid.rundir import RunDir, write_atomically
    from seqpyramid.tasks.base import Generative, Request
    from seqpyramid.train.launch import pick_device, tune_process
    from seqpyramid.train.predict import open_run
    from seqpyramid.train.predict import sample as sample_run

    tune_process(kernels.value)
    folder, chosen = RunDir(run), pick_device(device)
    trained = open_run(folder, chosen, threads, continuing=True)
    request = Request(
        count=count,
        steps=steps,
        temperature=temperature,
        prime=prime,
        stop=stop,
        generator=torch.Generator(chosen).manual_seed(seed),
    )
    drawn = sample_run(folder, trained, request)
    if output is not None and output.suffix == ".png":
        picture = trained.task.picture(drawn) if isinstance(trained.task, Generative) else None
        if picture is None:
            raise RecipeError(
                f"--output {output}: this run draws text, which has no picture; give a .txt file"
            )
        write_atomically(output, picture)
        note(f"written to {output}")
    elif output is not None:
        write_atomically(output, "".join(f"{one.text}\n" for one in drawn).encode())
        note(f"written to {output}")
    if as_json:
        print_json({"run": str(run), "seed": seed, "samples": [one._asdict() for one in drawn]})
    elif output is None:
        for one in drawn:
            print(one.text)


@app.command()
@explained
def init(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A file or folder of your sequences.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The recipe to write.", show_default="<DATA's name>.yaml"),
    ] = None,
    label_pattern: Annotated[
        str | None,
        typer.Option(
            "--label-pattern",
            help="Regular expression with (?P<label>...), for classes in file names.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a recipe that is there.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Look at your data and write a starting recipe for it, with L and g of TP-RNN chosen by the paper's rule.

    Read are audio (one folder a class, a manifest CSV, or classes in file names), .ts and .tsv of UCR and UEA, .npz,
    HDF5, one CSV a sequence, and text.
    """
    from seqpyramid import console, starter
    from seqpyramid.recipe import load
    from seqpyramid.rundir import write_atomically

    seen = starter.look(data, label_pattern)
    name = re.sub(r"[^a-z0-9]+", "_", seen.what.lower()).strip("_") or "my_data"
    path = Path(f"{name}.yaml") if output is None else output
    if path.exists() and not force:
        raise RecipeError(f"{path}: is there already; choose another --output, or replace it with --force")
    progress = console.BuildProgress()
    try:
        facts = starter.survey(seen.task, data_place(data_dir, None, offline=True), progress)
    finally:
        progress.close()
    write_atomically(path, starter.recipe_text(seen, facts, path.stem).encode())
    recipe = load(str(path) if path.suffix in (".yaml", ".yml") else f"./{path}")
    described = {
        "recipe": str(path),
        "task": recipe.task.name,
        "sequences": facts.splits,
        "longest": facts.longest,
        "features": facts.features,
        "outputs": facts.outputs,
        "rows": list(recipe.models),
    }
    if as_json:
        print_json(described)
        return
    rows = [
        (key, json.dumps(value) if isinstance(value, dict | list) else value)
        for key, value in described.items()
    ]
    console.print_rows(f"{data}: a starting recipe", ("what", "value"), rows)
    console.out.print(
        f"next: seqpyramid train {shlex.quote(str(path))}\n"
        f"      seqpyramid train {shlex.quote(str(path))} --model all && "
        f"seqpyramid compare {shlex.quote(f'runs/{path.stem}')}",
        highlight=False,
        soft_wrap=True,
    )


@app.command(name="prepare-data")
@explained
def prepare_data(
    recipe: RecipeName,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    source: Source = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build the cache anew even if a good one is there.")
    ] = False,
    offline: Offline = False,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Draw some examples into this PNG file, where the task can."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find or download a recipe's data and build its cache."""
    from seqpyramid import console
    from seqpyramid.recipe import load
    from seqpyramid.rundir import write_atomically

    loaded = load(recipe, overrides=overrides or [], wanted=None)
    task = loaded.task.build()
    progress = console.BuildProgress()
    try:
        found = task.prepare(data_place(data_dir, source, offline), force=force, progress=progress)
    finally:
        progress.close()
    if picture is not None:
        drawn = task.examples_picture()
        if drawn is None:
            raise RecipeError(f"--picture {picture}: task {loaded.task.name!r} has no picture; leave it out")
        write_atomically(picture, drawn)
        console.note(f"written to {picture}")
    described = {
        "task": loaded.task.name,
        "cache": str(found.path) if found.path else None,
        "built": found.built,
        "fingerprint": found.fingerprint,
        "splits": found.splits,
        "split_hash": found.split_hash,
        "details": found.details,
    }
    if as_json:
        print_json(described)
        return
    rows = [
        (key, json.dumps(value) if isinstance(value, dict) else value) for key, value in described.items()
    ]
    console.print_rows(f"{loaded.name}: data", ("what", "value"), rows)


@app.command()
@explained
def profile(
    recipe: RecipeName,
    overrides: Overrides = None,
    model: ModelRow = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="B; default: the recipe's.")
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", min=1, help="T; default: the task's longest.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed steps.")] = 5,
    gradients: Annotated[
        Path | None, typer.Option("--gradients", help="Draw how far back gradients reach into this PNG file.")
    ] = None,
    data_dir: DataDir = None,
    source: Source = None,
    offline: Offline = False,
    device: Device = "auto",
    threads: Threads = None,
    kernels: Kernels = KernelMode.auto,
    as_json: AsJson = False,
) -> None:
    """Measure a model on synthetic data: parameters, FLOPs, speed, memory, gradient flow."""
    from seqpyramid import console
    from seqpyramid.analysis.profile import profile_row
    from seqpyramid.recipe import load
    from seqpyramid.train.launch import pick_device, tune_process

    loaded = load(recipe, overrides=overrides or [], wanted=model)
    tune_process(kernels.value)
    chosen = pick_device(device)
    rows = loaded.rows(model)
    task = loaded.task.build()
    if not loaded.task.spec_known:  # sizes of the user's own data are known when it is read
        task.prepare(data_place(data_dir, source, offline))
    found = []
    curves = {}
    for row in rows:
        console.note(f"profiling {row} ...")
        one, curve = profile_row(
            loaded.plan(row),
            task.spec,
            batch_size=batch_size,
            length=length,
            repeats=repeats,
            device=chosen,
            threads=threads,
            with_gradients=gradients is not None,
        )
        found.append(one)
        if curve is not None:
            curves[row] = curve
    if gradients is not None:
        from seqpyramid.analysis.gradients import plot_gradient_flow

        plot_gradient_flow(curves, gradients)
    if as_json:
        print_json(found[0] if len(found) == 1 else {"rows": found})
    else:
        console.print_profiles(loaded.name, found)


@app.command()
@explained
def compare(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUNS]...", help="Run folders, or folders above them.", show_default="runs"),
    ] = None,
    style: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.terminal,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead.")] = None,
    literature: Annotated[
        bool, typer.Option("--literature", help="Add the paper's rows that were not run here.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put results into tables: ours (mean ± sd over seeds) beside the paper's printed number."""
    from seqpyramid.compare.collect import collect
    from seqpyramid.compare.data import to_json
    from seqpyramid.compare.render import to_csv, to_latex, to_markdown, to_terminal
    from seqpyramid.compare.report import to_html
    from seqpyramid.compare.tables import build_tables
    from seqpyramid.console import note, out
    from seqpyramid.rundir import write_atomically

    results = collect(paths or [Path("runs")])
    for problem in results.problems:
        note(f"warning: {problem}")
    for folder in results.unfinished:
        note(f"not finished, left out: {folder}")
    tables = build_tables(results, literature=literature)
    for warning in tables.warnings:
        note(f"warning: {warning}")
    if as_json:
        style = Format.json
    if style is Format.terminal and output is None:
        to_terminal(tables, out)
        return
    render = {
        Format.terminal: to_markdown,
        Format.markdown: to_markdown,
        Format.latex: to_latex,
        Format.csv: to_csv,
        Format.json: to_json,
        Format.html: to_html,
    }[style]
    text = render(tables)
    if output is None:
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        write_atomically(output, text.encode())
        note(f"written to {output}")


@app.command(name="list")
@explained
def list_entries(
    kind: Annotated[Kind | None, typer.Argument(help="Only these.")] = None, as_json: AsJson = False
) -> None:
    """List models, tasks and recipes, one line each."""
    from seqpyramid import console, yaml12
    from seqpyramid.models import MODELS
    from seqpyramid.recipe import recipe_files
    from seqpyramid.tasks import TASKS

    found: dict[str, dict[str, str]] = {}
    if kind in (None, Kind.models):
        found["models"] = {name: entry.summary_line for name, entry in MODELS.items()}
    if kind in (None, Kind.tasks):
        found["tasks"] = {name: entry.summary_line for name, entry in TASKS.items()}
    if kind in (None, Kind.recipes):
        found["recipes"] = {
            name: str(yaml12.load(path.read_text(encoding="utf-8"), path.name).data.get("title", ""))
            for name, path in sorted(recipe_files().items())
        }
    if as_json:
        print_json(found)
        return
    for title, entries in found.items():
        console.print_rows(title, ("name", "what"), list(entries.items()))


@app.command()
@explained
def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="What to check.")],
    as_json: AsJson = False,
) -> None:
    """Check recipes without running them; every fault is reported at once."""
    from seqpyramid import console
    from seqpyramid.recipe import load

    overrides = [word for word in recipes if "=" in word and not Path(word).exists()]
    names = [word for word in recipes if word not in overrides]
    if not names:
        raise RecipeError("no recipe among the arguments; give a file or the name of a bundled recipe first")
    problems: list[str] = []
    checked: dict[str, list[str]] = {}
    for name in names:
        try:
            checked[name] = list(load(name, overrides=overrides).models)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    if as_json:
        print_json({"valid": True, "recipes": checked})
        return
    for name, rows in checked.items():
        console.out.print(f"{name}: ok ({', '.join(rows)})", highlight=False, soft_wrap=True)


@app.command()
@explained
def show(
    recipe: RecipeName,
    overrides: Overrides = None,
    model: ModelRow = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipe files instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the merged recipe with the source of every value."""
    from seqpyramid import console
    from seqpyramid.recipe import described, json_schema, load

    if schema:
        print_json(json_schema())
        return
    loaded = load(recipe, overrides=overrides or [], wanted=model or "all")
    rows = described(loaded)
    if model is not None:
        left_out = [f"models.{row}." for row in loaded.models if row not in loaded.rows(model)]
        rows = [entry for entry in rows if not entry[0].startswith(tuple(left_out))]
    if as_json:
        fields = {path: {"value": value, "source": where} for path, value, where in rows}
        print_json({"recipe": loaded.name, "title": loaded.title, "fields": fields})
        return
    console.print_rows(
        f"{loaded.name}: {loaded.title}",
        ("field", "value", "source"),
        [(a, json.dumps(b), c) for a, b, c in rows],
    )


def data_place(data_dir: Path | None, source: Path | None, offline: bool) -> Any:
    """Where data lives, by the options or by habit of the system."""
    from seqpyramid.errors import DataError
    from seqpyramid.tasks.base import DataPlace

    if source is not None and not source.is_dir():
        raise DataError(
            f"--source {source}: no such folder; give the folder that holds your copy of the data"
        )
    if data_dir is None:
        data_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqpyramid"
    return DataPlace(root=data_dir.expanduser(), source=source, offline=offline)


def parse_seeds(text: str) -> list[int | None]:
    """Read ``0,1,2`` or ``0-4``.

    >>> parse_seeds("3,5-7")
    [3, 5, 6, 7]
    """
    seeds: list[int | None] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise RecipeError(f"--seeds {text}: not a list of seeds; write 0,1,2 or 0-4")
        first, last = int(match[1]), int(match[2] or match[1])
        seeds += range(first, last + 1)
    if len(set(seeds)) != len(seeds) or not seeds:
        raise RecipeError(f"--seeds {text}: every seed once, please; write 0,1,2 or 0-4")
    return seeds


def typed() -> str:
    """The command line, as it could be typed again."""
    return shlex.join(["seqpyramid", *sys.argv[1:]])


def main() -> None:
    """Entry point of the ``seqpyramid`` command."""
    app()


if __name__ == "__main__":
    main()
