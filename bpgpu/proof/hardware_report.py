"""The report of bpgpu on a machine with a GPU: parity, reruns, leaks and timings, in a JSON and a Markdown file.

Each part of `PARTS` runs separately. A part that fails is recorded as a failure with its message, and the next one
runs. The files are rewritten after every part, so that a crash of the driver loses only the part under way.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bpgpu.files.writing import atomic_file
from bpgpu.proof import hardware_parts
from bpgpu.proof.hardware_parts import Row

PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "facts": hardware_parts.facts,
    "gradients": hardware_parts.gradients,
    "parity": hardware_parts.parity,
    "rerun": hardware_parts.rerun,
    "graphs": hardware_parts.graphs,
    "leaks": hardware_parts.leaks,
    "timings": hardware_parts.timings,
}


def run(folder: Path, say: Callable[[str], Any], *, quick: bool = False) -> Row:
    """Run every part and write ``hardware-report.json`` and ``hardware-report.md`` to a folder.

    Parameters
    ----------
    folder : Path
        Created if it does not exist.
    say : callable
        Gets a line at the start and at the end of each part.
    quick : bool
        A few small cases of each part, to see that the report works; its timings mean nothing.

    Returns
    -------
    dict
        The content of the JSON file. ``failed`` has the names of the parts that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report: Row = {"finished": False, "quick": quick, "failed": [], "parts": {}}
    for name, part in PARTS.items():
        say(f"{name} ...")
        start, record = time.perf_counter(), Row(status="ok", problems=[], rows=[])
        try:
            for row in part(quick):
                record["rows"].append(row)
        except Exception as error:
            record["problems"].append(hardware_parts.text(error))
        record["problems"] += [_problem(row) for row in record["rows"] if row.get("ok") is False]
        if record["problems"]:
            record["status"] = "failed"
            report["failed"].append(name)
        record["seconds"] = time.perf_counter() - start
        report["parts"][name] = record
        say(f"{name}: {record['status']}" + "".join(f"\n  {problem}" for problem in record["problems"]))
        report["finished"] = len(report["parts"]) == len(PARTS)
        plain = _plain(report)
        texts = {".json": json.dumps(plain, indent=1, allow_nan=False), ".md": _markdown(plain)}
        for suffix, text in texts.items():
            with atomic_file(folder / f"hardware-report{suffix}") as file:
                file.write(text.encode())
    result: Row = _plain(report)
    return result


def _problem(row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.items() if name != "ok")


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: a number that is not finite becomes its name."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _markdown(report: Row) -> str:
    lines = ["# bpgpu hardware report", ""]
    if report["quick"]:
        lines += ["A quick run: a few small cases; its timings mean nothing.", ""]
    if not report["finished"]:
        lines += ["Not finished: the run ended or was stopped after the last part below.", ""]
    lines += [f"Failed: {', '.join(report['failed']) or 'nothing'}.", ""]
    for name, part in report["parts"].items():
        lines += [f"## {name}: {part['status']}", "", f"{part['seconds']:.1f} s", ""]
        lines += [f"- FAILED {problem}" for problem in part["problems"]] + [""] * bool(part["problems"])
        columns = list(dict.fromkeys(column for row in part["rows"] for column in row))
        if columns:
            table = [columns, ["---"] * len(columns)]
            table += [[_cell(row.get(column, "")) for column in columns] for row in part["rows"]]
            lines += ["| " + " | ".join(cells) + " |" for cells in table] + [""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
