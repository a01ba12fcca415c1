"""The generated tables of the documentation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.scripts import ROOT

from zoo.checks.reference import TABLES, check_docs
from zoo.cli.main import run
from zoo.common.errors import InputError


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A copy of the pages."""
    return Path(shutil.copytree(ROOT / "docs", tmp_path / "docs"))


def test_the_pages_follow_from_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "docs"]) == 0
    assert "follow from the code" in capsys.readouterr().out


def test_a_page_that_differs_is_named_and_written_anew(docs: Path) -> None:
    page = docs / "metrics.md"
    right = page.read_text()
    page.write_text(right.replace("TP / (TP + FP + FN)", "TP / FP"))
    assert check_docs(docs) == [page]
    assert check_docs(docs, write=True) == [page]
    assert page.read_text() == right
    assert check_docs(docs) == []


def test_the_schema_of_a_model_folder_is_written(docs: Path) -> None:
    file = docs / "folder.schema.json"
    right = file.read_text()
    for wrong in (right.replace('"spec"', '"other"'), None):
        file.unlink()
        if wrong is not None:
            file.write_text(wrong)
        assert check_docs(docs) == [file]
        assert check_docs(docs, write=True) == [file]
        assert file.read_text() == right
        assert check_docs(docs) == []


def test_a_page_without_a_place_for_its_table_is_refused(docs: Path, tmp_path: Path) -> None:
    page = docs / "metrics.md"
    page.write_text(page.read_text().replace("<!-- end of table metrics -->", ""))
    with pytest.raises(InputError, match=r"metrics\.md: write the two lines <!-- table metrics"):
        check_docs(docs)
    with pytest.raises(InputError, match="in a checkout of zoo"):
        check_docs(tmp_path / "none")


def test_the_tables_say_what_the_code_says() -> None:
    metrics = {row[0]: row for row in TABLES["metrics"].rows()}
    assert metrics["`iou_per_class`"][2] == "TP / (TP + FP + FN)"
    formats = {row[0]: row[1:] for row in TABLES["formats"].rows()}
    assert formats["`camvid`"] == [
        "`train`, `trainannot`, `val`, `valannot`, `test`, `testannot`",
        "11",
        "11",
        "train, val, test",
    ]
    assert formats["`cityscapes`"][2].startswith("0 to 6, 9 to 10, 14 to 16, 18")
    decoders = {row[0]: row[1:] for row in TABLES["decoders"].rows()}
    assert decoders["`fcn`"][-2:] == ["custom head", "`stride` 8, `dropout` 0.5"]
    assert decoders["`unet`"][2] == "SMP's `Unet`"
    assert "`decoder_channels` [256, 128, 64, 32, 16]" in decoders["`unet`"][3]
    losses = {row[0]: row[1:] for row in TABLES["losses"].rows()}
    assert losses["`tversky`"] == [
        "Tversky",
        "`tversky_alpha` 0.3, `tversky_beta` 0.7",
        "pixels",
        "arXiv 1706.05721",
    ]
    options = {row[0]: row[2:] for row in TABLES["loss_options"].rows()}
    assert options["`focal_alpha`"] == ["above 0, up to 1, or `null`: none", "`null`"]
    codes = {row[0]: row for row in TABLES["codes"].rows()}
    assert codes["D105"] == ["D105", "error", "Image without mask", "yes"]
