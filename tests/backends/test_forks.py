"""A fork while other threads of the process train, compile or import: its child can do all of that too."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

import bpgpu
from bpgpu import forks
from bpgpu.backends import sums
from bpgpu.backends.cpu import engine as numba_backend
from bpgpu.backends.cpu.blas_threads import BlasThreads, blas_threads

pytestmark = pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="processes are not forked here")
SECONDS = 60  # after which a child hangs


def in_child(work):
    """Return what `work` returns in a child process."""
    context = multiprocessing.get_context("fork")
    there, here = context.Pipe()
    child = context.Process(target=lambda: here.send(work()))
    child.start()
    try:
        assert there.poll(SECONDS), "the child hangs"
        return there.recv()
    finally:
        child.kill()
        child.join()


@pytest.fixture
def held():
    """Return a function that holds a context in another thread, from when it returns to the end of the test."""
    leave, threads = threading.Event(), []

    def hold(context):
        entered = threading.Event()

        def stay():
            with context:
                entered.set()
                leave.wait()

        threads.append(threading.Thread(target=stay))
        threads[-1].start()
        entered.wait()

    yield hold
    leave.set()
    for thread in threads:
        thread.join()


def fit(backend):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 20)), rng.integers(0, 3, 40)
    net = bpgpu.MLP([20, 30, 3], ["relu", "softmax"], "cross_entropy", backend=backend)
    net.fit(X, y, epochs=2)
    return net.parameters.tobytes()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_blas_is_free_again_in_the_child_of_a_process_that_trains(backend, held):
    from threadpoolctl import threadpool_limits

    expected = fit(backend)
    with threadpool_limits(2, user_api="blas"):
        held(blas_threads().at_most(1))
        assert set(blas_threads().now()) == {1}
        now, outside, parameters = in_child(lambda: (blas_threads().now(), blas_threads().outside(), fit(backend)))
        assert set(now) == set(outside) == {2}
        assert parameters == expected
        assert set(blas_threads().now()) == {1}


def test_a_fork_itself_leaves_blas_alone(held, monkeypatch):
    """A thread that is not in the child may hold a lock of the library: calling it there could hang any child."""
    threads = blas_threads()
    held(threads.at_most(1))
    calls = []
    apply = threads._apply
    monkeypatch.setattr(threads, "_apply", lambda *args: (calls.append(1), apply(*args)))

    def work():
        at_once = len(calls)
        threads.now()
        threads.now()
        return at_once, len(calls)

    assert in_child(work) == (0, 1)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_lock_of_blas_does_not_stay_closed(backend, held):
    fit(backend)
    held(blas_threads()._lock)
    in_child(lambda: fit(backend))


def test_what_the_forking_thread_holds_its_child_holds_and_lets_go():
    from threadpoolctl import threadpool_limits

    threads = blas_threads()

    def leave():
        before = threads.now()
        hold.__exit__(None, None, None)
        return before, threads.now()

    with threadpool_limits(2, user_api="blas"):
        hold = threads.at_most(1)
        with hold:
            before, after = in_child(leave)
        assert set(before) == {1} and set(after) == {2}


def compiling(work, monkeypatch):
    with forks.whole:
        work()


def setting_threads(work, monkeypatch):
    threads = BlasThreads()
    monkeypatch.setattr(threads, "_before", [2])
    monkeypatch.setattr(threads, "_libraries", [SimpleNamespace(num_threads=2, set_num_threads=lambda n: work())])
    with threads.at_most(1):
        pass


def multiplying(work, monkeypatch):
    x = np.ones((2, 2))
    sums.product(SimpleNamespace(matmul=lambda x, y, out: work()), x, x, out=x)


def an_epoch(work, monkeypatch):
    run = numba_backend.Prepared.run
    monkeypatch.setattr(numba_backend.Prepared, "run", lambda *args: (work(), run(*args)))
    fit("numba")


@pytest.mark.parametrize("inside", [compiling, setting_threads, multiplying, an_epoch])
def test_a_fork_waits_for(inside, monkeypatch):
    entered, forked = threading.Event(), threading.Event()
    late = []

    def work():
        entered.set()
        late.append(forked.wait(0.0 if late else 0.3))

    worker = threading.Thread(target=inside, args=(work, monkeypatch))
    worker.start()
    assert entered.wait(SECONDS)
    assert in_child(lambda: len(late)) == 1
    assert late[0] is False, "the fork came only when that was done"
    forked.set()
    worker.join()
    for lock in (forks.whole, forks.in_blas()):  # as before it
        with lock:
            pass


def forks_beside(*pieces):
    """Fork 30 times while a thread goes from one to the next of each piece of work; return how many pieces it did.

    None where a fork has lost its patience, of two seconds.
    """
    done, stop = [], threading.Event()

    def repeat(piece):
        while not stop.is_set():
            piece()
            done.append(1)

    workers = [threading.Thread(target=repeat, args=(piece,), daemon=True) for piece in pieces]
    for worker in workers:
        worker.start()
    meanwhile = 0
    for _ in range(30):
        before, start = len(done), time.monotonic()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        meanwhile += len(done) - before
        os.waitpid(pid, 0)
        if time.monotonic() - start >= 2:
            return None
    stop.set()
    for worker in workers:
        worker.join()
    return meanwhile


def test_threads_that_go_from_product_to_product_let_a_fork_come(monkeypatch):
    monkeypatch.setattr(forks, "_PATIENCE", 2)

    def product():
        with forks.in_blas():
            time.sleep(0.02)

    assert forks_beside(product, product) < 120  # it waits for one of each


def test_a_thread_that_waits_for_a_fork_does_not_end_all(monkeypatch):
    """One that sets the threads of BLAS with its lock in hand, for which one waits that compiles."""
    monkeypatch.setattr(forks, "_PATIENCE", 2)
    lock = threading.Lock()

    def set_threads():
        with lock, forks.in_blas():
            time.sleep(0.001)

    def compile_something():
        with forks.whole, lock:
            time.sleep(0.001)

    assert forks_beside(set_threads, compile_something) is not None


def test_the_thread_that_forks_does_not_wait_for_itself():
    with forks.whole, forks.in_blas():
        assert in_child(lambda: fit("numba")) == fit("numba")


@pytest.mark.parametrize("holds", [lambda: forks.whole, forks.in_blas], ids=["whole", "in_blas"])
def test_patience_ends(holds, held, monkeypatch):
    """The child can work, and can fork, as if what is held for so long were nothing of ours."""
    monkeypatch.setattr(forks, "_PATIENCE", 0.1)

    class Held:
        def __enter__(self):
            self.lock = holds()
            self.lock.__enter__()

        def __exit__(self, *error):
            self.lock.__exit__(*error)

    held(Held())
    expected = fit("numpy")

    def work():
        monkeypatch.setattr(forks, "_PATIENCE", SECONDS * 2)
        with forks.whole:
            return in_child(lambda: fit("numpy"))

    assert in_child(work) == expected
    assert fit("numpy") == expected


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_children_of_a_process_that_trains_in_threads(backend):
    """In a process of its own, which has just begun to import and load what it needs."""
    code = f"""
import os, threading, time, numpy as np, bpgpu
rng = np.random.default_rng(0)
X, y = rng.normal(size=(400, 64)).astype("f4"), rng.integers(0, 3, 400)
stop = False

def fit():
    net = bpgpu.MLP([64, 256, 3], ["relu", "softmax"], "cross_entropy", backend={backend!r})
    net.fit(X, y, epochs=3, validation_data=(X, y))

def work():
    while not stop:
        fit()

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
hung = 0
for _ in range(25):
    pid = os.fork()
    if pid == 0:
        fit()
        os._exit(0)
    end = time.monotonic() + 30
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            hung += 1
            break
        time.sleep(0.01)
stop = True
for thread in threads:
    thread.join()
print(hung)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=280)
    assert run.stdout.split() == ["0"], run.stderr


# Threads of BLAS without a fork


class Library:
    def __init__(self, path, threads):
        self.filepath, self.num_threads = path, threads

    def set_num_threads(self, threads):
        self.num_threads = threads


@pytest.fixture
def libraries(monkeypatch):
    """Return the libraries that are found: a list to add to."""
    import threadpoolctl

    found = [Library("a", 8)]

    class Controller:
        def select(self, user_api):
            self.lib_controllers = list(found)
            return self

    monkeypatch.setattr(threadpoolctl, "ThreadpoolController", Controller)
    return found


def test_holds_that_overlap_leave_what_was_before(libraries):
    """Whoever ends first: what the second had found is not what the user had set."""
    threads = BlasThreads()
    first, second = threads.at_most(2), threads.at_most(1)
    first.__enter__()
    assert libraries[0].num_threads == 2
    second.__enter__()
    assert libraries[0].num_threads == 1
    first.__exit__(None, None, None)
    assert libraries[0].num_threads == 1 and threads.outside() == [8]
    second.__exit__(None, None, None)
    assert libraries[0].num_threads == 8


def test_no_hold_gives_more_threads_than_there_were(libraries):
    with BlasThreads().at_most(99):
        assert libraries[0].num_threads == 8


def test_a_library_that_is_loaded_meanwhile_is_held_too(libraries):
    threads = BlasThreads()
    with threads.at_most(1):
        libraries.append(Library("b", 4))
        threads.find()
        assert threads.now() == [1, 1] and threads.outside() == [8, 4]
    assert threads.now() == [8, 4]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_fits_side_by_side_leave_blas_as_it_was(backend):
    from threadpoolctl import threadpool_limits

    fit(backend)
    with threadpool_limits(2, user_api="blas"):
        workers = [threading.Thread(target=lambda: [fit(backend) for _ in range(10)]) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert set(blas_threads().now()) == {2}
