"""Turn the results of ``pytest benchmarks --benchmark-json=saved.json`` into tables and a picture.

python -m benchmarks.report saved.json --out report
python -m benchmarks.report saved.json --out report --baseline older.json
"""

import json
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import pandas as pd
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.cases import GPU, STEPS, group_name
from bpgpu.cli.files import check_files
from bpgpu.files.writing import atomic_file

KEY = ["step", "transfers", "dtype", "width", "batch"]
FIGURES = ["flops_per_second", "bytes_per_second", "share_of_attainable", "attainable_flops_per_second"]
CEILINGS = ["ceiling_flops_per_second", "ceiling_bytes_per_second"]
ABOUT = """Milliseconds are the median of the timed calls, each from an idle device to an idle device. FLOPs and bytes
follow from the shapes: 2 FLOPs for each multiply-add, and every array read or written once. `share` is

    FLOP/s / min(measured FLOP/s, FLOPs / bytes * measured bytes/s)

where "measured" is the speed of the same backend with that dtype in a large square product and in a large addition, at
the start of the same run. Above 1, the data stayed in a cache, which is faster than the memory of that addition. `-`
was not measured.
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def load(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Read a saved run.

    Parameters
    ----------
    path : Path

    Returns
    -------
    (dict, pandas.DataFrame)
        The file's description of the run, and one row for each case.

    Raises
    ------
    ValueError
        If it is not a file of these benchmarks.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            {name: entry["extra_info"][name] for name in ["backend", "device", "clocks", *KEY, *FIGURES, *CEILINGS]}
            | {"seconds": entry["stats"]["median"], "why": entry["extra_info"].get("why_no_clocks")}
            for entry in saved["benchmarks"]
            if "step" in entry["extra_info"]  # unlike the whole networks and fits of the other files
        ]
        about = {name: saved[name] for name in ("datetime", "machine_info", "bpgpu")}
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what `pytest benchmarks --benchmark-json={path.name}` writes") from error
    if not rows:
        raise ValueError(f"{path} contains no benchmark of a step; was every case skipped?")
    return about, pd.DataFrame(rows)


def table(rows: pd.DataFrame, columns: list[str]) -> str:
    """Return columns of a data frame as a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows[columns].itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return " ".join(str(value).split()).replace("|", "\\|")


def unit(step: str) -> tuple[str, str]:
    """Return the figure for the speed of a step, and its unit of 1e9: bytes if the step has no product."""
    by_bytes = step == "output_delta" or step.startswith("update")
    return ("bytes_per_second", "GB/s") if by_bytes else ("flops_per_second", "GFLOP/s")


def markdown(about: dict[str, Any], runs: pd.DataFrame) -> str:
    """Return the page: the backends that ran, and a table for each group."""
    cpu, skipped = about["machine_info"].get("cpu", {}), about["bpgpu"]
    machine = f"{cpu.get('brand_raw', 'unknown processor')}, {cpu.get('count', '?')} processors"
    lines = ["# Benchmarks", "", f"bpgpu {skipped['version']}, {about['datetime']}, {machine}.", "", ABOUT]
    ran = runs.drop_duplicates(["backend", "dtype"])
    ran = ran.assign(
        clocks=[_clocks(run) for run in ran.itertuples()],
        **{"measured GFLOP/s": ran["ceiling_flops_per_second"] / 1e9},
        **{"measured GB/s": ran["ceiling_bytes_per_second"] / 1e9},
    )
    lines += [table(ran, ["backend", "device", "clocks", "dtype", "measured GFLOP/s", "measured GB/s"])]
    lines += [f"- {name} did not run: {reason}" for name, reason in skipped["backends_not_usable"].items()]
    lines += [
        f"- {name}: {count} cases skipped, over the time budget of {skipped['budget_seconds']:g} s"
        for name, count in skipped["cases_over_budget"].items()
    ]
    lines += ["", "![speed against width](speed.png)", ""]
    for (step, transfers), group in _groups(runs):
        lines += [f"## {group_name(step, transfers)}", "", _group_table(step, group)]
    return "\n".join(lines)


def _clocks(run: Any) -> str:
    if not run.clocks:
        return f"not known: {run.why}"
    return "; ".join(f"{name} {value}" for name, value in run.clocks.items())


def _groups(runs: pd.DataFrame) -> list[tuple[tuple[str, bool], pd.DataFrame]]:
    found = dict(list(runs.groupby(["step", "transfers"])))
    order = list(STEPS)
    return sorted(found.items(), key=lambda entry: (order.index(entry[0][0]), entry[0][1]))


def _group_table(step: str, group: pd.DataFrame) -> str:
    figure, name = unit(step)
    shape = ["dtype", "width", "batch"]
    found = group.pivot(index=shape, columns="backend", values=["seconds", figure, "share_of_attainable"])
    backends = list(dict.fromkeys(group["backend"]))
    cells = {}
    for backend in backends:
        cells[f"{backend} ms"] = found["seconds", backend] * 1e3
        cells[f"{backend} {name}"] = found[figure, backend] / 1e9
        cells[f"{backend} share"] = found["share_of_attainable", backend]
    cpu, gpu = ([backend for backend in backends if (backend in GPU) == on_gpu] for on_gpu in (False, True))
    if cpu and gpu:
        cells["CPU time / GPU time"] = found["seconds"][cpu].min(axis=1) / found["seconds"][gpu].min(axis=1)
    return table(pd.DataFrame(cells).reset_index(), [*shape, *cells])


def compare(runs: pd.DataFrame, baseline: pd.DataFrame) -> str:
    """Return a table with the ratios of all times to those of an older run, slowest first."""
    both = runs.merge(baseline, on=["backend", *KEY], suffixes=("", "_then"))
    lines = ["## Against the baseline", "", f"Of {len(runs)} cases {len(both)} are in the baseline too."]
    for backend, now, then in both[["backend", "device", "device_then"]].drop_duplicates().itertuples(index=False):
        if now != then:
            lines += [f"{backend} ran on {then} then and on {now} now: its ratios compare devices."]
    both["group"] = [group_name(*names) for names in zip(both["step"], both["transfers"], strict=True)]
    both["ms"], both["baseline ms"] = both["seconds"] * 1e3, both["seconds_then"] * 1e3
    both["ratio"] = both["seconds"] / both["seconds_then"]
    if len(both):
        lines += [f"Median of time / baseline time: {both['ratio'].median():.3g}; above 1 is slower."]
    columns = ["backend", "group", "dtype", "width", "batch", "baseline ms", "ms", "ratio"]
    return "\n".join([*lines, "", table(both.sort_values("ratio", ascending=False), columns)])


def common_batch(runs: pd.DataFrame) -> int:
    """Return the batch size with the most cases, or the largest of several."""
    counts = runs.loc[runs["batch"] > 1, "batch"].value_counts()
    return int(max(counts.index, key=lambda batch: (counts[batch], batch))) if len(counts) else 1


def draw(runs: pd.DataFrame, batch: int, file: BinaryIO) -> None:
    """Draw speed against width at one batch size, as PNG: a panel for each step and dtype, a line for each backend."""
    steps = [step for step in STEPS if step in set(runs["step"])]
    dtypes = sorted(set(runs["dtype"]))
    backends = list(dict.fromkeys(runs["backend"]))
    figure = Figure(figsize=(5.5 * len(dtypes), 2.8 * len(steps) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(steps), len(dtypes), squeeze=False, sharex=True, sharey="row")
    for step, row in zip(steps, panels, strict=True):
        speed, name = unit(step)
        row[0].set_ylabel(name)
        for dtype, axes in zip(dtypes, row, strict=True):
            axes.set_title(f"{step}, {dtype}", fontsize="medium")
            axes.set(xscale="log", yscale="log")
            axes.grid(alpha=0.3)
            here = runs[(runs["step"] == step) & (runs["dtype"] == dtype) & runs["batch"].isin([1, batch])]
            for number, backend in enumerate(backends):
                mine = here[here["backend"] == backend].sort_values("width")
                resident, moved = mine[~mine["transfers"]], mine[mine["transfers"]]
                colour = f"C{number}"
                axes.plot(resident["width"], resident[speed] / 1e9, color=colour, marker="o", label=backend)
                axes.plot(moved["width"], moved[speed] / 1e9, color=colour, ls="--", label=f"{backend}, with transfers")
                bound = resident["attainable_flops_per_second"] * resident[speed] / resident["flops_per_second"]
                axes.plot(resident["width"], bound / 1e9, color=colour, ls=":", label=f"{backend}, attainable")
            widths = sorted(set(runs["width"]))
            axes.set_xticks(widths, labels=map(str, widths))
            axes.minorticks_off()
    for axes in panels[-1]:
        axes.set_xlabel("width")
    figure.suptitle(f"speed against width, batch {batch}")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(file, format="png", dpi=110)


@app.command()
def main(
    saved: Annotated[Path, typer.Argument(help="A file that `pytest benchmarks --benchmark-json=FILE` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for benchmarks.md and speed.png; created if missing.")],
    baseline: Annotated[Path | None, typer.Option(help="An older saved file to compare with.")] = None,
    batch: Annotated[
        int | None, typer.Option(help="Batch of the picture; default: the one with the most cases.")
    ] = None,
) -> None:
    """Turn saved benchmarks into Markdown tables and a picture of speed against width."""
    try:
        picture, tables = out / "speed.png", out / "benchmarks.md"
        about, runs = load(saved)
        page = markdown(about, runs)
        if baseline is not None:
            page += "\n" + compare(runs, load(baseline)[1])
        known = sorted(set(runs["batch"]) - {1})
        if batch is not None and batch not in known:
            raise ValueError(f"--batch must be one of {', '.join(map(str, known))}, which {saved} has, got {batch}")
        out.mkdir(parents=True, exist_ok=True)
        inputs = {"SAVED": [saved], "--baseline": [] if baseline is None else [baseline]}
        check_files(inputs, {"--out (speed.png)": picture, "--out (benchmarks.md)": tables})
        with atomic_file(picture) as file:
            draw(runs, batch or common_batch(runs), file)
        with atomic_file(tables) as file:
            file.write(page.encode())
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{len(runs)} cases: {tables}, {picture}")


if __name__ == "__main__":
    app()
