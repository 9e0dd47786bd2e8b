"""The documents: their code and commands run, their links lead somewhere, and CI runs the README's test command."""

import re
import shutil
import subprocess

import pytest

from tests.commands import ROOT, SHORTER, posix, run, workplace

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / "README.md", CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))]

# Commands that are not run here, and why. Every other one is.
NOT_RUN = {
    "pip install": "it changes the environment; CI installs what the README says",
    "python3 -m venv": "it makes an environment",
    ". .venv": "it enters that",
    "bash .ci/": "CI runs it",
    "pytest -n auto": "it runs this test; CI runs it",
    "pytest -m gpu": "it is a part of the tests",
    "python -m tests.write_accuracy": "it takes minutes; tests/proof/test_accuracy.py holds the page to it",
    "python -m benchmarks.gpu_static --write": "it takes minutes; test_gpu_compile.py runs it without --write",
    "pytest tests/model/test_optimizers.py": "test_contributing.py adds the optimizer of that section, and tests it",
    "bpgpu hardware-report": "it needs a GPU; tests/proof/test_hardware_report.py runs it on a simulated one",
}
# What a reader has: a program, an older run.
OWN_FILES = {"script.py": "print('it runs')", "package/__init__.py": "", "package/module.py": "print('it runs')"}
BEFORE = {"python -m benchmarks.report saved.json --out report --baseline": ("saved.json", "older.json")}


def commands(page):
    """Return the shell commands of a page, in order, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [re.sub(r"\s+# .*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [command.strip() for line in lines for command in line.split("&&") if command.strip()]


def clone(folder):
    """Copy the project to a folder, with the changes that CONTRIBUTING.md makes to it."""
    for part in ("bpgpu", "kernels", "tests", "benchmarks", "docs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, folder)
    changes = "".join(re.findall(r"```diff\n(.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), re.DOTALL))
    assert changes
    subprocess.run(["git", "apply", "-"], cwd=folder, input=changes, encoding="utf-8", check=True)


@posix
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_run(page, tmp_path):
    """In one folder, as a reader would: what one command writes the next may read.

    A command of two pages is run for the first.
    """
    earlier = {command for other in PAGES[: PAGES.index(page)] for command in commands(other)}
    if page == CONTRIBUTING:
        clone(tmp_path)
    else:
        workplace(tmp_path)
    for name, text in OWN_FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for command in commands(page):
        if command in earlier or any(command.startswith(start) for start in NOT_RUN):
            continue
        for start, (source, copy) in BEFORE.items():
            if command.startswith(start):
                shutil.copy(tmp_path / source, tmp_path / copy)
        run(command, tmp_path, PYTHONPATH=str(tmp_path) if page == CONTRIBUTING else "")
        for written in re.findall(r"(?:--out|--plot|--benchmark-json)[ =](\S+)|(\S+\.onnx)", command):
            assert (tmp_path / "".join(written)).exists(), command


def test_no_rule_for_commands_is_left_over_and_no_block_is_overlooked():
    fences = [
        line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("```")
    ]
    assert set(fences) <= {"```python", "```sh", "```diff", "```"}
    found = [command for page in PAGES for command in commands(page)]
    for start in [*NOT_RUN, *SHORTER, *BEFORE]:
        assert any(command.startswith(start) for command in found), start


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    if page == CONTRIBUTING:  # whose optimizer is added to modules of bpgpu: see tests/project/test_contributing.py
        before, _, after = text.partition("\n## An optimizer\n")
        text = before + after[after.index("\n## ") :]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks or page.name in ("notation.md", "architecture.md")
    namespace = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], target


@pytest.mark.parametrize("page", [CONTRIBUTING, ROOT / "docs" / "architecture.md"], ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    named = re.findall(r"`((?:\w+/)+[\w.]*|[\w.]+\.(?:py|md|toml|txt))`", page.read_text(encoding="utf-8"))
    assert len(named) > 5
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "bpgpu" / name).exists(), name


def test_ci_runs_the_readmes_test_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    install, test = re.findall(r"```sh\n(pip install -e .* && .*)\n```", readme)
    assert install == 'pip install -e ".[cli]" && bpgpu train digits'
    assert test in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_tools_are_pinned_equally_for_pre_commit_and_ci():
    pinned = re.search(r'"ruff==([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")).group(1)
    assert f"rev: v{pinned}\n" in (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
