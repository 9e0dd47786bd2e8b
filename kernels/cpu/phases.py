"""How threads share the CPU epoch: it goes in phases, and each part of a phase is done by whoever takes it first.

One thread leads: it begins a phase, and waits for all parts of it before the next. The others help, from when they come
until no phase has begun for a while. So nobody waits for a thread that has not come; and since it is the parts that are
fixed, not the threads, the number of threads that did come changes no bit.
"""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from bpgpu.kernels.cpu.addresses import call

_INT = ir.IntType(64)
# Entries of the shared integers, each in a cache line of its own: the phase; how many parts are done in all; whether an
# epoch is under way; how many threads were called to help, and how many have left; and of each part the last phase in
# which it was taken.
LINE = 8
PHASE, DONE, ON, CALLED, LEFT, TAKEN = (LINE * i for i in range(6))
_SPINS = 1000
# Turns given away between epochs before a helper leaves: some 200 us in which nobody wants its processor. What lies
# between two epochs is mostly over by then, and to come back takes 40.
_LINGER = 500


@intrinsic
def _add(typingctx: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _INT.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _load(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], _INT.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _store(typingctx: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], _INT.as_pointer()), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _replace(typingctx: Any, address: Any, old: Any, new: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = builder.inttoptr(args[0], _INT.as_pointer())
        found = builder.cmpxchg(where, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@njit(inline="always")
def switch(shared, on):
    """Say that an epoch begins, or ends."""
    _store(shared + 8 * ON, on)


@njit(inline="always")
def begin(shared):
    """Begin the next phase, whose parts may be taken from now on, and return it."""
    return _add(shared + 8 * PHASE, 1) + 1


@njit(inline="always")
def take(shared, part, phase):
    """Take a part of a phase; return whether nobody had."""
    where = shared + 8 * (TAKEN + part * LINE)
    return _load(where) == phase - 1 and _replace(where, phase - 1, phase)


@njit(inline="always")
def done(shared):
    """Say that a part that was taken is done."""
    _add(shared + 8 * DONE, 1)


@njit(inline="always")
def leave(shared):
    """Say that a thread does not help any longer."""
    _add(shared + 8 * LEFT, 1)


@njit
def wait_for_parts(shared, count, give_way):
    """Return when so many parts are done in all.

    `give_way` is the address of a function that lets others have the processor: the threads may be more than the
    processors that are free.
    """
    spins = 0
    while _load(shared + 8 * DONE) < count:
        spins += 1
        if spins > _SPINS:
            call(give_way, ())


@njit
def wait_for_phase(shared, phase, give_way):
    """Return the phase that has begun after this one, or 0 if there is no epoch for a while."""
    spins, idle = 0, 0
    while _load(shared + 8 * PHASE) == phase:
        spins += 1
        if spins > _SPINS:
            call(give_way, ())
            idle = 0 if _load(shared + 8 * ON) else idle + 1
        if idle > _LINGER:
            return 0
    return _load(shared + 8 * PHASE)
