"""The stand-in for CuPy on trial: its rules, what it counts, and that it has nothing that the real CuPy lacks."""

import gc
import importlib
import importlib.util
import sys
import warnings

import numpy as np
import pytest

import bpgpu
from tests.simgpu import device

if not device.available():
    pytest.skip("kernels are simulated on Linux with g++ only", allow_module_level=True)

from tests.simgpu import cuda
from tests.simgpu import cupy as module
from tests.simgpu.conformance import differences, public


@pytest.fixture
def cp(monkeypatch):
    yield module.install(monkeypatch)
    cuda._reset()


def spent(cp, work):
    """Return the counters that some work moves."""
    cp.counters.reset()
    work()
    return {name: value for name, value in vars(cp.counters).items() if value}


# The module


def test_install_gives_import_a_fresh_module_with_nothing_else_in_it(cp):
    cp.empty(1)
    cp.settings.lazy = True
    with pytest.MonkeyPatch.context() as patch:
        again = module.install(patch)
        assert importlib.import_module("cupy") is again
        assert importlib.import_module("cupy.cuda") is again.cuda
        assert sys.modules["cupy.cuda.runtime"] is again.cuda.runtime
        assert (again.counters.allocations, again.settings.lazy) == (0, False)
    assert not hasattr(cp, "np") and not hasattr(cp, "wrap") and not hasattr(cp.cuda, "_pool")


def test_no_backend_on_the_simulated_device_outlives_its_test():
    made = []
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            module.install(patch)
            made.append(bpgpu.get_backend("cupy"))
            assert bpgpu.get_backend("cupy") is made[-1]
    assert made[0] is not made[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", None)
        assert bpgpu.get_backend() not in made


# Not NumPy


def test_no_way_into_numpy(cp):
    x = cp.zeros((2, 3), np.float32)
    assert not isinstance(x, np.ndarray)
    for convert in (np.asarray, np.array, np.ascontiguousarray, lambda x: np.concatenate([x, x])):
        with pytest.raises(
            TypeError, match=r"Implicit conversion to a NumPy array is not allowed. Please use `.get\(\)`"
        ):
            convert(x)
    assert type(x.get()) is np.ndarray


@pytest.mark.parametrize(
    "mix",
    [
        lambda cp, x, h: x + h,
        lambda cp, x, h: h + x,
        lambda cp, x, h: x.__iadd__(h),
        lambda cp, x, h: h.__iadd__(x),
        lambda cp, x, h: np.multiply(x, x, out=h),
        lambda cp, x, h: cp.multiply(x, h),
        lambda cp, x, h: cp.multiply(x, x, out=h),
        lambda cp, x, h: cp.where(x > 0, h, x),
        lambda cp, x, h: cp.matmul(x, h),
        lambda cp, x, h: cp.matmul(x, x, out=h),
        lambda cp, x, h: x @ h,
        lambda cp, x, h: cp.sum(h),
        lambda cp, x, h: x[np.array([0])],
        lambda cp, x, h: x[[0, 1]],
    ],
)
def test_mixing_with_numpy_arrays_is_an_error(cp, mix):
    with pytest.raises(TypeError, match="Unsupported"):
        mix(cp, cp.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32))


def test_assigning_a_numpy_array_is_an_error(cp):
    with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray cannot be used for fill"):
        cp.zeros(3)[...] = np.zeros(3)


def test_numpy_scalars_and_functions_stay_on_the_device(cp):
    x = cp.full((2, 3), 4, np.float32)
    assert spent(cp, lambda: np.float32(2) * x).keys() == {"launches", "allocations", "bytes_allocated"}
    assert isinstance(np.sqrt(x), cp.ndarray)
    assert (np.sqrt(x).get() == 2).all()


def test_types_follow_numpy(cp):
    x = cp.zeros(3, np.float32)
    assert (x * 2.5).dtype == (2 / (x + 1)).dtype == (x**2).dtype == np.float32
    assert (x * np.float64(2)).dtype == np.float64
    assert (x > 0).dtype == cp.isfinite(x).dtype == x.all().dtype == bool
    assert x.sum().dtype == x.max().dtype == np.float32
    assert cp.arange(3).sum().dtype == np.int64
    with pytest.raises(TypeError, match="Cannot cast"):
        cp.arange(3).__iadd__(0.5)


# Like NumPy


def test_values_are_numpys(cp):
    h = np.random.default_rng(0).normal(size=(4, 5))
    x = cp.asarray(h)
    column = cp.asarray(h[:, :1])
    pairs = [
        ((x - 2 * x * x) / (x + 9), (h - 2 * h * h) / (h + 9)),
        (-abs(x), -abs(h)),
        (x * column, h * h[:, :1]),
        (x.sum(axis=0), h.sum(axis=0)),
        (x.max(axis=1, keepdims=True), h.max(axis=1, keepdims=True)),
        (cp.exp(cp.maximum(x, 0.5)), np.exp(np.maximum(h, 0.5))),
        (cp.where(x > 0, x, 0.0), np.where(h > 0, h, 0)),
        (x @ x.T, h @ h.T),
        (x[1:3, ::2], h[1:3, ::2]),
        (x[:, None, 1], h[:, None, 1]),
        (x[cp.asarray([3, 0, 3])], h[[3, 0, 3]]),
        (x.T.reshape(2, 10), h.T.reshape(2, 10)),
        (x.ravel().view(np.int64), h.ravel().view(np.int64)),
        (x.astype(np.float32), h.astype(np.float32)),
        (cp.isfinite(x / 0), np.zeros((4, 5), bool)),
    ]
    for found, expected in pairs:
        assert found.shape == expected.shape and found.dtype == expected.dtype
        np.testing.assert_allclose(found.get(), expected, rtol=1e-12)
    assert len(x) == 4 and [float(row[0]) for row in x] == list(h[:, 0])


def test_views_share_memory_and_their_address_says_so(cp):
    x = cp.zeros((4, 6))
    assert x.data.ptr % 512 == 0
    assert x[1:, 2].data.ptr == x.data.ptr + 8 * 8
    assert x[1:, 2].strides == (48,) and not x[1:, 2].flags.c_contiguous
    assert x.T.flags.f_contiguous and not x.T.flags.c_contiguous
    x[1:, 2] = 7
    x.T[0] = cp.arange(4)
    x[3, 5] = 1.5
    expected = np.zeros((4, 6))
    expected[1:, 2], expected[:, 0], expected[3, 5] = 7, range(4), 1.5
    np.testing.assert_array_equal(x.get(), expected)


def test_out_is_checked(cp):
    x = cp.zeros((2, 3))
    for out in (cp.empty(3), cp.empty((1, 2, 3))):
        with pytest.raises(ValueError, match="output"):
            cp.sqrt(x, out=out)
    with pytest.raises(ValueError, match="invalid size"):
        cp.matmul(x, x.T, out=cp.empty((2, 3)))
    with pytest.raises(ValueError, match="broadcast"):
        x[...] = cp.zeros(4)


# Counting

ONE = {"launches": 1}
NEW = {"launches": 1, "allocations": 1, "bytes_allocated": 24}
DOWN = {"synchronisations": 1, "transfers_d2h": 1, "bytes_d2h": 24}


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda cp, x: cp.empty(3), {"allocations": 1, "bytes_allocated": 24}),
        (lambda cp, x: cp.zeros(3), NEW),
        (lambda cp, x: x[1:].reshape(2, 1).T.ravel(), {}),
        (lambda cp, x: x + 1, NEW),
        (lambda cp, x: x.__iadd__(1), ONE),
        (lambda cp, x: cp.sqrt(x, out=x), ONE),
        (lambda cp, x: x.fill(1), ONE),
        (lambda cp, x: x.__setitem__(0, 1), ONE),
        (lambda cp, x: x[::2].astype(np.float32), NEW | {"bytes_allocated": 8}),
        (lambda cp, x: cp.ascontiguousarray(x), {}),
        (lambda cp, x: cp.ascontiguousarray(x[::2]), NEW | {"bytes_allocated": 16}),
        (lambda cp, x: x.get(), DOWN),
        (lambda cp, x: cp.asnumpy(x), DOWN),
        (lambda cp, x: x.get(blocking=False), {"transfers_d2h": 1, "bytes_d2h": 24}),
        (lambda cp, x: float(x[0]), DOWN | {"bytes_d2h": 8}),
        (lambda cp, x: bool(x.all()), DOWN | NEW | {"bytes_d2h": 1, "bytes_allocated": 1}),
        (lambda cp, x: x[1].item(), DOWN | {"bytes_d2h": 8}),
        (lambda cp, x: x.set(np.zeros(3)), {"transfers_h2d": 1, "bytes_h2d": 24}),
        (
            lambda cp, x: cp.asarray(np.zeros(3)),
            {"transfers_h2d": 1, "bytes_h2d": 24, "allocations": 1, "bytes_allocated": 24},
        ),
        (lambda cp, x: cp.cuda.Stream().synchronize(), {"synchronisations": 1}),
        (lambda cp, x: cp.cuda.Event().synchronize(), {"synchronisations": 1}),
        (lambda cp, x: cp.cuda.Device().synchronize(), {"synchronisations": 1}),
        (lambda cp, x: cp.cuda.runtime.deviceSynchronize(), {"synchronisations": 1}),
        (lambda cp, x: cp.cuda.alloc_pinned_memory(5), {"pinned_allocations": 1}),
        (lambda cp, x: repr(x), {}),
    ],
)
def test_costs(cp, work, expected):
    x = cp.asarray(np.zeros(3))
    assert spent(cp, lambda: work(cp, x)) == expected


LAYOUTS = {
    "C": lambda cp: cp.ones((8, 8), np.float32),
    "F": lambda cp: cp.ones((8, 8), np.float32).T,
    "strided": lambda cp: cp.ones((8, 16), np.float32)[:, ::2],
    "float64": lambda cp: cp.ones((8, 8)),
}


@pytest.mark.parametrize(
    ("a", "b", "out", "copies"),
    [
        ("C", "C", "C", 0),
        ("F", "C", "C", 0),
        ("F", "F", "C", 0),
        ("strided", "C", "C", 1),
        ("strided", "strided", "C", 2),
        ("C", "C", "F", 1),
        ("C", "C", "strided", 1),
        ("C", "C", "float64", 1),
        ("C", "C", "overlap", 1),
    ],
)
def test_hidden_copies_of_matmul(cp, a, b, out, copies):
    a, b = LAYOUTS[a](cp), LAYOUTS[b](cp)
    target = a if out == "overlap" else LAYOUTS[out](cp)
    counted = spent(cp, lambda: cp.matmul(a, b, out=target))
    assert (target.get() == 8).all()
    assert (counted["log"], counted["launches"]) == (["cublas"], 1 + copies)
    assert counted.get("hidden_copies", 0) == counted.get("allocations", 0) == copies


def test_matmul_without_out_allocates_only_the_result(cp):
    x = cp.zeros((3, 2))
    assert spent(cp, lambda: x.T @ x) == NEW | {"log": ["cublas"], "bytes_allocated": 32}


# Memory


def test_fresh_memory_is_nan(cp):
    assert np.isnan(cp.empty((3, 3), np.float32).get()).all()
    assert (cp.empty(3, np.int32).get() == -1).all()
    assert (np.frombuffer(cp.cuda.alloc_pinned_memory(8), np.uint8) == 255).all()


def test_capacity(cp):
    cp.settings.capacity = 4096
    pool = cp.get_default_memory_pool()
    x = cp.empty(200, np.float64)
    assert (pool.used_bytes(), pool.free_bytes(), cp.cuda.runtime.memGetInfo()) == (2048, 0, (2048, 4096))
    with pytest.raises(cp.cuda.memory.OutOfMemoryError, match="Out of memory allocating 3,000 bytes") as error:
        cp.empty(3000, np.uint8)
    assert isinstance(error.value, MemoryError)
    view = x[1:]
    del x
    gc.collect()
    assert pool.used_bytes() == 2048  # a view keeps the memory
    del view
    gc.collect()
    # What is given back stays with the pool: it is free for us, and not for others.
    assert (pool.used_bytes(), pool.free_bytes(), cp.cuda.runtime.memGetInfo()) == (0, 2048, (2048, 4096))
    y = cp.empty(3000, np.uint8)
    assert y.nbytes == 3000
    del y
    gc.collect()
    z = cp.empty(1, np.uint8)
    assert (z.nbytes, pool.used_bytes(), pool.total_bytes()) == (1, 512, 3072)
    pool.free_all_blocks()
    assert pool.total_bytes() == 512


def test_pinned_memory_may_be_larger_than_asked_for(cp):
    memory = cp.cuda.alloc_pinned_memory(24)
    assert len(memory) >= 24
    host = np.frombuffer(memory, np.float64, 3)
    assert host.ctypes.data == memory.ptr and host.flags.writeable


# Conformance


class RealThing:
    """What `differences` is tried on."""

    size = property(lambda self: 1)

    def get(self, stream=None, order="C", *, blocking=True): ...

    def max(self):
        """max(self, axis=None, tuple where=(1, 2)) -> ndarray."""

    matmul = staticmethod(lambda *args, out=None: None)


def test_differences_are_found():
    class Fake:
        shape = property(lambda self: 1)
        max = property(lambda self: 1)

        def get(self, order="C", *, blocking=True, out=None): ...

        @property
        def size(self): ...

        def matmul(self, b, *, where=None): ...

    assert differences(Fake, RealThing, public(Fake), "x") == [
        "x.shape does not exist",
        "x.max is a method",
        "x.get: parameter order is not at place 0",
        "x.get has no parameter out",
        "x.matmul has no parameter where",
    ]
    assert differences(RealThing, RealThing, public(RealThing), "x") == []


@pytest.fixture(scope="module")
def real():
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("the comparison with the real CuPy needs it installed; a GPU it does not need")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it finds no CUDA
        return importlib.import_module("cupy")


def test_the_real_cupy_has_every_name_and_parameter(real):
    assert real.__version__.split(".")[0] == module.__version__.split(".")[0]
    names = {place: names.split() for place, names in module.NAMES.items()}
    assert differences(module, real, names[""], "cupy") == []
    assert differences(cuda, real.cuda, names["cuda"], "cupy.cuda") == []


def test_the_real_cupy_has_the_same_elementwise_functions(real):
    for name in module.NAMES[""].split():
        ours = getattr(module, name)
        if isinstance(ours, module.ufunc):
            theirs = getattr(real, name)
            assert isinstance(theirs, real.ufunc) and theirs.nin == ours.nin, name
            for keyword in ("out", "casting", "dtype"):
                assert f"{keyword}=" in theirs.__doc__.split("\n")[0], name


def test_the_real_cupy_has_every_operator(real):
    operators = [n for n in vars(module.ndarray) if n.startswith("__") and n not in ("__module__", "__weakref__")]
    assert len(operators) > 30
    assert [name for name in operators if not hasattr(real.ndarray, name)] == []
