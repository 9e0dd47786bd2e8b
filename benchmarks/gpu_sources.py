"""One source with the kernels of a file for many sets of formulas, which compiles in a fraction of the time of many.

Kernels that call no formula are in it once, before all formulas, so that the compiler itself would refuse one that
does. The others are in it once for each set, in a namespace of its own, under a name with the set's behind it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bpgpu.kernels.cuda import source as cuda_kernels

_KERNEL = re.compile(r"(__global__ void (?:__launch_bounds__\([^)]*\) )?)(\w+)(?=\()")
# A definition at the left margin, up to the next one; comments before it go with the one before.
_DEFINITION = re.compile(
    r"^(?:template\b[^\n]*\n)?(?:extern|__device__|struct)\b(?:[^\n]*\};?\n|.*?\n\};?\n)", re.DOTALL | re.MULTILINE
)
_NAME = re.compile(
    r"(?:template[^\n]*\n)?(?:struct (?:alignas\(\d+\) )?(\w+)|[^(]*?(?:__launch_bounds__\(\d+\) )?(\w+)\()"
)


def _calling(text: str, formulas: Iterable[str]) -> set[str]:
    """Return the definitions of a file that call one of the formulas, themselves or through another definition."""
    definitions = {match[0]: next(filter(None, _NAME.match(match[0]).groups())) for match in _DEFINITION.finditer(text)}
    names, found = set(formulas), set()
    while True:
        uses = re.compile(rf"\b(?:{'|'.join(sorted(names))})\b")
        more = {body for body in definitions if body not in found and names and uses.search(_without_comments(body))}
        if not more:
            return found
        found |= more
        names |= {definitions[body] for body in more}


def _without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", text)


def combined(
    file: str, dtype: np.dtype[Any], cases: Mapping[str, Mapping[str, str]]
) -> tuple[str, dict[str, tuple[str, str]]]:
    """Return one source for all cases.

    Parameters
    ----------
    file : str
        A key of `cuda_kernels.FORMULAS`.
    dtype : numpy.dtype
        The working type.
    cases : mapping of str to mapping of str to str
        The formulas of each case, as `cuda_kernels.module_source` takes them, by the name of the case, a C identifier.

    Returns
    -------
    source : str
        CUDA C++.
    kernels : dict of str to tuple of (str, str)
        Name in this source: the kernel's own name, and its case, "" for a kernel that calls no formula.
    """
    text = cuda_kernels._text(file)
    calling = _calling(text, cuda_kernels.FORMULAS[file])
    alone, names = text, {}
    for body in calling:
        alone = alone.replace(body, "\n" * body.count("\n"))
    rest = text
    for match in _DEFINITION.finditer(text):
        kernel = _KERNEL.search(match[0])
        if kernel and match[0] not in calling:
            names[kernel[2]] = (kernel[2], "")
            rest = rest.replace(match[0], "\n" * match[0].count("\n"))
    whole = ""
    for case, expressions in cases.items():
        source = cuda_kernels.module_source(file, dtype, expressions)
        head, formulas = source.split('#line 1 "common.cuh"\n')[0].split("\n", 1)
        if not whole:  # the type, and what all files share
            whole = f"{head}\n" + source.removeprefix(f"{head}\n{formulas}").removesuffix(f'#line 1 "{file}"\n{text}')
            whole += _in_namespace("without_formulas", f'#line 1 "{file}"\n{alone}')
        if calling:
            own = _KERNEL.sub(rf"\1\2__{case}", rest)
            names |= {f"{kernel}__{case}": (kernel, case) for _, kernel in _KERNEL.findall(rest)}
            whole += _in_namespace(f"case_{case}", f'{formulas}#line 1 "{file}"\n{own}')
    return whole, names


def _in_namespace(name: str, text: str) -> str:
    """Return the text in a namespace, as each has functions of the same names, and its kernels outside of it too."""
    kernels = "".join(f"using {name}::{kernel};\n" for _, kernel in _KERNEL.findall(text))
    return f"namespace {name} {{\n{text}\n}}\n{kernels}"
