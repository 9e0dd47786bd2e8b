"""The commands that use a saved network: predict with it, export it."""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import bpgpu
from bpgpu.cli import tables
from bpgpu.cli.files import check_files
from bpgpu.cli.metrics import Measured
from bpgpu.cli.output import BackendOption, JsonOption, printer, to_json, write_csv

# What the model file of `train` says of its table.
TABLE_KEYS = {"columns", "target", "task", "classes"}


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

    check_files({"MODEL": [model], "DATA": [data] if data != "digits" else []}, {"--out": out}, devices=True)
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
        strata = goal.encode(table, data) if about.get("stratified") else None
        table = table.iloc[tables.split(len(table), about["fraction"], about["split_seed"], strata)[1]]
    outputs = net.predict(tables.features(table, about["columns"], data, net.architecture.dtype))
    predictions = pd.DataFrame({goal.name: goal.decode(outputs)}, index=table.index)
    if probabilities:
        both = outputs if goal.outputs > 1 else np.hstack([1 - outputs, outputs])
        predictions[[f"p({label})" for label in goal.classes]] = both
    if out is not None or not as_json:
        write_csv(predictions, out)
    measured = None
    if goal.name in table:
        try:
            measured = Measured.of(goal, outputs, goal.encode(table, data), about.get("baseline"))
            measured.show(printer(stderr=True), f"{len(table)} rows")
        except ValueError as error:  # labels are missing, or not those of training
            print(f"note: no {goal.metric}: {error}", file=sys.stderr)
    if as_json:
        result = {"rows": len(table), "metric": goal.metric, "test_metric": None}
        result |= {} if measured is None else measured.for_json()
        if out is None:  # the predictions themselves, for nobody else gets them
            records = predictions.to_dict("records")
            numbers = predictions.index.tolist()
            result["predictions"] = [{"row": row} | record for row, record in zip(numbers, records, strict=True)]
        print(to_json(result | {"out": None if out is None else str(out)}))


def export(
    model: Annotated[Path, typer.Argument(help="A file that 'bpgpu train --out' or MLP.save wrote.")],
    out: Annotated[Path, typer.Argument(help="File for the network, .onnx.")],
) -> None:
    """Write a saved model as an ONNX file, for other programs; needs: pip install "bpgpu[onnx]".

    Its input is X, its output "output"; with a classifier of 'bpgpu train', "label" and "probabilities".
    """
    from bpgpu import onnx_export

    check_files({"MODEL": [model]}, {"OUT": out})
    net = bpgpu.MLP.load(model, backend="numpy")
    labels = None
    if net.metadata.keys() >= TABLE_KEYS and net.metadata["classes"]:
        goal = tables.Target(*(net.metadata[key] for key in ("target", "task", "classes")))
        labels = onnx_export.Labels(goal.classes, lambda a: goal.decode(a if goal.outputs > 1 else a[:, 1:]))
    name = "probabilities" if labels else "output"
    onnx_export.export(net, out, input_name="X", output_name=name, labels=labels)
    printer()(f"{out}: X -> {'label, ' if labels else ''}{name}; the same numbers as predict, by onnxruntime")
