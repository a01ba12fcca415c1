"""What ships: the wheel, the committed leaderboard, the evidence that recipes name."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

from zoo.leaderboard import build
from zoo.records.record import read_records
from zoo.registry.load import load_registry
from zoo.registry.recipe import recipe_hash

ROOT = Path(__file__).parent.parent


def test_the_wheel_carries_registry_tables_and_type_marker(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("segmentation_zoo-*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        assert content.read("zoo/registry.yaml") == (ROOT / "registry.yaml").read_bytes()
        board = content.read("zoo/leaderboard/leaderboard.json")
    assert board == (ROOT / "benchmarks" / "leaderboard.json").read_bytes()
    assert {"zoo/leaderboard/site.css", "zoo/leaderboard/site.js"} <= {*names}
    for name in ("zoo/py.typed", "zoo/registry/timm_models.csv", "zoo/registry/timm_weights.csv"):
        assert name in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]


def test_a_wheel_finds_its_registry_without_the_source_tree(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path / "installed")
    code = (
        "import zoo; print(zoo.__file__); print(zoo.list_models('unet-resnet18')); "
        "from zoo.leaderboard.board import shipped; print(len(shipped().tables) > 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "installed",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    where, names, measured = done.stdout.splitlines()
    assert str(tmp_path) in where
    assert names == "['unet-resnet18']"
    assert measured == "True"


def test_versions_agree() -> None:
    import zoo

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert zoo.__version__ == project["version"]


def test_the_constraints_are_what_is_installed() -> None:
    wrong = []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        name, version = line.split("==")
        try:
            if metadata.version(name) != version:
                wrong.append(f"{name}: {metadata.version(name)} is installed, not {version}")
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is not installed")
    assert wrong == []


def test_the_committed_leaderboard_follows_from_its_records() -> None:
    build.check(
        ROOT / "benchmarks" / "results",
        ROOT / "benchmarks",
        ROOT / "benchmarks" / "speed" / "models",
    )


def test_evidence_of_recipes_is_a_record_of_that_recipe() -> None:
    records = {r.recipe_hash: r for r in read_records(ROOT / "benchmarks" / "results")}
    named = {name: r for name, r in load_registry().recipes.items() if r.evidence != "none"}
    assert "cnn" in named
    for name, recipe in named.items():
        assert (ROOT / recipe.evidence).is_file(), name
        assert records[recipe_hash(recipe)].recipe == name
