"""Who may import whom, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "zoo"

# Each line may import from itself and from the lines below it.
LINES = [
    ["zoo", "zoo.__main__"],
    ["zoo.cli"],
    ["zoo.checks"],
    ["zoo.bench"],
    ["zoo.training"],
    ["zoo.evaluation"],
    ["zoo.inference"],
    ["zoo.creation"],
    ["zoo.hub"],
    ["zoo.leaderboard"],
    ["zoo.models"],
    ["zoo.data"],
    ["zoo.registry"],
    ["zoo.records"],
    ["zoo.remote"],
    ["zoo.runtime"],
    ["zoo.common"],
]


def line_of(module: str) -> int:
    for number, names in enumerate(LINES):
        if any(module == name or module.startswith(f"{name}.") for name in names if name != "zoo"):
            return number
    assert module == "zoo", f"{module} stands in no line; add it to LINES"
    return len(LINES) - 1


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "zoo":
            yield from ((node.lineno, full(node.module or "", alias.name)) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "zoo")


def full(module: str, name: str) -> str:
    path = ROOT.parent.joinpath(*module.split("."), name)
    return f"{module}.{name}" if path.is_dir() or path.with_suffix(".py").exists() else module


def test_every_import_points_downwards() -> None:
    wrong = [
        f"{path.relative_to(ROOT.parent)}:{line} imports {imported}"
        for path in sorted(ROOT.rglob("*.py"))
        for line, imported in imports_of(path)
        if line_of(imported) < line_of(module_name(path)) and path.name != "__init__.py"
    ]
    assert wrong == []


def test_the_check_above_sees_a_wrong_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("from zoo.training import finetune\nimport zoo.cli\n")
    assert [name for _, name in imports_of(file)] == ["zoo.training.finetune", "zoo.cli"]
    assert line_of("zoo.cli") < line_of("zoo.training.finetune") < line_of("zoo.common.errors")


HEAVY = ("torch", "timm", "torchvision", "segmentation_models_pytorch", "accelerate", "altair")


@pytest.mark.parametrize(
    "code",
    [
        "import zoo",
        "import zoo.cli.main",
        "import zoo.common.errors, zoo.common.files, zoo.leaderboard.render, zoo.data.dataset",
        "from zoo.cli.main import run; run(['list', 'unet-*'])",
        "from zoo.cli.main import run; run(['show', 'unet-resnet18'])",
        "from zoo.cli.main import run; run(['--help'])",
        "from zoo.cli.main import run; run(['leaderboard', 'build', '--results', 'a'])",
    ],
)
def test_light_commands_import_nothing_heavy(code: str, tmp_path: Path) -> None:
    check = f"import sys; {code}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
