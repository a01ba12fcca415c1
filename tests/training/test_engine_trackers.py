"""Experiment trackers beside a run's own log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.engine_runs import SETTINGS, logged

from zoo.common.errors import InputError
from zoo.training.finetune import finetune
from zoo.training.run_folder import check_trackers, flat

SHORT = [*SETTINGS[:-1], "stages=[{name: all, epochs: 1}]"]


def test_tensorboard_holds_the_numbers_of_the_log(scenes: Path, tmp_path: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    finetune(
        "unet-test_resnet", scenes, recipe="scratch", encoder_weights=None, out=out,
        overrides=SHORT, track=["tensorboard"],
    )  # fmt: skip
    found = loader.EventAccumulator(str(out / "trackers" / "zoo"))
    found.Reload()
    losses = found.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2]
    assert [e.value for e in losses] == pytest.approx(logged(out, "step", "loss"), rel=1e-6)
    assert [e.value for e in found.Scalars("val/miou")] == pytest.approx(
        logged(out, "epoch", "miou"), rel=1e-6
    )
    assert "val/iou_per_class.sky" in found.Tags()["scalars"]
    settings = loader.EventAccumulator(str(out / "trackers" / "zoo" / "settings")).Reload()
    assert b"optimizer.lr" in settings.PluginTagToContent("hparams")["_hparams_/session_start_info"]


STUBS = {
    "wandb": (
        "class Run:\n"
        "    def log(self, values, step=None, **options): note('log', [dict(values), step])\n"
        "    def finish(self): note('finish', None)\n"
        "def init(**options):\n"
        "    note('init', options)\n"
        "    return Run()\n"
    ),
}
STUBS["trackio"] = STUBS["wandb"]
HEAD = (
    "import json, os\n"
    "__version__ = '99.0'\n"
    "def note(kind, value):\n"
    "    with open(os.environ['NOTES'], 'a') as file:\n"
    "        file.write(json.dumps([kind, value]) + '\\n')\n"
)


@pytest.mark.long
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_get_the_same_numbers(
    name: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / f"{name}.py").write_text(HEAD + STUBS[name])
    metadata = tmp_path / "site" / f"{name}-99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    command = ["zoo", "finetune", "unet-test_resnet", "--recipe", "scratch", "--data", str(scenes)]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--encoder-weights", "none", "--track", name,
         "--out", str(tmp_path / "run"), *SHORT],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notes: list[Any] = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    first, last = notes[0], notes[-1]
    assert (first[0], first[1]["project"], first[1]["name"]) == ("init", "zoo", "run")
    assert first[1]["config"]["crop"] == 64
    logs = [value for kind, value in notes if kind == "log"]
    assert [step for _, step in logs] == [1, 2, 2]
    assert logs[0][0]["train/loss"] == logged(tmp_path / "run", "step", "loss")[0]
    assert logs[-1][0]["val/miou"] == logged(tmp_path / "run", "epoch", "miou")[0]
    assert last == ["finish", None]


def test_unknown_and_missing_trackers_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError) as caught:
        check_trackers(["tensorbord", "wandb"])
    text = str(caught.value)
    assert "Unknown tracker 'tensorbord'. Did you mean tensorboard?" in text
    assert "--track wandb needs the package wandb" in text
    assert "pip install 'segmentation-zoo[wandb]'" in text


def test_a_missing_tracker_stops_before_anything_is_written(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(InputError, match="The trackers cannot start"):
        finetune("unet-test_resnet", scenes, out=tmp_path / "run", track=["trackio"])
    assert not (tmp_path / "run").exists()


def test_flat_names() -> None:
    nested = {"a": {"b": 1, "c": {"d": None, "e": [1, 2]}}, "f": "x"}
    assert flat(nested) == {"a.b": 1, "a.c.e": "[1, 2]", "f": "x"}
