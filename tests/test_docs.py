"""Every snippet of the README and of docs/ runs, in one folder a page, with real files."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(found[1], found[2]) for found in BLOCK.finditer(page.read_text())]


def commands(block: str) -> list[list[str]]:
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ zoo")]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the snippets speak of: `my_data/` (data), `photos/` (images), `runs/first` (a run)."""
    from zoo.data.scenes import write_scenes
    from zoo.evaluation.evaluate import evaluate
    from zoo.training.finetune import finetune

    folder = tmp_path_factory.mktemp("docs")
    data = write_scenes(folder / "my_data", train=8, val=4, test=4, size=(64, 80))
    (folder / "photos").symlink_to(data / "test" / "images")
    short = ["crop=64", "batch_size=4", "stages=[{name: all, epochs: 20}]", "validate_every=20"]
    finetune(
        "unet-test_resnet", data, out=folder / "runs" / "first", overrides=short,
        encoder_weights=None,
    )  # fmt: skip
    from zoo.creation.create import load_trained as loaded

    evaluate(loaded(folder / "runs" / "first"), data, out=folder / "benchmarks" / "results")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_run(
    page: Path, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for item in material.iterdir():
        (place / item.name).symlink_to(item)
    monkeypatch.chdir(place)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {"__name__": "__main__"}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), names)
        elif language == "console":
            for command in commands(text):
                run_command(command, place)


def run_command(command: list[str], place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


def test_the_runner_finds_commands_and_fails_on_wrong_ones(tmp_path: Path) -> None:
    text = "$ zoo list 'unet-*' \\\n    --decoder unet\nunet-resnet18\n"
    assert commands(text) == [["zoo", "list", "unet-*", "--decoder", "unet"]]
    with pytest.raises(AssertionError, match="no-such-verb"):
        run_command(["zoo", "no-such-verb"], tmp_path)


def test_pages_are_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    missing = [p.name for p in (ROOT / "docs").glob("*.md") if f"docs/{p.name}" not in text]
    assert missing == []


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_links_between_pages_point_to_files() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
