"""The same training in torch and JAX, for comparison with bpgpu's timings in the hardware report.

A ReLU network with a softmax output, cross-entropy, SGD, float32, data on the device, rows shuffled there every epoch.
Each library is imported only when its function is called.
"""

import importlib
import importlib.util
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WARM_UP = 2  # epochs that are not counted
RATE = 0.01

# The device and the seconds of each epoch, or the reason why there are none.
Epochs = tuple[str, list[float]] | str
Data = np.ndarray[Any, Any]


def torch_epochs(sizes: tuple[int, ...], X: Data, y: Data, batch: int, rounds: int) -> Epochs:
    """Train in torch, eagerly, on its GPU if it has one."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    torch: Any = importlib.import_module("torch")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    layers: list[Any] = []
    for m, n in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(m, n), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1]).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    cost = torch.nn.CrossEntropyLoss()
    inputs = torch.as_tensor(X, dtype=torch.float32, device=device)
    targets = torch.as_tensor(y, dtype=torch.int64, device=device)

    def epoch() -> None:
        order = torch.randperm(len(inputs), device=device)
        for start in range(0, len(inputs), batch):
            rows = order[start : start + batch]
            optimizer.zero_grad(set_to_none=True)
            cost(net(inputs[rows]), targets[rows]).backward()
            optimizer.step()
        if cuda:
            torch.cuda.synchronize()

    name = torch.cuda.get_device_name() if cuda else "CPU"
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads", _measure(epoch, rounds)


def jax_epochs(sizes: tuple[int, ...], X: Data, y: Data, batch: int, rounds: int) -> Epochs:
    """Train in JAX, each step compiled, on its default device."""
    if importlib.util.find_spec("jax") is None:
        return "JAX is not installed"
    jax: Any = importlib.import_module("jax")
    jnp: Any = importlib.import_module("jax.numpy")
    rng = np.random.default_rng(0)
    shapes = itertools.pairwise(sizes)
    weights = [jnp.asarray(rng.normal(0, (2 / m) ** 0.5, (m, n)), jnp.float32) for m, n in shapes]
    state = {"net": [(W, jnp.zeros(W.shape[1], jnp.float32)) for W in weights], "key": jax.random.PRNGKey(0)}
    inputs, targets = jnp.asarray(X, jnp.float32), jnp.asarray(y, jnp.int32)

    def cost(net: Any, a: Any, classes: Any) -> Any:
        for W, b in net[:-1]:
            a = jax.nn.relu(a @ W + b)
        W, b = net[-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(a @ W + b), classes[:, None], axis=1).mean()

    def update(net: Any, X: Any, y: Any, rows: Any) -> Any:
        gradients = jax.grad(cost)(net, X[rows], y[rows])
        return jax.tree_util.tree_map(lambda p, g: p - RATE * g, net, gradients)

    step = jax.jit(update)

    def epoch() -> None:
        state["key"], key = jax.random.split(state["key"])
        order = jax.random.permutation(key, len(inputs))
        for start in range(0, len(inputs), batch):
            state["net"] = step(state["net"], inputs, targets, order[start : start + batch])
        jax.block_until_ready(state["net"])

    device = jax.devices()[0]
    return f"{device.device_kind}, {device.platform}, JAX {jax.__version__}", _measure(epoch, rounds)


def _measure(epoch: Callable[[], None], rounds: int) -> list[float]:
    """Time epochs that end with an idle device, not counting the first ones."""
    seconds = []
    for _ in range(WARM_UP + rounds):
        start = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


PEERS: dict[str, Callable[[tuple[int, ...], Data, Data, int, int], Epochs]] = {
    "torch, eager": torch_epochs,
    "JAX, each step compiled": jax_epochs,
}
