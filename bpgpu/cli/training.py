"""The command that trains a network on a table."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import bpgpu
from bpgpu import checks
from bpgpu.backends import why_auto
from bpgpu.cli import reading, tables
from bpgpu.cli.columns import Rows
from bpgpu.cli.files import check_ending, check_files, sibling
from bpgpu.cli.metrics import Measured, class_weights, constant_answers
from bpgpu.cli.outcome import KeepHistory, Outcome
from bpgpu.cli.output import BackendOption, JsonOption, Printer
from bpgpu.cli.plots import check_plot
from bpgpu.cli.preparing import Columns, predicted, prepare
from bpgpu.cli.scaling import Standardisation, in_float64
from bpgpu.cli.splitting import fraction_of
from bpgpu.errors import lookup, unknown_name
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.optimizers import OPTIMIZERS

# (hidden layers, dropout) if the options are not given.
DEFAULT_NETWORK = ("128,64", 0.0)
DIGITS_NETWORK = ("512", 0.5)
# Ratio of a column's mean to its deviation above which raw numbers and folded weights lose three digits or more.
MAX_REMOTENESS = {"float32": 1e4, "float64": 1e12}


def train(
    data: reading.DataArgument,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Column to predict; the last one if not given. May be repeated: numbers, or two classes each."
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="auto, classification or regression.")] = "auto",
    hidden: Annotated[
        str | None, typer.Option(help="Sizes of the hidden layers [128,64; for digits 512]; '' for none.")
    ] = None,
    activation: Annotated[str, typer.Option(help="For the hidden layers: " + ", ".join(ACTIVATIONS))] = "relu",
    optimizer: Annotated[str, typer.Option(help=", ".join(OPTIMIZERS))] = "adam",
    learning_rate: Annotated[float | None, typer.Option(help="The optimizer's default if not given.")] = None,
    momentum: Annotated[float | None, typer.Option(help="For sgd, in [0, 1).")] = None,
    clip_norm: Annotated[
        float | None, typer.Option(help="Scale the gradients of a step down to this norm if theirs is larger.")
    ] = None,
    epochs: Annotated[int, typer.Option()] = 50,
    early_stopping: Annotated[
        int | None,
        typer.Option(help="Stop after this many epochs without a smaller held-out loss, and keep the best weights."),
    ] = None,
    batch_size: Annotated[int, typer.Option()] = 32,
    l2: Annotated[float, typer.Option(help="lambda of the penalty (lambda / 2m) sum W^2.")] = 0.0,
    dropout: Annotated[
        float | None, typer.Option(help="For the hidden layers [0; for digits 0.5 unless --hidden is given].")
    ] = None,
    validation: Annotated[str, typer.Option(help="Part held out, in (0, 1), or a file with held-out rows.")] = "0.2",
    stratify: Annotated[bool, typer.Option("--stratify", help="Hold out the same part of each class.")] = False,
    class_weight: Annotated[
        str | None,
        typer.Option(
            help="Weights of classes in training: 'balanced', or LABEL=WEIGHT separated by commas; a label that has "
            "a comma goes in quotation marks, as in CSV: '\"a, b=2\",c=1'."
        ),
    ] = None,
    backend: BackendOption = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    seed: Annotated[int, typer.Option(help="For the split, the weights, the shuffling and the dropout.")] = 0,
    drop: Annotated[list[str] | None, typer.Option(help="Column that is not an input; may be repeated.")] = None,
    ids: reading.IdOption = None,
    encode: Annotated[
        list[str] | None,
        typer.Option(
            help="Column, or auto for all: text becomes 0 and 1, missing numbers become the mean; may be repeated."
        ),
    ] = None,
    sep: reading.SepOption = None,
    decimal: reading.DecimalOption = None,
    thousands: reading.ThousandsOption = None,
    encoding: reading.EncodingOption = None,
    no_header: reading.NoHeaderOption = False,
    na: reading.NaOption = None,
    comment: reading.CommentOption = None,
    out: Annotated[Path | None, typer.Option(help="File for the model, .safetensors.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File for a picture of the losses, .png.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Train a network on a table and measure it on held-out rows.

    A table has one row per sample. Its columns have different names; each is a target or an input, and inputs are
    numbers without missing entries, unless --drop, --id or --encode says otherwise. A .csv file names its columns in
    the first line; a .npz file has arrays X and y. An unclear entry is an error that names its line and the option to
    use.

    Columns are standardised, and the saved model includes this: it takes raw rows. Two classes get one sigmoid
    output, more classes a softmax, numbers an identity output. Ctrl-C ends training early and continues from there.
    """
    # A model or picture that was asked for must not be lost because the reader of the output left.
    say = Printer(stderr=as_json, patient=out is not None or plot is not None)
    held_out = tables.files_of(validation, "--validation") if fraction_of(validation) is None else []
    if data == ["digits"] == [validation]:
        raise ValueError("DATA and --validation must be different tables, got digits twice; use --validation 0.2")
    check_files({"DATA": tables.files_of(data), "--validation": held_out}, {"--out": out, "--plot": plot})
    check_ending("--out", out, ".safetensors")
    if out is not None:
        checks.file_name("--out", sibling(out, "diverged"))  # the name that `Outcome` may need
    if plot is not None:
        check_plot(plot)
    if task not in ("auto", "classification", "regression"):
        raise unknown_name("--task", task, ["auto", "classification", "regression"])
    checks.integer("--epochs", epochs, 1)
    checks.integer("--batch-size", batch_size, 1)
    checks.integer("--seed", seed, 0)
    if early_stopping is not None:
        checks.integer("--early-stopping", early_stopping, 1)
    chosen_optimizer = _optimizer(optimizer, learning_rate, momentum, clip_norm)
    number = checks.floating_dtype(dtype)
    options = reading.Reading.checked(sep, decimal, thousands, encoding, no_header, na, comment)
    job = prepare(data, validation, seed, Columns(target, drop, ids, encode), task, options, number, stratify)
    goal = job.goal
    weights = None if class_weight is None else class_weights(goal, job.y_train, class_weight)
    for note in job.notes:
        say(f"note     {note}")

    preset_hidden, preset_dropout = DIGITS_NETWORK if data == ["digits"] and hidden is None else DEFAULT_NETWORK
    sizes = [len(job.inputs.names), *_hidden_sizes(preset_hidden if hidden is None else hidden), goal.outputs]
    output, cost = ("identity", "mean_squared_error")
    if goal.classification:
        output, cost = (
            ("softmax", "cross_entropy") if goal.outputs > len(goal.each) else ("sigmoid", "binary_cross_entropy")
        )
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
    batch_size = min(batch_size, len(job.train))
    inputs = Standardisation.learn(job.train)
    outputs = None if goal.classification else Standardisation.learn([job.y_train.reshape(len(job.train), -1)])

    def scaled(rows: Rows, y: Any) -> tuple[Any, Any]:
        y = y if outputs is None else outputs.apply(y.reshape(len(rows), -1))
        return inputs.applied(rows, len(rows), number), y

    plan = bpgpu.Plan(net.architecture, batch_size, net.backend, chosen_optimizer)
    reason = why_auto() if backend == "auto" else "as asked"
    say(f"data     {len(job.train)} rows to train on, {len(job.test)} held out, {len(job.inputs.columns)} columns")
    for goal_ in goal.each:
        say(f"target   {goal_.name}: {goal_.task}" + (f", {len(goal_.classes)} classes" if goal_.classes else ""))
    say(f"network  {'-'.join(map(str, sizes))}, {activation}, {output}, {cost}, dropout {net.architecture.dropout:g}")
    say(f"backend  {net.backend.name} on {net.backend.device}, {number.name}: {reason}")
    say(
        f"memory   {_mib(net.parameters.nbytes)} parameters, {_mib(plan.nbytes)} gradients, state and workspace, "
        f"{_mib((len(job.train) + len(job.test)) * sizes[0] * number.itemsize)} data"
    )
    if inputs.remoteness > MAX_REMOTENESS[number.name]:
        say(
            f"note     a column's mean is {inputs.remoteness:.0f} times its deviation, too far for {number.name}; "
            f"subtract a constant from such columns{_or_float64(number)}"
        )
    remote = outputs is not None and number == np.float32 and outputs.remoteness > MAX_REMOTENESS[number.name]
    if outputs is not None and remote:
        say(f"note     the target's mean is {outputs.remoteness:.0f} times its deviation: the model is kept in float64")
    answers = constant_answers(goal, job.y_train)
    failure: ArithmeticError | None = None
    keeper = KeepHistory()
    stopping = [] if early_stopping is None else [bpgpu.EarlyStopping(early_stopping)]
    try:
        net.fit(
            *scaled(job.train, job.y_train),
            optimizer=chosen_optimizer,
            epochs=epochs,
            batch_size=batch_size,
            validation_data=scaled(job.test, job.y_test),
            sample_weight=weights,
            callbacks=[keeper, *stopping],
            progress=True,
        )
    except bpgpu.NonFiniteError as error:
        if not keeper.history.loss:  # the weights are still the initial ones
            raise
        failure = error
    # From here on nothing may be printed or raised, or the training could be lost.
    if remote:
        in_float64(net)
    inputs.fold_into_input(net)
    if outputs is not None:
        outputs.fold_into_output(net)
    usable = bool(np.isfinite(net.backend.to_numpy(net.parameters)).all())
    if not usable:
        failure = failure or ArithmeticError(
            f"the weights for raw rows are too large for {number.name}: the deviation of a column is too small, "
            f"or that of the target too large; multiply it by a constant{_or_float64(number)}"
        )
    net.metadata = job.metadata | {"baseline": answers}
    outcome = Outcome(net, keeper.history, len(job.train), failure, usable)
    # Measured on the folded network and raw rows, as `predict` will do.
    outcome.finish(say, lambda: Measured.of(goal, predicted(net, job.test), job.y_test, answers), out, plot, as_json)
    if say.failure is not None:
        raise say.failure
    return 130 if outcome.interrupted else 0


def _hidden_sizes(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")] if text.strip() else []
    except ValueError:
        raise ValueError(f"--hidden must be sizes separated by commas, like 128,64, got {text!r}") from None


def _optimizer(
    name: str, learning_rate: float | None, momentum: float | None, clip_norm: float | None
) -> bpgpu.Optimizer:
    kind = lookup("--optimizer", name, OPTIMIZERS)
    if momentum is not None and kind is not bpgpu.SGD:
        raise ValueError(f"--momentum needs --optimizer sgd, got {name}; leave one of them out")
    given = {"learning_rate": learning_rate, "momentum": momentum, "clip_norm": clip_norm}
    return kind(**{option: value for option, value in given.items() if value is not None})


def _or_float64(dtype: np.dtype[Any]) -> str:
    return ", or use --dtype float64" if dtype == np.float32 else ""


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"
