"""Model files: safetensors, with the architecture as JSON in the metadata. Reading one executes nothing.

Tensors: ``W.1`` ... ``W.L`` of shape (n_{l-1}, n_l), ``b.1`` ... ``b.L`` of shape (n_l,), ``mask.l`` where a layer
has a connectivity mask.
"""

import json
import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpgpu import checks
from bpgpu._version import __version__
from bpgpu.activations import ACTIVATIONS, Activation
from bpgpu.backends import get_backend
from bpgpu.backends.base import Backend
from bpgpu.costs import COSTS, Cost
from bpgpu.errors import ModelFileError

if TYPE_CHECKING:
    from bpgpu.network import MLP

FORMAT = 1
KEY = "bpgpu"
TYPES: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "sizes": (list,),
    "activations": (list,),
    "cost": (str, dict),
    "bias": (bool,),
    "l2": (int, float),
    "dropout": (int, float),
    "dtype": (str,),
    "seed": (int,),
    "epoch": (int,),
    "metadata": (dict,),
}


def save(net: "MLP", path: str | PathLike[str]) -> None:
    """Write `net` to `path`: to a file beside it first, flushed to disk, then renamed over it.

    What `load` would refuse is refused here: parameters that are not finite, metadata that is no dict.
    """
    import safetensors.numpy

    to_numpy, header = net.backend.to_numpy, describe(net)
    tensors = {f"W.{l}": to_numpy(W) for l, W in enumerate(net.weights, start=1)}
    tensors |= {f"b.{l}": to_numpy(b) for l, b in enumerate(net.biases, start=1) if b is not None}
    tensors |= {f"mask.{l}": to_numpy(mask) for l, mask in enumerate(net.masks, start=1) if mask is not None}
    write_atomically(Path(path), safetensors.numpy.save(tensors, metadata={KEY: header}))


def load(kind: "type[MLP]", path: str | PathLike[str], backend: str | Backend) -> Any:
    """Read a network of class `kind` from `path`."""
    from safetensors import SafetensorError, safe_open

    path, backend = Path(path), get_backend(backend)
    path.open("rb").close()  # a missing or unreadable file is an OSError that names it
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get(KEY)
            if header is None:
                raise ModelFileError(f"{path} is a safetensors file, but not one that bpgpu saved")
            description = json.loads(header)
            if type(description["format"]) is int and description["format"] > FORMAT:
                raise ModelFileError(
                    f"{path} was written by bpgpu {description['bpgpu']}, in a newer format; update bpgpu to read it"
                )
            return _build(kind, description, {name: file.get_tensor(name) for name in file.keys()}, backend)  # noqa: SIM118
    except SafetensorError as error:
        raise ModelFileError(f"{path} is not a whole safetensors file: {error}") from error
    except ModelFileError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{path} does not describe a network: {type(error).__name__}: {error}") from error


def _build(kind: "type[MLP]", description: Any, tensors: dict[str, Any], backend: Backend) -> Any:
    """Make the network that a file describes; any error means that it describes none."""
    for key, types in TYPES.items():
        if type(description[key]) not in types:
            raise TypeError(f"{key} must be {' or '.join(t.__name__ for t in types)}, got {description[key]!r}")
    checks.integer("format", description["format"], 1)
    found = {array.dtype.name for array in tensors.values()}
    if found != {description["dtype"]}:
        raise TypeError(f"the tensors must be {description['dtype']}, got {', '.join(sorted(found))}")
    bias = description["bias"]
    layers = range(1, len(description["sizes"]))
    init = [(tensors.pop(f"W.{l}"), tensors.pop(f"b.{l}")) if bias else tensors.pop(f"W.{l}") for l in layers]
    net = kind(
        description["sizes"],
        [_from_row(Activation, ACTIVATIONS, row) for row in description["activations"]],
        _from_row(Cost, COSTS, description["cost"]),
        bias=bias,
        l2=description["l2"],
        dropout=description["dropout"],
        connectivity=[tensors.pop(f"mask.{l}", None) for l in layers],
        dtype=description["dtype"],
        seed=description["seed"],
        backend=backend,
        init=init,
    )
    if tensors:
        raise ValueError(f"the network has no place for the tensors {', '.join(sorted(tensors))}")
    net.epoch = checks.integer("epoch", description["epoch"], 0, 2**32 - 1)
    net.metadata = description["metadata"]
    return net


def describe(net: "MLP") -> str:
    """Return what a file says of the network besides its tensors, as JSON; refuse what `load` would refuse."""
    architecture = net.architecture
    checks.finite("parameters", net.backend.to_numpy(net.parameters), architecture.dtype)
    if not isinstance(net.metadata, dict):
        raise TypeError(f"metadata must be a dict, got {type(net.metadata).__name__}")
    description = {
        "format": FORMAT,
        "bpgpu": __version__,
        "sizes": architecture.sizes,
        "activations": [_to_row(activation, ACTIVATIONS) for activation in architecture.activations],
        "cost": _to_row(architecture.cost, COSTS),
        "bias": architecture.bias,
        "l2": architecture.l2,
        "dropout": architecture.dropout,
        "dtype": architecture.dtype.name,
        "seed": architecture.seed,
        "epoch": net.epoch,
        "metadata": net.metadata,
    }
    return json.dumps(description, ensure_ascii=False)


def _to_row(formula: Activation | Cost, table: dict[str, Any]) -> str | dict[str, str]:
    """Return the name of a formula of the table, and the expressions of any other."""
    return formula.name if table.get(formula.name) == formula else dict(vars(formula))


def _from_row(kind: Any, table: dict[str, Any], row: str | dict[str, str]) -> Any:
    return table[row] if isinstance(row, str) else kind(**row)


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a file beside `path`, flushed to disk, and rename that over it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(_file_mode(path))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _file_mode(path: Path) -> int:
    """Return the permissions that writing to `path` directly would leave; a temporary file is private."""
    if path.exists():
        return path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
