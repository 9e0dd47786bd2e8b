"""Networks as ONNX files; onnxruntime checks each against `predict` before it is kept."""

import dataclasses
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from bpgpu import checks
from bpgpu.backends import get_backend
from bpgpu.files import saving
from bpgpu.files.writing import atomic_file
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.network import Network

if TYPE_CHECKING:
    from bpgpu.files.onnx_graph import Graph, Value

Array = np.ndarray[Any, Any]
ROWS = 64  # rows that check a file
# A file's outputs may differ from those of `predict` by this many times the effect of rounding.
MARGIN = 100
LARGEST = 2**31 - 2**20  # bytes of parameters: what the format can hold, minus some room for the rest


@dataclasses.dataclass(frozen=True)
class Labels:
    """What makes a network a classifier.

    Attributes
    ----------
    classes : list of length K
        The labels, numbers or text; a single output is the probability of the second.
    decode : function
        Returns the labels for the probabilities that a file gives; the file's own labels are checked against them.
    multilabel : bool
        Whether every output is a separate yes-or-no answer, and the labels are a matrix of 0 and 1.
    """

    classes: list[Any]
    decode: Callable[[Array], Any]
    multilabel: bool = False


def export(
    net: Network,
    path: str | PathLike[str],
    *,
    input_name: str,
    output_name: str,
    dtype: Any = None,
    X: Any = None,
    predict: Callable[[Array], Array] | None = None,
    labels: Labels | None = None,
) -> None:
    """Write a network to an ONNX file, if onnxruntime computes the same numbers from it.

    Parameters
    ----------
    net : MLP
    path : path-like
    input_name, output_name : str
    dtype : {"float32", "float64"}, optional
        Of the numbers in the file; by default the network's own.
    X : array, shape (n, n_0), optional
        Rows to check the file with; by default random ones.
    predict : function, optional
        The function to check the file against; by default the network's own.
    labels : Labels, optional
        Adds an output ``label``, and a single output becomes the probabilities of both classes.

    Raises
    ------
    ImportError
        If onnx or onnxruntime is missing.
    ValueError, TypeError
        If an argument is not as described, or the network is too large for a file.
    RuntimeError
        If onnxruntime gives other numbers than `predict`; then no file is written.
    """
    number = net.architecture.dtype if dtype is None else checks.floating_dtype(dtype)
    rows = (_random_rows(net) if X is None else net.backend.to_numpy(net.checked_samples(X))).astype(number)
    net = _on_the_host(net)
    content = _content(_cast(net, number), input_name, output_name, labels)
    _check(content, net, rows, predict or net.predict, labels)
    with atomic_file(path) as file:
        file.write(content)


def _on_the_host(net: Network) -> Network:
    """Return the network on the reference backend, whose products are never rounded to less than the dtype."""
    return net.on(get_backend("numpy"))


def _cast(net: Network, dtype: np.dtype[Any]) -> Network:
    """Return the network with parameters of another dtype."""
    return net.on(dtype=dtype)


def _random_rows(net: Network) -> Array:
    """Return small and large rows, which reach the activations both where they bend and where they are flat."""
    rng = np.random.default_rng(0)
    rows: Array = rng.normal(size=(ROWS, net.architecture.sizes[0])) * 10 ** rng.uniform(-2, 2, size=(ROWS, 1))
    return rows.astype(net.architecture.dtype)


def _content(net: Network, input_name: str, output_name: str, labels: Labels | None) -> bytes:
    """Return the content of the file."""
    try:
        from bpgpu.files.onnx_graph import Graph
    except ImportError as error:
        raise _missing(error) from error

    architecture = net.architecture
    if net.parameters.nbytes > LARGEST:
        raise ValueError(f"an ONNX file holds 2 GiB, but the parameters take {net.parameters.nbytes / 2**30:.1f} GiB")
    graph = Graph(architecture.dtype)
    a = graph.input(input_name, architecture.sizes[0])
    for l, (W, b, sigma) in enumerate(zip(net.weights, net.biases, architecture.activations, strict=True), start=1):
        parts = [graph.constant(f"{name}.{l}", array) for name, array in (("W", W), ("b", b)) if array is not None]
        a = graph.activation(sigma, graph.node("Gemm", a, *parts))
    outputs = architecture.sizes[-1]
    if labels is not None:
        a, outputs = _add_labels(graph, a, outputs, labels)
    graph.output(output_name, a, architecture.dtype, outputs)
    return graph.model({saving.KEY: saving.describe(net)})


def _add_labels(graph: "Graph", a: "Value", outputs: int, labels: Labels) -> tuple["Value", int]:
    """Add the output of the labels; return the probabilities and their number."""
    if labels.multilabel:
        graph.output("label", graph.integers(a > 0.5), np.dtype(np.int64), outputs)
        return a, outputs
    classes = _as_tensor(labels.classes)
    if outputs == 1:
        a, outputs = graph.node("Concat", 1 - a, a, axis=1), 2
        classes = np.resize(classes, 2)  # scikit-learn also accepts a single class
    largest = graph.node("ArgMax", a, axis=1, keepdims=0)
    graph.output("label", graph.node("Gather", graph.constant("classes", classes), largest), classes.dtype)
    return a, outputs


def _as_tensor(values: list[Any]) -> Array:
    """Return labels in a type that ONNX has."""
    if all(isinstance(value, str) for value in values):
        return np.array(values, dtype=object)
    if not all(isinstance(value, bool | int | float) for value in values):
        raise ValueError(f"labels must be text or numbers, got {', '.join(map(repr, values[:5]))}")
    whole = all(float(value).is_integer() for value in values)
    return np.array(values, dtype=np.int64 if whole else np.float64)


def _check(
    content: bytes,
    net: Network,
    rows: Array,
    predict: Callable[[Array], Array],
    labels: Labels | None,
) -> None:
    """Raise if onnxruntime's numbers differ from those of `predict` by more than rounding, or if its labels differ."""
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing(error) from error

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        *found_labels, got = session.run(None, {session.get_inputs()[0].name: rows})
    except Exception as error:  # onnxruntime has a dozen classes of its own
        raise RuntimeError(f"no ONNX file was written: onnxruntime cannot run it: {error}") from error
    with np.errstate(all="ignore"):  # numbers that are not finite must not be so in the file either
        expected = predict(rows)
    if expected.shape[1] < got.shape[1]:
        expected = np.hstack([1 - expected, expected])
    fewer = min(net.architecture.dtype, got.dtype, key=lambda dtype: dtype.itemsize)
    difference = np.abs(_bounded(got, fewer) - _bounded(expected, fewer))
    agree = (difference <= MARGIN * _rounding(net, rows, fewer)) | (np.isnan(got) & np.isnan(expected))
    if not agree.all():
        row, column = np.argwhere(~agree)[0]
        raise RuntimeError(
            f"no ONNX file was written: for a row of inputs onnxruntime gives {got[row, column]:.9g} as output "
            f"{column + 1}, but predict {expected[row, column]:.9g}; please report this with the network"
        )
    if labels is not None and not np.array_equal(found_labels[0], labels.decode(got)):
        raise RuntimeError(
            "no ONNX file was written: onnxruntime gives other labels than predict; please report this with the network"
        )


def _rounding(net: Network, rows: Array, dtype: np.dtype[Any]) -> Array:
    """Return, for each row, how far rounding moves the outputs: as far as changing the last bits of all parameters.

    The bits are those of `dtype`, the network's or the file's, whichever has fewer.
    """
    eps, rng, net_dtype = np.finfo(dtype).eps, np.random.default_rng(0), net.architecture.dtype
    a = np.nan_to_num(_bounded(net.predict(rows), dtype))
    size = np.abs(a).max(axis=1, keepdims=True)
    farthest = np.zeros_like(size)
    for _ in range(4):  # a single try may leave a row unmoved by chance
        last_bits = 1 + eps * rng.choice([-1, 1], len(net.parameters))
        moved = net.on(parameters=(net.parameters * last_bits).astype(net_dtype))
        b = np.nan_to_num(_bounded(moved.predict(rows), dtype))
        farthest = np.maximum(farthest, np.abs(a - b).max(axis=1, keepdims=True))
    # The error of onnxruntime's Sigmoid is within the last bit of 1, not of its own value.
    usual = 1 if net.architecture.activations[-1] == ACTIVATIONS["sigmoid"] else np.median(size)
    rounding: Array = farthest + eps * np.maximum(size, usual)
    return rounding


def _bounded(a: Array, dtype: np.dtype[Any]) -> Array:
    """Return numbers clipped near the limit of `dtype`, so that all that overflow there are equal."""
    limit = float(np.finfo(dtype).max) / 1e6
    return np.clip(a, -limit, limit)


def _missing(error: ImportError) -> ImportError:
    return ImportError(f'to_onnx needs onnx and onnxruntime: pip install "bpgpu[onnx]" ({error})')
