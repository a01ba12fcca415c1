"""Who may import whom, what must stay light, and what benchmarks/structure.py counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.scripts import ROOT, load_script

structure = load_script("structure")


@pytest.fixture(scope="module")
def zoo() -> structure.Package:
    """The package as it is."""
    return structure.read_package(ROOT / "zoo")


def test_imports_point_downwards(zoo: structure.Package) -> None:
    """Imports in functions and under TYPE_CHECKING count too, here and below."""
    assert structure.unplaced(zoo) == []
    assert structure.upward(zoo) == []


def test_models_and_data_do_not_know_each_other(zoo: structure.Package) -> None:
    assert structure.strangers(zoo) == []


def test_no_modules_import_each_other_in_a_circle(zoo: structure.Package) -> None:
    assert structure.circles(zoo) == []


FILES = {
    "__init__.py": "",
    "models/__init__.py": "",
    "models/low.py": "from zoo.data import load\nfrom zoo.bench.run import Same\n",
    "data/__init__.py": "",
    "data/load.py": """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from zoo.cli.main import main
class Same: ...
""",
    "bench/__init__.py": "",
    "bench/run.py": """
import torch
from zoo.bench import table
class Same:
    def method(self):
        import ray
        from zoo.data.load import Same
""",
    "bench/table.py": """
def build():
    import json
    from zoo.bench.run import Same
    return Same
""",
    "cli/__init__.py": "",
    "cli/main.py": "def main():\n    from zoo.bench import run\n",
    "cli/table.py": "",
    "extra.py": "",
}


@pytest.fixture
def small(tmp_path: Path) -> structure.Package:
    """A package with one of each fault."""
    for name, text in FILES.items():
        path = tmp_path / "zoo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return structure.read_package(tmp_path / "zoo")


def test_the_faults_of_a_package_are_found(small: structure.Package) -> None:
    assert structure.unplaced(small) == ["extra"]
    assert structure.strangers(small) == ["zoo.models.low:1 imports zoo.data.load"]
    assert structure.upward(small) == [
        "zoo.data.load:4 imports zoo.cli.main",
        "zoo.models.low:2 imports zoo.bench.run",
    ]
    assert structure.circles(small) == [
        ["zoo.bench.run", "zoo.bench.table", "zoo.cli.main", "zoo.data.load"]
    ]
    assert structure.names_twice(small) == {"modules": ["table"], "classes": ["Same"]}


def test_the_figures_of_a_package(small: structure.Package) -> None:
    kinds = structure.imports_in_functions(small)
    assert {kind: [found.imported for found in kinds[kind]] for kind in kinds} == {
        "light": ["json", "zoo.bench.run", "zoo.bench.run"],
        "optional": ["ray"],
        "other": ["zoo.data.load"],
    }
    assert structure.function_lengths(small) == [2, 3, 4]
    figures = structure.report(small.root, walks=False)
    assert figures["Python files"] == len(FILES)
    assert figures["modules at the root"] == 1
    assert figures["import circles"] == 1


def test_a_walk_counts_files_and_moves(tmp_path: Path) -> None:
    """a calls b twice; b calls itself: a, b, b, b, b, then a again are two files, two moves."""
    spaces: list[dict[str, object]] = []
    for name, text in (
        ("a", "def run():\n    b(1)\n    b(1)\n    own()\ndef own(): pass\n"),
        ("b", "def b(again):\n    if again: b(0)\n"),
    ):
        path = tmp_path / f"{name}.py"
        spaces.append({})
        exec(compile(text, str(path), "exec"), spaces[-1])
    spaces[0]["b"] = spaces[1]["b"]
    walk = structure.walk(tmp_path, spaces[0]["run"])
    assert (walk.files, walk.moves, len(walk.calls)) == (2, 2, 6)


HEAVY = ("torch", "timm", "torchvision", "segmentation_models_pytorch", "altair")


LIST = "from zoo.cli.main import run; run(['list', 'unet-*'])"
SHOW = "from zoo.cli.main import run; run(['show', 'unet-resnet18'])"


@pytest.mark.parametrize(
    "code",
    [
        "import zoo",
        "import zoo.cli.main",
        "import zoo.common.errors, zoo.common.files, zoo.leaderboard.render, zoo.data.dataset",
        LIST,
        SHOW,
        "from zoo.cli.main import run; run(['--help'])",
        "from zoo.cli.main import run; run(['--version'])",
        "from zoo.cli.main import run; run(['finetune', 'unet-test_resnet', '--data', 'none'])",
        "from zoo.cli.main import run; run(['leaderboard', 'build', '--results', 'a'])",
    ],
)
def test_light_commands_import_nothing_heavy(code: str, tmp_path: Path) -> None:
    heavy = HEAVY + (("numpy", "scipy", "jinja2") if code in (LIST, SHOW) else ())
    check = f"import sys; {code}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
