"""The tower: every module imports only what lies below it, in functions and for types too, and never in a circle."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bpgpu
from bpgpu.kernels.cuda import source as cuda_kernels

ROOT = Path(bpgpu.__file__).parent
# The rooms from the ground up, each the modules and packages that share it; docs/architecture.md shows them.
TOWER = [
    "kernels",
    "_version errors interop logs checks frozen forks sparse imports moved data",
    "model",
    "backends",
    "inputs",
    "network",
    "files",
    "training",
    "sklearn.parameters sklearn.networks sklearn.as_network",
    "mlp",
    "proof testing",
    "sklearn accel",
    "bpgpu",
    "cli __main__",
]
FLOORS = {name: floor for floor, names in enumerate(TOWER) for name in names.split()}


def modules(root=ROOT):
    """Return the path of every module by its name."""
    found = {}
    for folder, package in ((root, "bpgpu"), (root / "kernels", "bpgpu.kernels")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[0] not in ("startup", "kernels") and "__pycache__" not in parts:
                found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imports(path, known):
    """Return the modules among those known that a file imports anywhere, and by what line."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [name if (name := f"{node.module}.{each.name}") in known else node.module for each in node.names]
        else:
            continue
        found |= {name: node.lineno for name in names if name in known}
    return found


def room(module):
    """Return the name in `FLOORS` that a module stands under, the longest that begins its own."""
    name = module.removeprefix("bpgpu.")
    while name not in FLOORS:
        name, _, _ = name.rpartition(".")
    return name


def upward(known):
    """Yield every import of what lies above."""
    for module, path in known.items():
        for other, line in imports(path, known).items():
            if FLOORS[room(other)] > FLOORS[room(module)]:
                yield f"{module}, line {line}, imports {other}"


def circles(known):
    """Yield the modules that import themselves by way of others."""
    imported = {module: set(imports(path, known)) - {module} for module, path in known.items()}
    for start in known:
        reached, waiting = set(), list(imported[start])
        while waiting:
            module = waiting.pop()
            if module not in reached:
                reached.add(module)
                waiting += imported[module]
        if start in reached:
            yield start


def test_every_module_has_a_room():
    assert {room(module) for module in modules()} == FLOORS.keys()


def test_imports_lead_downward():
    assert list(upward(modules())) == []


def test_there_is_no_circle():
    assert sorted(circles(modules())) == []


@pytest.mark.parametrize(
    ("file", "line", "seen"),
    [
        ("network.py", "from bpgpu.training.loop import fit", "bpgpu.network, line 1, imports bpgpu.training.loop"),
        ("backends/base.py", "def f():\n    from bpgpu import mlp", "bpgpu.backends.base, line 2, imports bpgpu.mlp"),
        ("model/costs.py", "if TYPE_CHECKING:\n    import bpgpu", "bpgpu.model.costs, line 2, imports bpgpu"),
    ],
)
def test_an_import_that_leads_upward_is_seen(file, line, seen, tmp_path):
    path = tmp_path / "changed.py"
    path.write_text(f"{line}\n{(ROOT / file).read_text(encoding='utf-8')}", encoding="utf-8")
    module = "bpgpu." + file.removesuffix(".py").replace("/", ".")
    assert seen in list(upward(modules() | {module: path}))


def test_a_circle_in_a_room_is_seen(tmp_path):
    path = tmp_path / "changed.py"
    path.write_text("def f():\n    import bpgpu.backends.base", encoding="utf-8")
    assert set(circles(modules() | {"bpgpu.backends.plan": path})) >= {"bpgpu.backends.base", "bpgpu.backends.plan"}


# What the layout gives its users


def test_the_packages_can_be_reached():
    base = importlib.import_module("bpgpu.backends.base")
    namespace = {}
    exec("import bpgpu.backends.base as m\nimport bpgpu.backends\nfound = bpgpu.backends()", namespace)
    assert namespace["m"] is base
    assert [info.name for info in namespace["found"]] == [info.name for info in bpgpu.backends()]


@pytest.mark.skipif(sys.platform == "win32", reason="a link of git may be a file with its target there")
def test_a_clone_runs_without_an_install():
    """Isolated from whatever is installed."""
    source = Path(__file__).parents[2]
    code = f"import sys; sys.path.insert(0, {str(source)!r}); import bpgpu.kernels.formulas as f; print(f.__file__)"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert Path(run.stdout.strip()) == source / "bpgpu" / "kernels" / "formulas.py"


@pytest.mark.parametrize(
    ("name", "public"),
    [("activations", "Activation"), ("callbacks", "Callback"), ("optimizers", "Adam"), ("plan", "Plan")],
)
def test_earlier_names_of_modules_work_with_a_warning(name, public):
    sys.modules.pop(f"bpgpu.{name}", None)
    with pytest.warns(DeprecationWarning, match=rf"bpgpu\.{name} is now bpgpu\."):
        module = importlib.import_module(f"bpgpu.{name}")
    public = {
        "activations": "Activation",
        "callbacks": "Callback",
        "costs": "Cost",
        "optimizers": "Adam",
        "plan": "Plan",
    }
    if name in public:
        assert getattr(module, public[name]) is getattr(bpgpu, public[name])
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


# docs/architecture.md, which shows it

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_page_shows_the_tower():
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [
        (str(floor), " ".join(f"`{room}`" for room in rooms.split())) for floor, rooms in enumerate(TOWER, 1)
    ]


def test_the_functions_and_kernels_on_the_page_are_where_it_says():
    page = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)+\w+\.py)`: ((?:`\w+`(?:, )?)+)", page)
    assert len(named) > 12
    for file, functions in named:
        text = (PAGE.parents[1] / file).read_text(encoding="utf-8")
        for function in re.findall(r"\w+", functions):
            assert f"def {function}(" in text, f"{file}: {function}"
    kernels = re.findall(r"the kernel `(\w+)`", page)
    assert kernels
    assert set(kernels) <= cuda_kernels.ABI.keys()
