"""`zoo quickstart` keeps what the README promises of it.

With QUICKSTART=FOLDER the folder of a finished quickstart is checked, else one is run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zoo.common.errors import InputError
from zoo.records.record import read_records
from zoo.training.quickstart import quickstart


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"already exists and is not empty. Give another --out"):
        quickstart(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_quickstart_learns_the_scenes(tmp_path: Path) -> None:
    given = os.environ.get("QUICKSTART")
    out = Path(given) if given else tmp_path / "quickstart"
    if given is None:
        quickstart(out)
    (record,) = read_records(out / "results")
    assert record.split == "test"
    assert len(record.classes) >= 5
    assert record.metrics.miou >= 0.60
    assert min(value for value in record.metrics.iou_per_class.values() if value is not None) >= 0.3
    assert "unet-resnet18" in (out / "leaderboard.md").read_text()
    assert (out / "report.html").stat().st_size > 100_000
    assert len(list((out / "run" / "pictures").glob("*.png"))) == 8
    assert (out / "run" / "best" / "model.safetensors").is_file()
