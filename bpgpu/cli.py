"""The command line: train, predict, info, warmup, gradcheck, accuracy, hardware-report."""

import functools
import io
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

import bpgpu
from bpgpu import checks, tables
from bpgpu.activations import ACTIVATIONS
from bpgpu.backends import why_auto
from bpgpu.costs import COSTS
from bpgpu.errors import lookup, unknown_name
from bpgpu.gradcheck import CASES, check_table
from bpgpu.optimizers import OPTIMIZERS

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train dense neural networks by backpropagation, on the CPU or a GPU.",
)

# (hidden layers, dropout) where the options are not given.
DEFAULT_NETWORK = ("128,64", 0.0)
DIGITS_NETWORK = ("512", 0.5)
# Mean over deviation of a column above which the raw rows and the folded weights lose three digits or more.
MAX_REMOTENESS = {"float32": 1e4, "float64": 1e12}
FAILURES = (ValueError, TypeError, ArithmeticError, RuntimeError, OSError, ImportError)

JsonOption = Annotated[
    bool, typer.Option("--json", help="End standard output with one JSON object; text goes to stderr.")
]
BackendOption = Annotated[str, typer.Option(help="auto, cupy, numba-cuda, numba or numpy.")]


def run(arguments: list[str]) -> int:
    """Run the command line; return the command's exit code, or 2 after an error of one line; Ctrl-C passes through."""
    try:
        with np.errstate(all="ignore"):  # what is not finite shows in results, which are checked
            code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would fail again
        return 1
    except Exception as error:
        if hasattr(error, "format_message"):  # the argument parser's own errors
            message = f"{error.format_message().rstrip('.')}; see bpgpu --help"
        elif isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {error.strerror}"
        elif isinstance(error, MemoryError):
            message = f"not enough memory: {error}; use a smaller network, batch or table"
        elif isinstance(error, FAILURES):
            message = str(error)
        else:
            raise
        print(f"bpgpu: {' '.join(message.split())}", file=sys.stderr)
        return 2


def _invoke(arguments: list[str]) -> int:
    """Parse the arguments and run their command. Calling `app` would do that too, but keep Ctrl-C to itself."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("bpgpu", list(arguments)) as context:
            return command.invoke(context) or 0
    except typer.Exit as end:  # --help
        return end.exit_code


@app.command()
def train(
    data: Annotated[str, typer.Argument(help="'digits', or a .csv, .parquet, .npz or .npy file.")],
    target: Annotated[str | None, typer.Option(help="Column to predict; the last one if not given.")] = None,
    task: Annotated[str, typer.Option(help="auto, classification or regression.")] = "auto",
    hidden: Annotated[
        str | None, typer.Option(help="Sizes of the hidden layers [128,64; for digits 512]; '' for none.")
    ] = None,
    activation: Annotated[str, typer.Option(help="Of the hidden layers: " + ", ".join(ACTIVATIONS))] = "relu",
    optimizer: Annotated[str, typer.Option(help=", ".join(OPTIMIZERS))] = "adam",
    learning_rate: Annotated[float | None, typer.Option(help="The optimizer's own if not given.")] = None,
    epochs: Annotated[int, typer.Option()] = 50,
    batch_size: Annotated[int, typer.Option()] = 32,
    l2: Annotated[float, typer.Option(help="lambda of the penalty (lambda / 2m) sum W^2.")] = 0.0,
    dropout: Annotated[
        float | None, typer.Option(help="Of the hidden layers [0; for digits 0.5 unless --hidden is given].")
    ] = None,
    validation: Annotated[str, typer.Option(help="Part held out, in (0, 1), or a file with held-out rows.")] = "0.2",
    backend: BackendOption = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of the split, the weights, the shuffling and the dropout.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File for the model, .safetensors.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File for a picture of the losses, .png.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Train a network on a table and measure it on held-out rows.

    Columns are standardised, which is folded into the saved model: it takes raw rows. Two classes get one sigmoid
    output, more classes a softmax, numbers an identity output. Ctrl-C ends training early and goes on from there.
    """
    say = _printer(stderr=as_json)
    _check_new_file("--out", out)
    _check_new_file("--plot", plot)
    if plot is not None:
        _check_plot(plot)
    if task not in ("auto", "classification", "regression"):
        raise unknown_name("--task", task, ["auto", "classification", "regression"])
    checks.integer("--epochs", epochs, 1)
    checks.integer("--batch-size", batch_size, 1)
    checks.integer("--seed", seed, 0)
    number = checks.floating_dtype(dtype)
    table = tables.read_table(data)
    goal = tables.Target.find(table, target, task, data)
    columns = [column for column in table.columns if column != goal.name]
    X, y = tables.features(table, columns, data, number), goal.encode(table, data, number)
    X_train, y_train, X_test, y_test, held_out = tables.hold_out(X, y, columns, goal, validation, seed, number)

    preset_hidden, preset_dropout = DIGITS_NETWORK if data == "digits" and hidden is None else DEFAULT_NETWORK
    sizes = [len(columns), *_hidden_sizes(preset_hidden if hidden is None else hidden), goal.outputs]
    output, cost = ("identity", "mean_squared_error")
    if goal.classes:
        output, cost = ("softmax", "cross_entropy") if goal.outputs > 1 else ("sigmoid", "binary_cross_entropy")
    net = bpgpu.MLP(
        sizes,
        [*[activation] * (len(sizes) - 2), output],
        cost,
        l2=l2,
        dropout=preset_dropout if dropout is None else dropout,
        dtype=number,
        seed=seed,
        backend=backend,
    )
    rule = _rule(optimizer, learning_rate)
    batch_size = min(batch_size, len(X_train))
    inputs = tables.Standardisation.learn(X_train)
    outputs = None if goal.classes else tables.Standardisation.learn(y_train[:, None])

    def scaled(X: Any, y: Any) -> tuple[Any, Any]:
        return inputs.apply(X), y if outputs is None else outputs.apply(y[:, None])

    plan = bpgpu.Plan(net.architecture, batch_size, net.backend, rule)
    reason = why_auto() if backend == "auto" else "as asked"
    say(f"data     {len(X_train)} rows to train on, {len(X_test)} held out, {len(columns)} columns")
    say(f"target   {goal.name}: {goal.task}" + (f", {len(goal.classes)} classes" if goal.classes else ""))
    say(f"network  {'-'.join(map(str, sizes))}, {activation}, {output}, {cost}, dropout {net.architecture.dropout:g}")
    say(f"backend  {net.backend.name} on {net.backend.device}, {number.name}: {reason}")
    say(
        f"memory   {_mib(net.parameters.nbytes)} parameters, {_mib(plan.nbytes)} gradients, state and workspace, "
        f"{_mib((len(X_train) + len(X_test)) * len(columns) * number.itemsize)} data"
    )
    if inputs.remoteness > MAX_REMOTENESS[number.name]:
        say(
            f"note     a column's mean is {inputs.remoteness:.0f} times its deviation, too far for {number.name}; "
            f"subtract a constant from such columns{_or_float64(number)}"
        )
    history = net.fit(
        *scaled(X_train, y_train),
        optimizer=rule,
        epochs=epochs,
        batch_size=batch_size,
        validation_data=scaled(X_test, y_test),
        progress=True,
    )
    inputs.fold_into_input(net)
    if outputs is not None:
        outputs.fold_into_output(net)
    if not np.isfinite(net.backend.to_numpy(net.parameters)).all():
        raise ArithmeticError(
            f"the weights for raw rows are too large for {number.name}: the deviation of a column is too small, "
            f"or that of the target too large; multiply it by a constant{_or_float64(number)}"
        )
    score = goal.score(net.predict(X_test), y_test)  # of the folded network on raw rows: what `predict` will give
    net.metadata = {"columns": columns, "target": goal.name, "task": goal.task, "classes": goal.classes, **held_out}
    seconds = sum(history.seconds)
    done = len(history.loss)
    speed = done * len(X_train) / seconds if seconds else 0.0
    if out is not None:
        net.save(out)
    if plot is not None:
        _plot(history, plot, plot.suffix[1:])
    interrupted = history.stop_reason == "interrupted"
    say(
        f"trained  {done} epochs in {seconds:.1f} s, {speed:,.0f} samples/s" + (" (interrupted)" if interrupted else "")
    )
    say(Text.assemble((_measured(goal, score), "bold"), f" on the {len(X_test)} held-out rows"))
    say(f"model    {out}" if out else "model    not kept: add --out model.safetensors")
    if as_json:
        result = {
            "backend": net.backend.name,
            "device": net.backend.device,
            "dtype": number.name,
            "parameters": net.architecture.n_parameters,
            "epochs": done,
            "train_loss": history.loss[-1] if done else None,
            "validation_loss": history.validation_loss[-1] if history.validation_loss else None,
            "metric": goal.metric,
            "test_metric": score,
            "seconds": seconds,
            "samples_per_second": speed,
            "model": str(out) if out else None,
        }
        print(to_json(result))
    return 130 if interrupted else 0


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A file that 'bpgpu train --out' wrote.")],
    data: Annotated[str, typer.Argument(help="Raw rows, with the columns of training; 'digits' or a file.")],
    out: Annotated[
        Path | None, typer.Option(help="CSV file for the predictions; standard output if not given.")
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Add one column for each class.")] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only the rows that training held out of this very table.")
    ] = False,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Predict rows with a saved model; if they have the target column, measure the predictions too."""
    import pandas as pd

    _check_file("--out", out)
    net = bpgpu.MLP.load(model, backend=backend)
    about = net.metadata
    if not about.keys() >= {"columns", "target", "task", "classes"}:
        raise ValueError(f"{model} was not written by 'bpgpu train': it does not name its columns; use it from Python")
    goal = tables.Target(about["target"], about["task"], about["classes"])
    table = tables.read_table(data, goal.text_column)
    if probabilities and not goal.classes:
        raise ValueError(f"--probabilities needs a classifier, but {model} is a regression")
    if held_out:
        if not about.keys() >= {"rows", "fraction", "split_seed"}:
            raise ValueError(f"--held-out needs a model that held out rows of its table, but {model} used another file")
        if about["rows"] != len(table):
            raise ValueError(
                f"--held-out needs the table of training, of {about['rows']} rows; {data} has {len(table)}"
            )
        table = table.iloc[tables.split(len(table), about["fraction"], about["split_seed"])[1]]
    outputs = net.predict(tables.features(table, about["columns"], data, net.architecture.dtype))
    predictions = pd.DataFrame({goal.name: goal.decode(outputs)}, index=table.index)
    if probabilities:
        both = outputs if goal.outputs > 1 else np.hstack([1 - outputs, outputs])
        predictions[[f"p({label})" for label in goal.classes]] = both
    if out is not None or not as_json:
        tables.write_csv(predictions, out)
    score = None
    if goal.name in table:
        try:
            score = goal.score(outputs, goal.encode(table, data))
            print(f"{_measured(goal, score)} on {len(table)} rows", file=sys.stderr)
        except ValueError as error:  # labels are missing, or not those of training
            print(f"note: no {goal.metric}: {error}", file=sys.stderr)
    if as_json:
        result = {"rows": len(table), "metric": goal.metric, "test_metric": score, "out": str(out) if out else None}
        print(to_json(result))


@app.command()
def info(as_json: JsonOption = False) -> None:
    """Show versions, the processor's BLAS, and every backend with what stands in its way."""
    from importlib.metadata import version

    from threadpoolctl import threadpool_info

    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    blas = ", ".join(f"{pool['internal_api']} {pool['version']}, {pool['num_threads']} threads" for pool in pools)
    versions = {name: version(name) for name in ("numpy", "scipy", "numba")}
    facts: dict[str, Any] = {"bpgpu": bpgpu.__version__, "python": platform.python_version(), **versions}
    facts |= {"system": platform.platform(), "processors": os.cpu_count(), "blas": blas or "none found"}
    found = bpgpu.backends()
    if as_json:
        print(to_json(facts | {"backends": [vars(entry) for entry in found], "auto": why_auto()}))
        return
    say = _printer()
    for name, value in facts.items():
        say(f"{name:<11}{value}")
    rows = Table("backend", "usable", "device", "reason")
    for entry in found:
        rows.add_row(*map(Text, (entry.name, "yes" if entry.available else "no", entry.device or "", entry.reason)))
    say(rows)
    say(f"auto: {why_auto()}")


@app.command()
def warmup() -> None:
    """Compile the CPU kernels of float32 and float64 ahead of their first use; every later process finds them."""
    from bpgpu.backends.numba_backend import kernel_sources
    from bpgpu.kernels import numba_cpu_cache as cache

    place = cache.folder()
    if place is None:
        raise ValueError("no cache folder can be written to; set NUMBA_CACHE_DIR to one that can")
    say = _printer()
    for dtype in ("float32", "float64"):
        sources = kernel_sources(np.dtype(dtype))
        start = time.perf_counter()
        if cache.are_kept(sources):
            say(f"{dtype}  already compiled")
        else:
            cache.keep(sources, functools.partial(_progress(), description=dtype))
            say(f"{dtype}  compiled in {time.perf_counter() - start:.1f} s")
    say(f"cache    {place}")


@app.command("hardware-report")
def hardware_report(
    folder: Annotated[Path, typer.Option(help="Folder for hardware-report.json and hardware-report.md.")] = Path(),
    quick: Annotated[bool, typer.Option("--quick", help="A few small cases; the timings say nothing.")] = False,
) -> int:
    """Check and time the GPU of this machine, in two files to attach to an issue; exit code 1 if a part failed."""
    from bpgpu import hardware_report as report

    bpgpu.get_backend("cupy")  # without a GPU there is nothing to report but this error
    say = _printer()
    failed = report.run(folder, say, quick=quick)["failed"]
    say(f"{folder / 'hardware-report.md'} and .json: " + (f"FAILED: {', '.join(failed)}" if failed else "all parts ok"))
    return 1 if failed else 0


@app.command()
def gradcheck(
    backend: BackendOption = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float64",
    as_json: JsonOption = False,
) -> int:
    """Compare backpropagation with central differences, for every activation and cost; exit code 1 if one fails."""
    chosen = bpgpu.get_backend(backend)
    dtype = checks.floating_dtype(dtype).name
    say = _printer(stderr=as_json)
    start = time.perf_counter()
    worst: dict[tuple[str, str], float] = {}
    checked, failures = 0, []
    for case, report in _progress()(check_table(chosen, dtype), "networks", len(CASES)):
        pair = (case.activation, case.cost)
        if isinstance(report, bpgpu.GradientError):
            failures.append(f"{case}: {report}")
            worst[pair] = float("inf")
        else:
            checked += report.checked
            worst[pair] = max(worst.get(pair, 0.0), report.max_error)
    rows = Table("activation", title=f"largest relative error, {chosen.name}, {dtype}")
    for cost in COSTS:
        rows.add_column(cost.replace("_", " "))
    for activation in ACTIVATIONS:
        rows.add_row(activation, *(f"{worst[activation, cost]:.1e}" for cost in COSTS))
    say(rows)
    for failure in failures:
        say(f"FAILED {failure}")
    say(f"{checked} derivatives in {time.perf_counter() - start:.1f} s, {len(failures)} networks failed")
    if as_json:
        result = {"backend": chosen.name, "dtype": dtype, "checked": checked, "failed": len(failures)}
        print(to_json(result | {"max_error": max(worst.values())}))
    return 1 if failures else 0


@app.command()
def accuracy(
    backend: Annotated[str, typer.Option(help="all that run here, or one: cupy, numba-cuda, numba, numpy.")] = "all",
    as_json: JsonOption = False,
) -> int:
    """Measure the errors of every step against extended precision, beside those promised; exit code 1 if one is larger.

    The unit is docs/accuracy.md's: 1 is one rounding of the largest result.
    """
    from bpgpu import accuracy as measuring
    from bpgpu.accuracy_cases import DTYPES

    say = _printer(stderr=as_json)
    errors = measuring.measure_all(backend, say)
    for dtype in DTYPES:
        say(f"\n{measuring.table(errors, dtype)}")
    broken = measuring.broken_promises(errors)
    say("\n" + ("\n".join(f"FAILED {line}" for line in broken) or "every error is as small as promised"))
    if as_json:
        print(to_json({"backends": measuring.plain(errors), "failed": len(broken)}))
    return 1 if broken else 0


def to_json(result: dict[str, Any]) -> str:
    """Return one line of JSON; infinite and undefined numbers, which JSON lacks, become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in result.items()
    }
    return json.dumps(finite, allow_nan=False)


def _printer(stderr: bool = False) -> Callable[..., None]:
    """Return a function that prints for people, text as it is; lines are not broken, so that they can be searched."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    return functools.partial(console.print, soft_wrap=True)


def _progress() -> Callable[..., Any]:
    """Return rich's `track`, which shows a bar on a terminal and nothing elsewhere."""
    console = Console(stderr=True)
    return functools.partial(track, console=console, transient=True, disable=not console.is_terminal)


def _check_file(option: str, path: Path | None) -> None:
    """Raise if the path can be seen not to be one for a file."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} must name a file, got the folder {path}; add a name to it")
    if not path.parent.is_dir():
        raise ValueError(f"the folder of {path} must exist; make it with: mkdir -p {path.parent}")


def _check_new_file(option: str, path: Path | None) -> None:
    """Raise if no file can be written there or put in the place of an older one; leave nothing behind."""
    _check_file(option, path)
    if path is None:
        return
    if path.exists() and not path.is_file():
        raise ValueError(f"{option} must name a file, got the device {path}; give another name")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.exists():
            path.open("ab").close()
    except OSError as error:
        raise ValueError(
            f"{option} must name a file that can be written, got {path}: {error.strerror}; give another"
        ) from error


def _check_plot(path: Path) -> None:
    """Raise if Matplotlib cannot draw a picture of this kind, by drawing one."""
    try:
        _plot(bpgpu.History(loss=[1.0], validation_loss=[1.0]), io.BytesIO(), path.suffix[1:])
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"--plot {path} cannot be drawn: {error}") from error


def _hidden_sizes(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")] if text.strip() else []
    except ValueError:
        raise ValueError(f"--hidden must be sizes with commas, like 128,64, got {text!r}") from None


def _rule(name: str, learning_rate: float | None) -> bpgpu.Optimizer:
    rule = lookup("--optimizer", name, OPTIMIZERS)
    return rule() if learning_rate is None else rule(learning_rate)


def _measured(goal: tables.Target, score: float | None) -> str:
    return f"{goal.metric} " + ("not defined: the targets do not vary" if score is None else f"{score:.4f}")


def _or_float64(dtype: np.dtype[Any]) -> str:
    return ", or use --dtype float64" if dtype == np.float32 else ""


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def _plot(history: bpgpu.History, file: Path | IO[bytes], kind: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    scale = "log" if any(loss > 0 for loss in history.loss + history.validation_loss) else "linear"
    axes = figure.add_subplot(xlabel="epoch", ylabel="cost", yscale=scale)
    for losses, label in ((history.loss, "training"), (history.validation_loss, "held out")):
        axes.plot(range(1, len(losses) + 1), losses, label=label)
    axes.legend()
    figure.savefig(file, format=kind, dpi=150)
