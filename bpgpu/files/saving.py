"""Model files: safetensors, with the architecture as JSON in the metadata. Reading one executes nothing.

Tensors: ``W.1`` ... ``W.L`` of shape (n_{l-1}, n_l), ``b.1`` ... ``b.L`` of shape (n_l,), ``mask.l`` where a layer
has a connectivity mask.
"""

import json
import math
from os import PathLike
from typing import Any

import numpy as np

from bpgpu import checks, inputs
from bpgpu._version import __version__
from bpgpu.backends import get_backend
from bpgpu.backends.base import Backend
from bpgpu.errors import ModelFileError, lookup, short_repr
from bpgpu.files.writing import atomic_file
from bpgpu.model.activations import ACTIVATIONS, Activation
from bpgpu.model.architecture import Architecture
from bpgpu.model.costs import COSTS, Cost
from bpgpu.network import Network

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
}
ARCHITECTURE = ("sizes", "activations", "cost", "bias", "l2", "dropout", "dtype", "seed")  # keys of a description
TENSOR_TYPES = {"float32": "F32", "float64": "F64"}  # safetensors' names
MAX_HEADER = 100_000_000  # the most bytes that safetensors reads
MAX_DEPTH = 100  # of lists and dicts in metadata; JSON sets no limit, Python's stack does
MAX_BITS = 2000  # of an integer in metadata; Python may read no more than 640 digits


def save(net: Network, path: str | PathLike[str]) -> None:
    """Write `net` to `path`, whole or not at all; refuse what `load` would refuse before anything is written.

    The tensors are written one by one, because safetensors' own writer copies all of them, and aborts without memory.
    """
    header, tensors = describe(net), _tensors(net)
    dtype, to_numpy = np.dtype(net.architecture.dtype), net.backend.to_numpy
    with atomic_file(path) as file:
        file.write(_header(header, {name: array.shape for name, array in tensors.items()}, dtype))
        for array in tensors.values():
            file.write(np.ascontiguousarray(to_numpy(array), dtype.newbyteorder("<")).data.cast("B"))


def _tensors(net: Network) -> dict[str, Any]:
    """Return the tensors of a file by name, where they lie."""
    groups = {"W": net.weights, "b": net.biases, "mask": net.masks or []}
    return {
        f"{name}.{l}": array
        for name, arrays in groups.items()
        for l, array in enumerate(arrays, start=1)
        if array is not None
    }


def _header(description: str, shapes: dict[str, tuple[int, ...]], dtype: np.dtype[Any]) -> bytes:
    """Return the bytes before the tensors: a length, and where each tensor lies."""
    entries: dict[str, Any] = {"__metadata__": {KEY: description}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": TENSOR_TYPES[dtype.name], "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(entries).encode("ascii")
    text += b" " * (-len(text) % 8)  # aligned, so that the tensors can be mapped
    if len(text) > MAX_HEADER:
        raise ValueError(f"metadata must be at most about {MAX_HEADER} bytes of JSON, got {len(text)}; keep less there")
    return len(text).to_bytes(8, "little") + text


def load(kind: type[Network], path: str | PathLike[str], backend: str | Backend) -> Any:
    """Read a network of class `kind` from `path`."""
    from safetensors import SafetensorError, safe_open

    path, backend = checks.path("path", path), get_backend(backend)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ModelFileError(f"{path} is a pipe or a device; write the model to a file, and read that")
    path.open("rb").close()  # a missing or unreadable file raises an OSError that names it
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get(KEY)
            if header is None:
                raise ModelFileError(f"{path} is a safetensors file, but not one that bpgpu saved")
            description = json.loads(header)
            if type(description["format"]) is int and description["format"] > FORMAT:
                version = short_repr(description["bpgpu"]).strip("'")
                raise ModelFileError(
                    f"{path} was written by bpgpu {version}, in a newer format; update bpgpu to read it"
                )
            return _build(kind, description, {name: file.get_tensor(name) for name in file.keys()}, backend)  # noqa: SIM118
    except SafetensorError as error:
        raise ModelFileError(f"{path} is not a whole safetensors file: {error}") from error
    except ModelFileError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{path} does not describe a network: {type(error).__name__}: {error}") from error


def _build(kind: type[Network], description: Any, tensors: dict[str, Any], backend: Backend) -> Any:
    """Build the network that a file describes; any error means that it does not describe one."""
    _check(description)
    found = {array.dtype.name for array in tensors.values()}
    if found != {description["dtype"]}:
        raise TypeError(f"the tensors must be {description['dtype']}, got {', '.join(sorted(found))}")
    bias = description["bias"]
    layers = range(1, len(description["sizes"]))
    init = [(tensors.pop(f"W.{l}"), tensors.pop(f"b.{l}")) if bias else tensors.pop(f"W.{l}") for l in layers]
    net = kind(
        description["sizes"],
        [_from_row("activation", Activation, ACTIVATIONS, row) for row in description["activations"]],
        _from_row("cost", Cost, COSTS, description["cost"]),
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
        raise ValueError(f"the network has no place for the tensors {short_repr(sorted(tensors))}")
    net.epoch, net.metadata = description["epoch"], description["metadata"]
    return net


def describe(net: Network) -> str:
    """Return the JSON that describes the network in a file, without its tensors; refuse what `load` would refuse."""
    architecture = Architecture.checked(**{name: getattr(net.architecture, name) for name in ARCHITECTURE})
    _check_parameters(net, architecture)
    description = {
        "format": FORMAT,
        "bpgpu": __version__,
        "sizes": list(architecture.sizes),
        "activations": [_to_row(activation, ACTIVATIONS) for activation in architecture.activations],
        "cost": _to_row(architecture.cost, COSTS),
        "bias": architecture.bias,
        "l2": architecture.l2,
        "dropout": architecture.dropout,
        "dtype": architecture.dtype.name,
        "seed": architecture.seed,
        "epoch": checks.integer("epoch", net.epoch, 0, checks.MAX_COUNT),
        "metadata": net.metadata,
    }
    _check(description)
    return json.dumps(description)


def _check(description: Any) -> None:
    """Raise if the description of a network, in a file or about to be saved, is invalid.

    The checks of `Architecture.checked` are left to it.
    """
    for key, types in TYPES.items():
        if type(description[key]) not in types:
            raise TypeError(
                f"{key} must be {' or '.join(t.__name__ for t in types)}, got {short_repr(description[key])}"
            )
    checks.integer("format", description["format"], 1, FORMAT)
    checks.integer("epoch", description["epoch"], 0, checks.MAX_COUNT)
    metadata = description["metadata"]
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata must be a dict, got {type(metadata).__name__}")
    _check_json("metadata", metadata)


def _check_json(name: str, value: Any, depth: int = 0) -> None:
    """Raise unless JSON returns an equal value."""
    if depth > MAX_DEPTH:
        raise ValueError(f"metadata must be nested at most {MAX_DEPTH} levels deep; {short_repr(name)} is deeper")
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the keys of {name} must be text, got {short_repr(key)}; JSON would turn it into text")
            _check_json(f"{name}[{short_repr(key)}]", entry, depth + 1)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _check_json(f"{name}[{index}]", entry, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}, which JSON does not have; use None or text")
    elif isinstance(value, int):  # bool too
        if value.bit_length() > MAX_BITS:
            raise ValueError(f"{name} must be an integer of at most {MAX_BITS} bits, got {short_repr(value)}")
    elif not (value is None or isinstance(value, str)):
        fix = "a list" if isinstance(value, tuple) else "numbers, text, lists and dicts"
        raise TypeError(f"{name} is not JSON serializable: it is of type {type(value).__name__}; turn it into {fix}")


def _check_parameters(net: Network, architecture: Architecture) -> None:
    """Raise if the parameters and masks, which a user may set, do not fit this architecture."""
    to_numpy = net.backend.to_numpy
    parameters = to_numpy(net.parameters)
    expected = (architecture.n_parameters,), architecture.dtype
    if (parameters.shape, parameters.dtype) != expected:
        raise ValueError(
            f"parameters must be a {expected[1]} array of shape {expected[0]}, got {parameters.dtype} of shape "
            f"{parameters.shape}; write into it, as in net.parameters[...] = values"
        )
    checks.finite("parameters", parameters, architecture.dtype)
    masks = net.masks
    if isinstance(masks, list | tuple):
        masks = [None if mask is None else to_numpy(mask) for mask in masks]
    masks = inputs.connectivity(masks, architecture.sizes, architecture.dtype)
    for l, (W, mask) in enumerate(zip(architecture.views(parameters)[0], masks, strict=True)):
        if mask is not None and W[mask == 0].any():
            raise ValueError(f"weights[{l}] must be 0 wherever connectivity[{l}] is 0; multiply it by the mask")


def _to_row(formula: Activation | Cost, table: dict[str, Any]) -> str | dict[str, str]:
    """Return the name of a formula in the table, or the expressions of any other."""
    return formula.name if table.get(formula.name) == formula else dict(vars(formula))


def _from_row(what: str, kind: Any, table: dict[str, Any], row: str | dict[str, str]) -> Any:
    return lookup(what, row, table) if isinstance(row, str) else kind(**row)
