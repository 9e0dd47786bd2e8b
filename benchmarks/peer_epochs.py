"""The same training epoch in bpgpu and in other libraries; `benchmarks.peers` runs each in its own process.

python -m benchmarks.peer_epochs NETWORK OPTIMIZER PEER SECONDS EXPECTED THREADS

ReLU in the hidden layers; one output is a sigmoid with binary cross-entropy, several are a softmax with cross-entropy.
float32, no shuffling, every batch full. Only NumPy is imported before a peer imports more, so that another library's
thread pool does not interfere.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_problem import Array, Peer, Problem, Stopwatch, WrongResult, clock, flat

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
LARGE = 2048  # rows and columns of the product that gives the GEMM rate


class Bpgpu(Peer):
    """`MLP.fit` on the compiled CPU engine; the epochs of one fit are timed, from end to end."""

    needs = "bpgpu"

    def __init__(self, problem: Problem, backend: str = "numba", dtype: str = "float32") -> None:
        import bpgpu

        super().__init__(problem)
        one, L = problem.sizes[-1] == 1, len(problem.sizes) - 1
        self.net = bpgpu.MLP(
            problem.sizes,
            ["relu"] * (L - 1) + ["sigmoid" if one else "softmax"],
            "binary_cross_entropy" if one else "cross_entropy",
            dtype=dtype,
            backend=backend,
        )
        self.net.parameters[...] = problem.flat
        self.optimizer = {"SGD": bpgpu.SGD, "Adam": bpgpu.Adam}[problem.optimizer](problem.rate)

    def epoch(self) -> None:
        self.fit(epochs=1)

    def fit(self, **options: Any) -> None:
        data, batch = (self.problem.X, self.problem.targets), self.problem.batch
        self.net.fit(*data, optimizer=self.optimizer, batch_size=batch, shuffle=False, **options)

    def parameters(self) -> Array:
        return self.net.parameters.copy()

    def measure(self, seconds: float) -> list[float]:
        from bpgpu import Callback

        watch = Stopwatch(seconds)

        class Clock(Callback):
            def on_epoch_end(self, training: Any) -> None:
                if watch.mark():
                    training.stop("enough")

        self.fit(epochs=10**9, callbacks=[Clock()])
        return watch.times


def reference(problem: Problem) -> Array:
    """Return the parameters after the first epoch on the reference backend in float64, which every peer must match."""
    peer = Bpgpu(problem, "numpy", "float64")
    peer.epoch()
    return peer.parameters()


class Products(Peer):
    """The floor: only the step's matrix products, into existing arrays, by the BLAS that bpgpu calls.

    They are called from compiled code, as in bpgpu: through NumPy they would cost the interpreter's time, and NumPy
    brings its own BLAS. bpgpu gives each of its threads a share of a product; here BLAS divides the product itself, or
    does not, whichever is faster.
    """

    needs = "bpgpu"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        rng, B = np.random.default_rng(0), problem.batch
        a = [problem.X[:B], *(rng.standard_normal((B, n), np.float32) for n in problem.sizes[1:])]
        delta = [rng.standard_normal((B, n), np.float32) for n in problem.sizes]
        self.products = []  # (A, B, C) with C = A B
        for a_prev, W, d, d_prev in zip(a, problem.W, delta[1:], delta, strict=False):
            self.products += [(a_prev, W, np.empty_like(d)), (a_prev.T, d, np.empty_like(W))]
            if W is not problem.W[0]:
                self.products.append((d, W.T, np.empty_like(d_prev)))
        self.run = compiled_products(self.products, problem.steps)

    def epoch(self) -> None:
        self.run()

    def check(self, expected: Array) -> None:
        """Raise WrongResult unless each product agrees with NumPy's; there is no training to check here."""
        for A, B, C in self.products:
            if not np.allclose(C, A @ B, rtol=1e-3, atol=1e-3 * A.shape[1] ** 0.5):
                raise WrongResult(f"a product of {A.shape} and {B.shape} differs from NumPy's")

    def measure(self, seconds: float) -> list[float]:
        from threadpoolctl import threadpool_limits

        divided = clock(self.epoch, seconds / 2)
        with threadpool_limits(1, "blas"):
            alone = clock(self.epoch, seconds / 2)
        return min(divided, alone, key=statistics.median)

    def facts(self) -> dict[str, Any]:
        A, B, C = np.ones((3, LARGE, LARGE), np.float32)
        times = clock(compiled_products([(A, B, C)], 1), 0.5)
        return {"large_gemm_flops_per_second": 2 * LARGE**3 / statistics.median(times)}


def compiled_products(products: list[tuple[Array, Array, Array]], times: int) -> Callable[[], None]:
    """Return a function that computes C = A B for each entry `times` times, by the products of bpgpu's engine."""
    from numba import njit

    from bpgpu.backends.cpu.blas import blas
    from bpgpu.kernels.cpu.step import gemm

    def matrix(x: Array) -> tuple[int, int, int]:  # transposed or not, address, numbers in a row
        transposed = not x.flags.c_contiguous
        return int(transposed), x.ctypes.data, (x.T if transposed else x).shape[1]

    # For each product: op(A), op(B), C and m, n, k.
    table = np.array([[*matrix(A), *matrix(B), *matrix(C)[1:], *A.shape, B.shape[1]] for A, B, C in products], np.int64)
    one, like, function = np.float32(1), products[0][2], blas().gemm[np.dtype(np.float32)]

    @njit
    def run(table, times, function, one, like):  # type: ignore[no-untyped-def]
        for _ in range(times):
            for i in range(len(table)):
                ta, a, lda, tb, b, ldb, c, ldc, m, k, n = table[i]
                gemm(function, ta, tb, one, a, lda, b, ldb, one - one, c, ldc, m, n, k, like)

    return lambda: run(table, times, function, one, like)


class NumPyLoop(Peer):
    """A loop written by hand."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.W, self.b = ([x.copy() for x in given] for given in (problem.W, problem.b))
        n_L = problem.sizes[-1]
        self.batches = problem.batches(
            problem.X, problem.targets if n_L == 1 else np.eye(n_L, dtype=np.float32)[problem.y]
        )
        self.t = 0
        self.m, self.v = ([np.zeros_like(p) for p in (*self.W, *self.b)] for _ in range(2))

    def parameters(self) -> Array:
        return flat([*self.W, *self.b])

    def epoch(self) -> None:
        for x, y in self.batches:
            dW, db = self.gradients(x, y)
            update = self.adam if self.problem.optimizer == "Adam" else self.sgd
            update([*self.W, *self.b], [*dW, *db])

    def gradients(self, x: Array, y: Array) -> tuple[list[Array], list[Array]]:
        a = [x]
        for W, b in zip(self.W[:-1], self.b[:-1], strict=True):
            a.append(np.maximum(a[-1] @ W + b, 0))
        z = a[-1] @ self.W[-1] + self.b[-1]
        if z.shape[1] == 1:
            a_L = 1 / (1 + np.exp(-z))
        else:
            exp = np.exp(z - z.max(axis=1, keepdims=True))
            a_L = exp / exp.sum(axis=1, keepdims=True)
        delta = (a_L - y) / len(x)
        dW, db = [], []
        for l in reversed(range(len(self.W))):
            dW.append(a[l].T @ delta)
            db.append(delta.sum(axis=0))
            if l:
                delta = (delta @ self.W[l].T) * (a[l] > 0)
        return dW[::-1], db[::-1]

    def sgd(self, parameters: list[Array], gradients: list[Array]) -> None:
        for p, g in zip(parameters, gradients, strict=True):
            p -= self.problem.rate * g

    def adam(self, parameters: list[Array], gradients: list[Array]) -> None:
        self.t += 1
        rate1, rate2 = 1 - BETA1**self.t, 1 - BETA2**self.t
        for p, g, m, v in zip(parameters, gradients, self.m, self.v, strict=True):
            m *= BETA1
            m += (1 - BETA1) * g
            v *= BETA2
            v += (1 - BETA2) * g * g
            p -= self.problem.rate * (m / rate1) / (np.sqrt(v / rate2) + EPSILON)


class ScikitLearn(Peer):
    """`MLPClassifier.partial_fit`, which is one epoch."""

    needs = "sklearn"

    def __init__(self, problem: Problem) -> None:
        from sklearn.neural_network import MLPClassifier

        super().__init__(problem)
        self.net = MLPClassifier(
            problem.sizes[1:-1],
            solver=problem.optimizer.lower(),
            alpha=0,
            batch_size=problem.batch,
            learning_rate_init=problem.rate,
            shuffle=False,
            momentum=0,
            nesterovs_momentum=False,
        )
        # The first call creates the parameters; ours replace them, and without an optimizer the next call creates one.
        first = slice(problem.batch)
        self.net.partial_fit(problem.X[first], problem.y[first], classes=np.arange(max(problem.sizes[-1], 2)))
        self.net.coefs_, self.net.intercepts_ = ([x.copy() for x in given] for given in (problem.W, problem.b))
        del self.net._optimizer

    def epoch(self) -> None:
        self.net.partial_fit(self.problem.X, self.problem.y)

    def parameters(self) -> Array:
        return flat([*self.net.coefs_, *self.net.intercepts_])


class Torch(Peer):
    """Eager; the optimizers are fused."""

    needs = "torch"
    compiled = False

    def __init__(self, problem: Problem) -> None:
        import torch

        super().__init__(problem)
        layers: list[Any] = []
        for W, b in zip(problem.W, problem.b, strict=True):
            linear = torch.nn.Linear(*W.shape)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(W.T.copy()))
                linear.bias.copy_(torch.from_numpy(b))
            layers += [linear, torch.nn.ReLU()]
        self.linear = layers[::2]
        net, functional = torch.nn.Sequential(*layers[:-1]), torch.nn.functional
        one = problem.sizes[-1] == 1
        cost = functional.binary_cross_entropy_with_logits if one else functional.cross_entropy

        def forward(x: Any, y: Any) -> Any:
            return cost(net(x), y)

        self.cost = torch.compile(forward) if self.compiled else forward
        self.optimizer = getattr(torch.optim, problem.optimizer)(net.parameters(), lr=problem.rate, fused=True)
        y = torch.from_numpy(problem.targets)
        self.batches = problem.batches(torch.from_numpy(problem.X), y if one else y.long())

    def epoch(self) -> None:
        for x, y in self.batches:
            self.optimizer.zero_grad(set_to_none=True)
            self.cost(x, y).backward()
            self.optimizer.step()

    def parameters(self) -> Array:
        return flat(
            [*(l.weight.detach().numpy().T for l in self.linear), *(l.bias.detach().numpy() for l in self.linear)]
        )


class TorchCompile(Torch):
    """Forward and backward by torch.compile."""

    compiled = True


class Jax(Peer):
    """Each step compiled."""

    needs = "jax"

    def __init__(self, problem: Problem) -> None:
        import jax
        import jax.numpy as jnp

        super().__init__(problem)
        self.jax, each = jax, jax.tree_util.tree_map

        def cost(parameters: Any, a: Any, y: Any) -> Any:
            for W, b in parameters[:-1]:
                a = jax.nn.relu(a @ W + b)
            W, b = parameters[-1]
            z = a @ W + b
            if problem.sizes[-1] == 1:
                return (jax.nn.softplus(z) - y * z).mean()
            return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1).mean()

        def step(state: Any, x: Any, y: Any) -> Any:
            p, m, v, t = state
            g = jax.grad(cost)(p, x, y)
            if problem.optimizer == "SGD":
                return each(lambda p, g: p - problem.rate * g, p, g), m, v, t
            t = t + 1
            m = each(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, g)
            v = each(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, g)
            rate1, rate2 = 1 - BETA1**t, 1 - BETA2**t

            def change(p: Any, m: Any, v: Any) -> Any:
                return p - problem.rate * (m / rate1) / (jnp.sqrt(v / rate2) + EPSILON)

            return each(change, p, m, v), m, v, t

        p = [(jnp.asarray(W), jnp.asarray(b)) for W, b in zip(problem.W, problem.b, strict=True)]
        zeros = [each(jnp.zeros_like, p if problem.optimizer == "Adam" else []) for _ in range(2)]
        self.state = p, *zeros, jnp.float32(0)
        self.compile(step, [tuple(map(jnp.asarray, batch)) for batch in problem.batches(problem.X, problem.targets)])

    def compile(self, step: Any, batches: list[tuple[Any, Any]]) -> None:
        compiled = self.jax.jit(step, donate_argnums=0)

        def epoch(state: Any) -> Any:
            for x, y in batches:
                state = compiled(state, x, y)
            return state

        self.train = epoch

    def epoch(self) -> None:
        self.state = self.jax.block_until_ready(self.train(self.state))

    def parameters(self) -> Array:
        W, b = zip(*self.state[0], strict=True)
        return flat([*W, *b])


class JaxScan(Jax):
    """A whole epoch compiled, by `lax.scan`."""

    def compile(self, step: Any, batches: list[tuple[Any, Any]]) -> None:
        jax = self.jax
        data = tuple(map(jax.numpy.stack, zip(*batches, strict=True)))

        def epoch(state: Any, data: Any) -> Any:
            return jax.lax.scan(lambda state, batch: (step(state, *batch), None), state, data)[0]

        compiled = jax.jit(epoch, donate_argnums=0)
        self.train = lambda state: compiled(state, data)


PEERS: dict[str, type[Peer]] = {
    "bpgpu": Bpgpu,
    "products": Products,
    "numpy": NumPyLoop,
    "sklearn": ScikitLearn,
    "torch": Torch,
    "torch-compile": TorchCompile,
    "jax": Jax,
    "jax-scan": JaxScan,
}


def thread_pools() -> Iterator[str]:
    """Yield the BLAS libraries and other thread pools of this process."""
    from threadpoolctl import threadpool_info

    for pool in threadpool_info():
        facts = [pool["internal_api"], pool["version"], pool.get("architecture"), f"{pool['num_threads']} threads"]
        folder = Path(pool["filepath"]).parent.name
        yield " ".join(filter(None, facts)) + f" ({folder})"


def main(network: str, optimizer: str, name: str, seconds: str, expected: str, threads: str) -> None:
    """Check a peer, time it and print the result as the last line; 0 threads leave the choice to the library."""
    if int(threads) and hasattr(os, "sched_setaffinity"):  # JAX takes no number, but counts the processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    peer = PEERS[name](Problem(network, optimizer))
    peer.epoch()
    peer.check(np.load(expected))
    epochs = peer.measure(float(seconds))
    found = {"seconds": statistics.median(epochs) / peer.problem.steps, "epochs": len(epochs)}
    print(json.dumps(found | peer.facts() | {"pools": list(thread_pools())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
