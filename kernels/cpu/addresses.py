"""What the compiled CPU epoch is made of that Numba does not have: addresses, and calls through them.

Arrays of the plan come as addresses in one table of integers, so that neither depth nor width is part of a type; and
functions come as addresses too, so that one compiled epoch serves every formula and every BLAS.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# How the loops are compiled.
EXACT: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
SUMS: dict[str, Any] = {**EXACT, "fastmath": {"contract", "reassoc", "nsz"}}  # sums in any order, fixed once compiled
_INT, _BYTE, _BLAS_INT = ir.IntType(64), ir.IntType(8), ir.IntType(32)


@intrinsic
def pointer(typingctx: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to numbers of the array `like`."""
    target = types.CPointer(like.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(target))

    return target(address, like), codegen


@njit(inline="always")
def address(array):
    """Return where the first element of an array lies; signed, for Numba adds unsigned and signed to a float."""
    return np.int64(array.ctypes.data)


@njit(inline="always")
def matrix(address, rows, n, like):
    """Return the matrix that lies at an address."""
    return carray(pointer(address, like), (rows, n))


@njit(inline="always")
def vector(address, n, like):
    """Return the vector that lies at an address."""
    return carray(pointer(address, like), n)


@intrinsic
def _integer_pointer(typingctx: Any, address: Any) -> Any:
    target = types.CPointer(types.int32)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(target))

    return target(address), codegen


@njit(inline="always")
def integers(address, n):
    """Return the vector of int32 that lies at an address."""
    return carray(_integer_pointer(address), n)


@intrinsic
def call(typingctx: Any, address: Any, arguments: Any) -> Any:
    """Call the function at an address with a tuple of int64, addresses among them: they are passed like pointers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        given = cgutils.unpack_tuple(builder, args[1])
        function = ir.FunctionType(ir.VoidType(), [_INT] * len(given))
        builder.call(builder.inttoptr(args[0], function.as_pointer()), given)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), codegen


@intrinsic
def blas_gemm(typingctx, address, trans_a, trans_b, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc):
    """Call Fortran's ?gemm, whose arguments are all pointers, for matrices in column-major order."""
    real = alpha

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, *values = args
        given = []
        for value, kind in zip(values, "cciiirpipirpi", strict=True):
            if kind == "p":
                given.append(builder.inttoptr(value, _BYTE.as_pointer()))
                continue
            if kind == "c":
                transposed = builder.icmp_signed("!=", value, _INT(0))
                value = builder.select(transposed, _BYTE(ord("T")), _BYTE(ord("N")))
            elif kind == "i":
                value = builder.trunc(value, _BLAS_INT)
            slot = cgutils.alloca_once(builder, value.type)
            builder.store(value, slot)
            given.append(builder.bitcast(slot, _BYTE.as_pointer()))
        function = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer()] * len(given))
        builder.call(builder.inttoptr(address, function.as_pointer()), given)
        return context.get_dummy_value()

    i = types.int64
    return types.void(i, i, i, i, i, i, real, i, i, i, i, real, i, i), codegen
