"""The commands that train a network on a table, and predict with it."""

import io
import sys
import tempfile
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import typer
from rich.text import Text

import bpgpu
from bpgpu import checks
from bpgpu.activations import ACTIVATIONS
from bpgpu.backends import why_auto
from bpgpu.cli import tables
from bpgpu.cli.output import BackendOption, JsonOption, printer, to_json
from bpgpu.errors import lookup, unknown_name
from bpgpu.optimizers import OPTIMIZERS

# (hidden layers, dropout) where the options are not given.
DEFAULT_NETWORK = ("128,64", 0.0)
DIGITS_NETWORK = ("512", 0.5)
# Mean over deviation of a column above which the raw rows and the folded weights lose three digits or more.
MAX_REMOTENESS = {"float32": 1e4, "float64": 1e12}

# What the model file of `train` says of its table.
TABLE_KEYS = {"columns", "target", "task", "classes"}


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
    say = printer(stderr=as_json)
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
    if not about.keys() >= TABLE_KEYS:
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


def export(
    model: Annotated[Path, typer.Argument(help="A file that 'bpgpu train --out' or MLP.save wrote.")],
    out: Annotated[Path, typer.Argument(help="File for the network, .onnx.")],
) -> None:
    """Write a saved model as an ONNX file, for other programs; needs: pip install "bpgpu[onnx]".

    Its input is X, its output "output"; with a classifier of 'bpgpu train', "label" and "probabilities".
    """
    from bpgpu import onnx_export

    _check_new_file("OUT", out)
    net = bpgpu.MLP.load(model, backend="numpy")
    labels = None
    if net.metadata.keys() >= TABLE_KEYS and net.metadata["classes"]:
        goal = tables.Target(*(net.metadata[key] for key in ("target", "task", "classes")))
        labels = onnx_export.Labels(goal.classes, lambda a: goal.decode(a if goal.outputs > 1 else a[:, 1:]))
    name = "probabilities" if labels else "output"
    onnx_export.export(net, out, input_name="X", output_name=name, labels=labels)
    printer()(f"{out}: X -> {'label, ' if labels else ''}{name}; the same numbers as predict, by onnxruntime")


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
