"""The commands that use a saved network: predict with it, export it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

import bpgpu
from bpgpu.cli import reading, tables
from bpgpu.cli.csv_files import ENDINGS
from bpgpu.cli.files import check_ending, check_files
from bpgpu.cli.metrics import Measured
from bpgpu.cli.output import BackendOption, JsonOption, Printer, records, to_json, uncompressed, write_csv
from bpgpu.cli.preparing import TABLE_KEYS, Saved, predicted
from bpgpu.cli.reading import quoted


def predict(
    model: Annotated[Path, typer.Argument(help="A file that 'bpgpu train --out' wrote.")],
    data: reading.DataArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File for the predictions, .csv or .tsv, also with .gz, .zst ...; standard output if not given."
        ),
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Add one column for each class.")] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only the rows that training held out of this very table.")
    ] = False,
    ids: reading.IdOption = None,
    sep: reading.SepOption = None,
    decimal: reading.DecimalOption = None,
    thousands: reading.ThousandsOption = None,
    encoding: reading.EncodingOption = None,
    no_header: reading.NoHeaderOption = False,
    na: reading.NaOption = None,
    comment: reading.CommentOption = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Predict rows with a saved model; also measure the predictions if the rows have the target column."""
    check_files({"MODEL": [model], "DATA": tables.files_of(data)}, {"--out": out}, devices=True)
    if out is not None:
        check_ending("--out", uncompressed(out), *ENDINGS)
    if out is None and sys.stdout is None:
        raise ValueError("standard output, where predictions go, is closed; name a file for them with --out")
    options = reading.Reading.checked(sep, decimal, thousands, encoding, no_header, na, comment)
    net = bpgpu.MLP.load(model, backend=backend)
    job = Saved.of(str(model), net)
    goal = job.goal
    if probabilities and not goal.classification:
        raise ValueError(f"--probabilities needs a classifier, but {model} is a regression")
    rows, ids, notes = job.rows(data, options, ids or [], held_out, net.architecture.dtype)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    outputs = predicted(net, rows)
    predictions = goal.predictions(rows, outputs, ids, probabilities)
    if out is not None or not as_json:
        write_csv(predictions, out)
    measured = None
    if all(name in rows.table.frame for name in goal.names):
        try:
            measured = Measured.of(goal, outputs, goal.encode(rows.table)[rows.numbers], job.answers)
            measured.show(Printer(stderr=True), f"{len(rows)} rows")
        except ValueError as error:  # labels are missing or were not seen in training
            print(f"note: no {goal.metric}: {error}", file=sys.stderr)
    if as_json:
        result = {"rows": len(rows), "metric": goal.metric, "test_metric": None}
        result |= {} if measured is None else measured.for_json()
        if out is None:  # they are written nowhere else
            result["predictions"] = records(predictions)
        print(to_json(result | {"out": None if out is None else str(out)}))


def export(
    model: Annotated[Path, typer.Argument(help="A file that 'bpgpu train --out' or MLP.save wrote.")],
    out: Annotated[Path, typer.Argument(help="File for the network, .onnx.")],
) -> None:
    """Write a saved model as an ONNX file, for other programs; needs: pip install "bpgpu[onnx]".

    Its input is X, its output "output"; with a classifier of 'bpgpu train', "label" and "probabilities".
    """
    from bpgpu.files import onnx_export

    check_files({"MODEL": [model]}, {"OUT": out})
    check_ending("OUT", out, ".onnx")
    net = bpgpu.MLP.load(model, backend="numpy")
    labels = None
    names = ""
    if net.metadata.keys() >= TABLE_KEYS:
        saved = Saved.of(str(model), net)
        goal = saved.goal.each[0]
        if saved.inputs.describe().keys() != {"columns"}:
            names = f"; X has the columns {quoted(saved.inputs.names, 20)}, without missing entries"
    if net.metadata.keys() >= TABLE_KEYS and saved.goal.classification and len(saved.goal.each) == 1:
        labels = onnx_export.Labels(goal.classes, lambda a: goal.decode(a if goal.outputs > 1 else a[:, 1:]))
    name = "probabilities" if labels else "output"
    onnx_export.export(net, out, input_name="X", output_name=name, labels=labels)
    Printer()(f"{out}: X -> {'label, ' if labels else ''}{name}; the same numbers as predict, by onnxruntime{names}")
