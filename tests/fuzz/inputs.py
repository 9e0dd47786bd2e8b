"""What a stranger may hand over in the place of a matrix: kinds, layouts, shapes and contents, good and bad."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from scipy import sparse

Array = np.ndarray[Any, Any]


def _strided(x: Array) -> Array:
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


def _misaligned(x: Array) -> Array:
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    view = raw.view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


# Every one holds the same numbers, up to the rounding of its dtype.
KINDS: dict[str, Callable[[Array], Any]] = {
    "as it is": lambda x: x,
    "float32": lambda x: x.astype(np.float32),
    "float16": lambda x: x.astype(np.float16),
    "long double": lambda x: x.astype(np.longdouble),
    "big-endian": lambda x: x.astype(">f8"),
    "integers": lambda x: np.rint(x).astype(np.int64),
    "bytes": lambda x: np.abs(np.rint(x)).astype(np.uint8),
    "bool": lambda x: x > 0,
    "Fortran": np.asfortranarray,
    "strided": lambda x: _strided(x) if x.ndim and x.size else x,
    "reversed": lambda x: x[::-1].copy()[::-1] if x.ndim else x,
    "read-only": _read_only,
    "misaligned": lambda x: _misaligned(x) if x.size else x,
    "one row for all": lambda x: np.broadcast_to(x[:1], x.shape) if x.ndim and len(x) else x,
    "list": lambda x: x.tolist(),
    "table": lambda x: pd.DataFrame(x) if x.ndim == 2 else x,
    # What is refused everywhere.
    "text": lambda x: x.astype(str),
    "objects": lambda x: x.astype(object),
    "complex": lambda x: x + 1j,
    "None": lambda x: None,
    "masked": lambda x: np.ma.masked_array(x, x > 0) if x.ndim else x,
}
GOOD_KINDS = list(KINDS)[: list(KINDS).index("text")]

SHAPES: dict[str, Callable[[Array], Array]] = {
    "a column more": lambda x: np.concatenate([x, x[..., :1]], axis=-1),
    "a column less": lambda x: x[..., :-1],
    "a row more": lambda x: np.concatenate([x, x[:1]]),
    "a row less": lambda x: x[:-1],
    "one column": lambda x: x[..., :1],
    "no rows": lambda x: x[:0],
    "flat": np.ravel,
    "a dimension more": lambda x: x[None],
    "transposed": np.transpose,
    "a number": lambda x: np.asarray(0.5),
    "one row": lambda x: x[:1],
}
CONTENTS: dict[str, float] = {"NaN": np.nan, "infinity": -np.inf, "huge": 1e38, "beyond float32": 1e39, "tiny": 1e-310}


def _damaged(change: Callable[[Any], None]) -> Callable[[Any], Any]:
    def damage(x: Any) -> Any:
        x = x.copy()
        change(x)
        return x

    return damage


def _set(name: str, index: Any, value: Any) -> Callable[[Any], Any]:
    def change(x: Any) -> None:
        array = getattr(x, name)
        if array.size:
            array[index] = value

    return _damaged(change)


def _cut(x: Any) -> None:
    x.data, x.indices = x.data[:-1], x.indices[:-1]


def _unsorted(x: Any) -> Any:
    order = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(x.indptr, x.indptr[1:], strict=False)] or [[]])
    return type(x)((x.data[order.astype(int)], x.indices[order.astype(int)], x.indptr), shape=x.shape)


SPARSE: dict[str, Callable[[Any], Any]] = {
    "csr": lambda x: x,
    "csc": lambda x: x.tocsc(),
    "coo": lambda x: x.tocoo(),
    "matrix": sparse.csr_matrix,
    "int64": lambda x: type(x)((x.data, x.indices.astype(np.int64), x.indptr.astype(np.int64)), shape=x.shape),
    "float32": lambda x: x.astype(np.float32),
    "unsorted": _unsorted,
    "twice": lambda x: x.tocoo().reshape(x.shape) if not x.nnz else _twice(x),
}
# What sends compiled code astray that believes it, such as SciPy's own.
DAMAGED: dict[str, Callable[[Any], Any]] = {
    "last 0": _set("indptr", -1, 0),
    "first 1": _set("indptr", 0, 1),
    "not ascending": _set("indptr", slice(1, 2), 10**6),
    "negative indptr": _set("indptr", slice(1, 2), -3),
    "index outside": _set("indices", 0, 10**6),
    "negative index": _set("indices", -1, -1),
    "cut": _damaged(_cut),
}


def _twice(x: Any) -> Any:
    coo = x.tocoo()
    return sparse.coo_array(
        (np.concatenate([coo.data, coo.data]), tuple(np.concatenate([i, i]) for i in coo.coords)), shape=x.shape
    ).tocsr()


def compressed(x: Array) -> Any:
    """Return a matrix as CSR, without its smaller entries."""
    return sparse.csr_array(np.where(np.abs(x) > 0.5, x, 0.0))


@st.composite
def matrices(
    draw: Any, x: Array, *, hostile: bool = True, may_be_sparse: bool = False, may_be_damaged: bool = False
) -> Any:
    """Draw something made of `x`: most often one that holds the same numbers, sometimes one that must be refused."""
    fate = draw(st.integers(0, 9))
    if fate < 5 or not hostile:
        if may_be_sparse and draw(st.booleans()):
            return SPARSE[draw(st.sampled_from(sorted(SPARSE)))](compressed(x))
        return KINDS[draw(st.sampled_from(GOOD_KINDS))](x)
    if fate == 5:
        return KINDS[draw(st.sampled_from(sorted(KINDS)))](x)
    if fate == 6 and may_be_damaged:
        return DAMAGED[draw(st.sampled_from(sorted(DAMAGED)))](compressed(x))
    if fate <= 8 and x.ndim:
        return SHAPES[draw(st.sampled_from(sorted(SHAPES)))](x)
    if x.ndim and x.size:
        x = x.copy()
        x.flat[draw(st.integers(0, x.size - 1))] = CONTENTS[draw(st.sampled_from(sorted(CONTENTS)))]
    return x


def content(value: Any) -> Any:
    """Return what must not change of something that is handed over."""
    if sparse.issparse(value):
        names = [name for name in ("data", "indices", "indptr", "row", "col") if hasattr(value, name)]
        return [np.array(getattr(value, name)).tobytes() for name in names]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tobytes()
    return repr(value)
