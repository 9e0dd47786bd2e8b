"""The gradient check: backpropagation against central differences of the cost."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bpgpu import checks
from bpgpu.backends import get_backend
from bpgpu.backends.data import Data
from bpgpu.backends.plan import Plan
from bpgpu.errors import GradientError
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS
from bpgpu.network import Network

if TYPE_CHECKING:
    from bpgpu.backends.base import Backend
# Networks with more parameters are checked along random directions instead of parameter by parameter.
EXHAUSTIVE = 2000
DIRECTIONS = 4
# Central differences with five points: truncation ~ h^4, rounding ~ 1e-16 / h; their sum is smallest near this step.
STEP = 1e-4
RTOL = {"float64": 1e-6, "float32": 1e-3}


@dataclass(frozen=True)
class GradientReport:
    """The result of a gradient check.

    Attributes
    ----------
    checked : int
        Derivatives compared: parameters, or directions if `exhaustive` is False.
    kinks : int
        Derivatives at a kink of the cost, or too close to one, where finite differences mean nothing.
    exhaustive : bool
        Whether every parameter was checked separately.
    max_error : float
        Largest relative error, ``|analytic - numeric| / max(|analytic|, |numeric|, floor)``, where the floor is 1e-3
        of the largest derivative.
    tolerance : float
        The largest error allowed, in addition to the rounding of the differences themselves.
    """

    checked: int
    kinks: int
    exhaustive: bool
    max_error: float
    tolerance: float


def check_gradients(
    net: Network, X: Any, y: Any, sample_weight: Any = None, *, tolerance: float | None = None
) -> GradientReport:
    """Compare the gradients of a network, as its backend computes them, with central differences of its cost.

    The cost is evaluated in float64 on the NumPy backend, whatever the network's own dtype and backend. Penalty, masks,
    sample weights and dropout (with the mask of one step) are included. In networks of up to 2000 parameters, each is
    checked; larger networks are checked along four random directions through all parameters.

    Parameters
    ----------
    net : MLP
    X, y, sample_weight
        As in `MLP.loss`.
    tolerance : float, optional
        Relative error allowed; by default 1e-6 in float64 and 1e-3 in float32.

    Returns
    -------
    GradientReport

    Raises
    ------
    GradientError
        If a derivative is off by more than the tolerance, or if more than half lie at kinks; the message gives the
        layer, the index, both values, the step and the tolerance.
    ValueError, TypeError
        If an array is not as `MLP.loss` describes.
    """
    dtype = net.architecture.dtype.name
    tolerance = RTOL[dtype] if tolerance is None else checks.positive("tolerance", tolerance)
    _, gradients = net.backprop(X, y, sample_weight)
    weights, biases = zip(*gradients, strict=True)
    to_numpy = net.backend.to_numpy
    analytic = np.concatenate([to_numpy(g).ravel() for g in [*weights, *biases] if g is not None]).astype(np.float64)
    cost, parameters = _float64_cost(net, net.checked_data(X, y, sample_weight))
    free = np.flatnonzero(_free_parameters(net))
    held = np.setdiff1d(np.arange(analytic.size), free)
    if np.any(analytic[held]):
        where = int(held[np.argmax(np.abs(analytic[held]))])
        raise GradientError(f"{_name(net, where)} is masked, but its gradient is {analytic[where]:.9g}, not 0")
    exhaustive = free.size <= EXHAUSTIVE
    if exhaustive:
        directions: Iterable[np.ndarray[Any, Any]] = (_unit(analytic.size, int(index)) for index in free)
        slopes = analytic[free]
    else:
        rng = np.random.default_rng([net.architecture.seed, 2])
        random = np.zeros((DIRECTIONS, analytic.size))
        random[:, free] = rng.standard_normal((DIRECTIONS, free.size))
        random /= np.linalg.norm(random, axis=1, keepdims=True)
        directions, slopes = random, random @ analytic
    floor = 1e-3 * float(np.max(np.abs(slopes), initial=0.0))
    kinks, max_error, centre = 0, 0.0, cost(parameters)
    for k, direction in enumerate(directions):
        error, numeric, agrees, is_kink = _compare(
            cost, parameters, centre, direction, float(slopes[k]), floor, tolerance
        )
        if is_kink:
            kinks += 1
            continue
        max_error = max(max_error, error)
        if not agrees:
            what = _name(net, int(free[k])) if exhaustive else f"random direction {k} through all parameters"
            raise GradientError(
                f"{what}: backprop ({dtype}, {net.backend.name}) gives {slopes[k]:.9g}, central differences give "
                f"{numeric:.9g}, a relative error of {error:.3g}; the step was {STEP:g}, the tolerance {tolerance:g}"
            )
    if 2 * kinks > len(slopes):
        raise GradientError(
            f"{kinks} of {len(slopes)} derivatives lie at kinks of the cost, too many to call the gradient checked; "
            "use inputs and weights that make fewer weighted inputs exactly 0"
        )
    return GradientReport(len(slopes) - kinks, kinks, exhaustive, max_error, tolerance)


@dataclass(frozen=True)
class GradientCase:
    """One network of `check_table`: `activation` and `cost` of its output, and its shape."""

    activation: str
    cost: str
    outputs: int
    depth: int


CASES = [GradientCase(*case) for case in itertools.product(ACTIVATIONS, COSTS, (1, 3), (1, 2, 3))]


def check_table(backend: "Backend", dtype: str) -> Iterator[tuple[GradientCase, GradientReport | GradientError]]:
    """Check every activation × cost × (1, 3) outputs × depths 1 to 3: `CASES`, with everything that training can add.

    Weights, penalty and a connectivity mask are on, and dropout if there is a hidden layer. Hidden layers have the
    activation too, so it is checked in both places.
    """
    for case in CASES:
        try:
            yield case, check_case(case, backend, dtype)
        except GradientError as error:
            yield case, error


def check_case(case: GradientCase, backend: "Backend", dtype: str) -> GradientReport:
    """Check one network of the table on seven random samples."""
    sizes = [4, *[5] * (case.depth - 1), case.outputs]
    rng = np.random.default_rng([4, case.outputs, case.depth])
    X, sample_weight = rng.standard_normal((7, 4)), rng.uniform(0.5, 2.0, 7)
    y = rng.dirichlet(np.ones(3), 7) if case.outputs == 3 else rng.uniform(0.1, 0.9, (7, 1))
    mask = np.ones((sizes[0], sizes[1]))
    mask[1, 0] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pairs that leave the domain of the cost are checked too
        net = Network(
            sizes,
            case.activation,
            case.cost,
            l2=0.1,
            dropout=0.25,
            connectivity=[mask, *[None] * (case.depth - 1)],
            dtype=dtype,
            seed=case.depth,
            backend=backend,
        )
    for b in net.biases:
        b += backend.asarray(rng.uniform(0.1, 0.5, len(b)), net.architecture.dtype)
    return check_gradients(net, X, y, sample_weight)


def _float64_cost(net: Network, data: Data) -> tuple[Callable[[np.ndarray[Any, Any]], float], np.ndarray[Any, Any]]:
    """Return C as a function of a flat float64 vector, and the network's parameters as such a vector."""
    reference = net.on(backend := get_backend("numpy"), dtype=np.float64)
    net_64 = reference.architecture
    host = (None if array is None else net.backend.to_numpy(array) for array in (data.X, data.y, data.weight))
    data = reference.checked_data(*host)
    plan = Plan(net_64, len(data), backend, nonzeros=data.nonzeros).allocate()
    batch = plan.batch(len(data))
    backend.load_batch(batch, data, slice(None))
    decay = net_64.l2 / len(data)

    def cost(flat: np.ndarray[Any, Any]) -> float:
        C = backend.batch_forward(plan, batch, flat, epoch=net.epoch, step=0)
        return C + backend.penalty(flat[: net_64.n_weights], decay)

    return cost, reference.parameters


def _compare(
    cost: Callable[[np.ndarray[Any, Any]], float],
    parameters: np.ndarray[Any, Any],
    centre: float,
    direction: np.ndarray[Any, Any],
    slope: float,
    floor: float,
    tolerance: float,
) -> tuple[float, float, bool, bool]:
    """Return the relative error of a slope, the numeric slope, whether they agree, and whether the point is a kink.

    `centre` is the cost at the parameters themselves, which all directions share.

    Smaller steps, which exclude a kink inside the first step, tell it from an error. A kink at the point itself, or
    closer than the smallest step, shows in the turns of the slope between the five points; the turns of a smooth cost
    shrink with the step, and do not explain an error.
    """
    turns = []
    best = (math.inf, math.nan)
    for h in (STEP, STEP / 10, STEP / 100, STEP / 1000, STEP / 10_000):
        f = [cost(parameters + k * h * direction) if k else centre for k in (-2, -1, 0, 1, 2)]
        numeric = (8 * (f[3] - f[1]) - (f[4] - f[0])) / (12 * h)
        scale = max(abs(slope), abs(numeric), floor, 1e-12)
        rounding = 1e-15 * (1 + abs(f[2])) / h  # the effect of rounding f on the difference
        error = abs(slope - numeric) / scale
        best = min(best, (error, numeric))
        if error <= tolerance + rounding / scale:
            return error, numeric, True, False
        turns.append(float(np.abs(np.diff(f, n=2)).sum()) / h)
    persists = turns[-1] > max(3e-4 * turns[0], 20 * rounding)  # with a smooth cost, they fall to 1e-4 of the first
    return *best, False, persists and abs(slope - numeric) <= 2 * turns[-1]


def _unit(size: int, index: int) -> np.ndarray[Any, Any]:
    direction = np.zeros(size)
    direction[index] = 1.0
    return direction


def _free_parameters(net: Network) -> np.ndarray[Any, Any]:
    """Return 1 where a parameter is free and 0 where a mask holds it at 0."""
    free = np.ones(net.architecture.n_parameters)
    for W, mask in zip(net.architecture.views(free)[0], net.architecture.check_masks(net.masks), strict=True):
        if mask is not None:
            W *= net.backend.to_numpy(mask)
    return free


def _name(net: Network, index: int) -> str:
    """Return the layer, matrix and position of an entry of the flat buffer."""
    positions = np.arange(net.architecture.n_parameters)
    weights, biases = net.architecture.views(positions)
    for l, (W, b) in enumerate(zip(weights, biases, strict=True), start=1):
        for symbol, array in (("W", W), ("b", b)):
            if array is not None and index in array:
                at = ", ".join(str(i[0]) for i in np.nonzero(array == index))
                return f"layer {l}, {symbol}[{at}]"
    raise IndexError(f"no parameter {index}")
