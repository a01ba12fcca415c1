"""One fact, one place: a copy of the package learns something new by one row or one file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.record_examples import record

from zoo.records.record import write_record

ROOT = Path(__file__).parent.parent


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of a copy of zoo, to be changed and then run by `python -c` in that folder."""
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "zoo", tmp_path / "zoo", ignore=skipped)
    shutil.copy(ROOT / "registry.yaml", tmp_path)
    return tmp_path


def run(package: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


METRIC_ROW = """
    Metric("fw_iou", "frequency-weighted IoU", "mean of IoU, weighted by the pixels of a class",
           lambda n: np.nansum(_iou(n) * (n.tp + n.fn), -1) / (n.tp + n.fn).sum(-1), _EMPTY,
           per_class=False, leaderboard=True, report=True),
"""

METRIC_USE = """
import json, sys
from pathlib import Path
from zoo.checks.reference import TABLES
from zoo.evaluation.counts import Confusion
from zoo.leaderboard.build import write
from zoo.records.record import parse_record, read_record, record_name, write_record

confusion = Confusion(["a", "b"])
confusion.add_matrix([[8, 2], [0, 30]])
old = json.loads(Path("old.json").read_text())
path = Path("results", record_name(parse_record({**old, "record_hash": None}, "old")))
path.parent.mkdir()
path.write_text(Path("old.json").read_text())
new = parse_record({**old, "seed": 1, "record_hash": None, **confusion.to_json()}, "new")
stated = json.loads(write_record(new, path.parent).read_text())["metrics"]
write(path.parent, Path("out"))
computed = read_record(path).metrics.fw_iou
documented = [row[0] for row in TABLES["metrics"].rows()]
print(json.dumps([path.name, documented, confusion.fw_iou, stated["fw_iou"], computed]))
"""


def test_a_metric_is_one_row(package: Path) -> None:
    """Truth: 10 of a, 30 of b. IoU 8 / 10 and 30 / 32, so (10 * 0.8 + 30 * 0.9375) / 40."""
    table = package / "zoo" / "records" / "metrics.py"
    start = "METRICS: tuple[Metric, ...] = ("
    table.write_text(table.read_text().replace(start, start + METRIC_ROW))
    write_record(record(classes=["a", "b"], confusion=[[8, 2], [0, 30]]), package / "made")
    (old,) = (package / "made").iterdir()
    shutil.move(old, package / "old.json")
    name, documented, *values = json.loads(run(package, METRIC_USE))
    assert values == pytest.approx([0.903125] * 3)
    assert name == old.name  # what older files do not state changes neither name nor hash
    assert "`fw_iou`" in documented
    out = package / "out"
    board = json.loads((out / "leaderboard.json").read_text())
    assert board["tables"][0]["rows"][0]["fw_iou"] == 0.903125
    assert ",fw_iou," in (out / "leaderboard.csv").read_text()
    for page in ("leaderboard.md", "leaderboard.html"):
        text = (out / page).read_text()
        assert "frequency-weighted IoU %" in text
        assert "90.31" in text
