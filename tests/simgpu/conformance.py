"""What a stand-in has that the real thing lacks: names, and parameters by name and place."""

import inspect
import re
from types import ModuleType, SimpleNamespace
from typing import Any

KEYWORD, BOTH = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
CHECKED_SPECIAL = ("__dlpack__", "__dlpack_device__", "__cuda_array_interface__")


def differences(fake: Any, real: Any, names: list[str], where: str) -> list[str]:
    """Return, in words, what of `names` in a module or class the real one has not, or with other parameters."""
    found = []
    for name in names:
        if not hasattr(real, name):
            found.append(f"{where}.{name} does not exist")
            continue
        ours, theirs = inspect.getattr_static(fake, name), getattr(real, name)
        path = f"{where}.{name}"
        if inspect.isclass(ours):
            found += parameter_differences(ours.__init__, theirs, path) if "__init__" in vars(ours) else []
            if not (inspect.isclass(theirs) and issubclass(ours, BaseException)):
                found += differences(ours, theirs, public(ours), path)
        elif isinstance(ours, (ModuleType, SimpleNamespace)):
            found += differences(ours, theirs, public(ours), path)
        elif isinstance(ours, property) and callable(theirs):
            found.append(f"{path} is a method")
        elif inspect.isfunction(ours):
            found += parameter_differences(ours, theirs, path)
    return found


def public(owner: Any) -> list[str]:
    return [name for name in vars(owner) if not name.startswith("_") or name in CHECKED_SPECIAL]


def parameter_differences(ours: Any, theirs: Any, where: str) -> list[str]:
    """Compare a Python function with a function of any kind."""
    real = parameters(theirs)
    if real is None:
        return [f"{where} has parameters that nothing says"]
    mine = [p for p in inspect.signature(ours).parameters.values() if p.name != "self"]
    if any(name == "*args" for name, _ in real):  # what is positional there has no names
        mine = [p for p in mine if p.kind is KEYWORD]
    places = [name for name, kind in real if kind is BOTH]
    found = []
    for place, parameter in enumerate(mine):
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        if parameter.name not in [name for name, _ in real]:
            found.append(f"{where} has no parameter {parameter.name}")
        elif parameter.kind is BOTH and places[place : place + 1] != [parameter.name]:
            found.append(f"{where}: parameter {parameter.name} is not at place {place}")
    return found


def parameters(function: Any) -> list[tuple[str, Any]] | None:
    """Return names and kinds, KEYWORD or BOTH, from the signature, or else the first line of the docstring."""
    try:
        text = str(inspect.signature(function))
    except (TypeError, ValueError):
        text = (function.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    match = re.search(r"\((.*)\)", text)
    if match is None:
        return None
    kind, found = BOTH, []
    for part in _split(match[1].replace("\\", "")):
        name = part.split("=")[0].split(":")[0].split()[-1]  # "size_t size", "tuple options=()", "a: int = 3"
        if name == "*":
            kind = KEYWORD
        elif name not in ("self", "/"):
            found.append((name, kind))
            kind = KEYWORD if name == "*args" else kind
    return found


def _split(text: str) -> list[str]:
    """Split at the commas that are not within brackets or quotes."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == "'"
        depth += (character in "([<{") - (character in ")]>}")
        if character == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
