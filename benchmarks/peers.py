"""bpgpu against other libraries on the CPU: the same training step, in separate processes, one after another in rounds.

python -m benchmarks.peers --out report
python -m benchmarks.peers --out report --rounds 5 --rows 2-4-3-1,64-100-10 --peers bpgpu,torch
python -m benchmarks.peers --saved report/peers.json --readme README.md
"""

import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.peer_epochs import PEERS, reference
from benchmarks.peer_problem import NETWORKS, RATES, Problem
from benchmarks.report import table
from bpgpu import get_backend
from bpgpu.cli.files import check_files, same_file
from bpgpu.files.writing import atomic_file

ROOT = Path(__file__).parent.parent
TITLES = {
    "bpgpu": "bpgpu",
    "products": "only the products",
    "numpy": "NumPy by hand",
    "sklearn": "scikit-learn",
    "torch": "torch, eager",
    "torch-compile": "torch.compile",
    "jax": "JAX, each step",
    "jax-scan": "JAX, whole epoch",
}
LIBRARIES = ("sklearn", "torch", "torch-compile", "jax", "jax-scan")  # the fastest of them counts
PACKAGES = ("bpgpu", "numpy", "scipy", "numba", "mkl", "scikit-learn", "torch", "jax", "jaxlib")
THREADS = ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMBA", "BPGPU")
SETTINGS = (
    "OPENBLAS_",
    "MKL_",
    "OMP_",
    "KMP_",
    "GOTO_",
    "BLIS_",
    "VECLIB_",
    "NUMBA_",
    "BPGPU_",
    "XLA_",
    "TORCH",
    "JAX_",
)
LIMIT = 900  # seconds for one process, including compiling
MARKERS = "<!-- peers -->", "<!-- /peers -->"
ABOUT = """Microseconds of a training step; in brackets as a multiple of bpgpu's: above 1, bpgpu is faster. "Only the
products" is the floor: the step's matrix products by the BLAS that bpgpu calls. The fastest library is the fastest of
scikit-learn, torch and JAX. Every peer was checked before it was timed; the times do not include compiling."""
Result = dict[str, Any]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def run_peer(network: str, optimizer: str, peer: str, seconds: float, expected: Path, threads: int | None) -> Result:
    """Run a peer in its own process; return its measurements, or in ``error`` the last line that it wrote."""
    command = ["-m", "benchmarks.peer_epochs", network, optimizer, peer, str(seconds), str(expected), str(threads or 0)]
    environment = dict(os.environ) | {f"{name}_NUM_THREADS": str(threads) for name in THREADS if threads}
    options: Any = {"capture_output": True, "text": True, "cwd": ROOT, "env": environment, "timeout": LIMIT}
    try:
        done = subprocess.run([sys.executable, *command], **options)
    except subprocess.TimeoutExpired:
        return {"error": f"it took longer than {LIMIT} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    found: Result = json.loads(done.stdout.splitlines()[-1])
    return found


def run_rounds(
    networks: list[str], peers: list[str], rounds: int, seconds: float, threads: int | None
) -> Iterator[Result]:
    """Yield the result of every peer on every network and optimizer in every round, and why others cannot run."""
    runnable = []
    for peer in peers:
        if importlib.util.find_spec(PEERS[peer].needs) is None:
            yield {"peer": peer, "error": f"{PEERS[peer].needs} is not installed"}
        else:
            runnable.append(peer)
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        cases = list(product(networks, RATES))
        task = progress.add_task("expected results", total=len(cases) * len(runnable) * rounds)
        files = {}
        for case in cases:
            files[case] = Path(folder) / f"{'-'.join(case)}.npy"
            np.save(files[case], reference(Problem(*case)))
        for turn, case, peer in product(range(rounds), cases, runnable):
            progress.update(task, description=f"round {turn + 1}: {', '.join(case)}, {peer}")
            found = run_peer(*case, peer, seconds, files[case], threads)
            yield {"round": turn + 1, "network": case[0], "optimizer": case[1], "peer": peer} | found
            progress.advance(task)


def machine(threads: int | None) -> dict[str, Any]:
    """Return what a reader must know about machine, libraries and settings."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "processor": processor(),
        "processors": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} "
        f"of {os.cpu_count()}",
        "system": platform.platform(),
        "Python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "load before the run": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "not known",
        "device of bpgpu": get_backend("numba").device,
        "threads": f"{threads}, by --threads" if threads else "as each library chooses",
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)},
    }


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def medians(results: list[Result]) -> pd.DataFrame:
    """Return the seconds of a step, the median over rounds, by network and optimizer, with a column for each peer.

    A peer that did not run, or failed in any round, has NaN.
    """
    timed = pd.DataFrame([result for result in results if "round" in result])
    timed["seconds"] = timed["seconds"].where(timed["error"].isna()) if "error" in timed else timed["seconds"]
    cells = timed.groupby(["network", "optimizer", "peer"], sort=False)["seconds"]
    found = cells.median().where(cells.count() == cells.size()).unstack("peer")
    order = [case for case in product(NETWORKS, RATES) if case in found.index]
    return found.reindex(index=pd.MultiIndex.from_tuples(order, names=found.index.names), columns=list(PEERS))


def notes(results: list[Result]) -> list[str]:
    """Return the reasons why peers have no figure, each once."""
    reasons = [
        " ".join(filter(None, (TITLES[x["peer"]], x.get("network"), x.get("optimizer")))) + f": {x['error']}"
        for x in results
        if "error" in x
    ]
    return list(dict.fromkeys(reasons))


def peers_table(results: list[Result]) -> str:
    """Return the table of steps in Markdown, with ratios."""
    seconds = medians(results)
    asked = [peer for peer in PEERS if any(result["peer"] == peer for result in results)]
    failed = {(x.get("network"), x.get("optimizer"), x["peer"]) for x in results if "error" in x}
    rows = []
    for (network, optimizer), times in seconds.iterrows():
        row = {"network": network, "batch": NETWORKS[network][0], "optimizer": optimizer}
        for peer in asked:
            why = "failed" if (network, optimizer, peer) in failed else "not installed"
            row[TITLES[peer]] = why if pd.isna(times[peer]) else _cell(times[peer], times["bpgpu"], peer)
        row["bpgpu / products"] = times["bpgpu"] / times["products"]
        row["fastest library / bpgpu"] = times[list(LIBRARIES)].min() / times["bpgpu"]
        rows.append(row)
    found = pd.DataFrame(rows)
    return table(found, list(found))


def _cell(seconds: float, bpgpu: float, peer: str) -> str:
    microseconds = f"{seconds * 1e6:.3g}" if seconds < 1e-3 else f"{seconds * 1e6:,.0f}".replace(",", " ")
    return microseconds if peer == "bpgpu" or pd.isna(bpgpu) else f"{microseconds} ({seconds / bpgpu:.2f})"


def spread(results: list[Result]) -> str:
    """Return the number of rounds, and how far they differ."""
    timed = pd.DataFrame([result for result in results if "seconds" in result])
    cells = timed.groupby(["network", "optimizer", "peer"])["seconds"]
    each = (cells.max() / cells.min() - 1) * 100
    differ = f"slowest over fastest {each.median():.0f} % more in the median cell, {each.max():.0f} % at most"
    return f"rounds: {timed['round'].max()}, of which the median counts; {differ}"


def markdown(about: dict[str, Any], results: list[Result]) -> str:
    """Return the report: machine, table, notes."""
    lines = [f"- {name}: {_text(value)}" for name, value in about.items()]
    for peer in ("bpgpu", "numpy"):
        pools = {pool for result in results if result["peer"] == peer for pool in result.get("pools", ())}
        lines += [f"- BLAS loaded by {TITLES[peer]}: {', '.join(sorted(pools)) or 'not known'}"]
    rates = [x["large_gemm_flops_per_second"] / 1e9 for x in results if "large_gemm_flops_per_second" in x]
    if rates:
        lines += [f"- large product: {statistics.median(rates):.0f} GFLOP/s ({min(rates):.0f} to {max(rates):.0f})"]
    if any("seconds" in result for result in results):
        lines += [f"- {spread(results)}", "", peers_table(results), ABOUT]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(results))]).strip() + "\n"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items()) or "nothing set"
    return str(value)


def put_between_markers(page: str, text: str) -> str:
    """Return a page whose part between the markers is the text."""
    before, start, rest = page.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not (start and end):
        raise ValueError(f"has no place for the table: it needs a line {MARKERS[0]} and, after it, a line {MARKERS[1]}")
    return f"{before}{start}\n{text.strip()}\n{end}{after}"


def choose(option: str, chosen: str | None, known: Any) -> list[str]:
    """Return the names in a comma-separated list, in the order of the known names; all of them without a list."""
    names = set(known) if chosen is None else set(chosen.split(","))
    if not names <= set(known):
        raise ValueError(f"{option} must name some of {', '.join(known)}, got {', '.join(sorted(names - set(known)))}")
    return [name for name in known if name in names]


@app.command()
def main(
    out: Annotated[Path | None, typer.Option(help="Folder for peers.json and peers.md; created if missing.")] = None,
    readme: Annotated[Path | None, typer.Option(help="A page that receives the report, between its markers.")] = None,
    saved: Annotated[Path | None, typer.Option(help="A peers.json of an earlier run, instead of a new run.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often every peer runs.")] = 3,
    rows: Annotated[str | None, typer.Option(help=f"Some of {', '.join(NETWORKS)}; default: all.")] = None,
    peers: Annotated[str | None, typer.Option(help=f"Some of {', '.join(PEERS)}; default: all.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="For every library; default: as each chooses.")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Duration of each measurement.")] = 1.0,
) -> None:
    """Time the same training step in bpgpu and in other libraries; exit code 1 if one of them failed."""
    try:
        networks, chosen = choose("--rows", rows, NETWORKS), choose("--peers", peers, PEERS)
        files = {} if out is None else {"--out": out / "peers.md"}
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            if saved is None or not same_file(saved, out / "peers.json"):
                files["--out (peers.json)"] = out / "peers.json"
        if readme is not None:  # a page without markers is refused before a run of twenty minutes
            files["--readme"] = readme
            put_between_markers(readme.read_text(encoding="utf-8"), "")
        check_files({"--saved": [] if saved is None else [saved]}, files)
        if saved is None:
            about, results = machine(threads), list(run_rounds(networks, chosen, rounds, seconds, threads))
        else:
            about, results = load(saved)
        page = markdown(about, results)
        texts = {"--out": page, "--out (peers.json)": json.dumps({"about": about, "results": results}, indent=1)}
        if readme is not None:
            texts["--readme"] = put_between_markers(readme.read_text(encoding="utf-8"), page)
        for option, path in files.items():
            with atomic_file(path) as file:
                file.write(texts[option].encode())
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(page)
    raise typer.Exit(any("round" in result and "error" in result for result in results))


def load(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """Read the results that an earlier run saved."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["about"], content["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what `python -m benchmarks.peers --out` writes") from error


if __name__ == "__main__":
    app()
