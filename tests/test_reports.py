"""Run reports and learning curves: what is shown in any state of a run, and every message."""

from __future__ import annotations

import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.hub_models import METRICS, tiny
from helpers.record_examples import record
from helpers.stripes import CLASSES as STRIPES
from helpers.stripes import brightest, relabel, write_stripes
from PIL import Image

from zoo.common.errors import InputError
from zoo.hub.folder import save_folder
from zoo.records.record import record_text, write_record
from zoo.training.charts import curves, latest, read_log, svg, write_curves
from zoo.training.report import MAX_PICTURES, measure, report
from zoo.training.score_charts import MOST_CLASSES, confusion_chart

SCRIPT = "<script>alert(1)</script>"
CLASSES = ["road", SCRIPT, "sky"]
VOID = {"meta", "img", "br", "link", "input"}


class _Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f"{data}\n"

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}


def _step(step: int, epoch: int, stage: str, loss: float) -> dict[str, Any]:
    return {
        "event": "step",
        "step": step,
        "epoch": epoch,
        "stage": stage,
        "loss": loss,
        "lr": 0.001 * step,
        "images_per_second": 9.5,
    }


def _epoch(epoch: int, stage: str, miou: float, best: bool) -> dict[str, Any]:
    return {
        "event": "epoch",
        "epoch": epoch,
        "step": 10 * epoch,
        "stage": stage,
        "train_loss": 1.0 / epoch,
        "val_loss": 1.5 / epoch,
        "miou": miou,
        "pixel_accuracy": 0.9,
        "iou_per_class": {"road": miou, SCRIPT: 0.25, "sky": None},
        "best": best,
        "seconds": 30.0,
    }


LOG = [
    _step(5, 1, "head", 2.0),
    _epoch(1, "head", 0.3, True),
    _step(15, 2, "all", 1.0),
    _epoch(2, "all", 0.625, True),
    _step(25, 3, "all", 0.9),
    _epoch(3, "all", 0.5, False),
]


def _write_log(run: Path, events: list[dict[str, Any]], tail: str = "") -> None:
    run.mkdir(exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + tail)


def _run(folder: Path, **changes: Any) -> Path:
    run = folder / "run"
    _write_log(run, LOG)
    facts = {
        "model": "unet-resnet18",
        "data": {
            "name": f"my {SCRIPT} set",
            "root": "/secret/place",
            "classes": CLASSES,
            "palette": [[128, 64, 128], [0, 0, 0], [70, 130, 180]],
        },
        "recipe_name": "cnn",
        "recipe": {
            "loss": {"ce": 1.0},
            "ema": None,
            "stages": [{"name": "head", "epochs": 1, "schedule": {"kind": "constant"}}],
        },
        "overrides": {"optimizer.lr": 0.002},
        "seed": 3,
        "encoder_init": "pretrained",
        "encoder_weights": "a1_in1k",
        "env": {"zoo": "0.1.0"},
        **changes,
    }
    (run / "run.json").write_text(json.dumps(facts))
    return run


def _result(run: Path, **changes: Any) -> None:
    values = {"best_epoch": 2, "best_miou": 0.625, "epochs": 3, "steps": 30, "seconds": 3725.0}
    (run / "result.json").write_text(json.dumps({**values, "stopped": "finished", **changes}))


def _page(run: Path) -> _Page:
    return _Page(report(run).read_text())


def test_a_finished_run(tmp_path: Path) -> None:
    run = _run(tmp_path)
    _result(run)
    page = _page(run)
    lines = page.text.split("\n")
    expected = {
        "state": "finished",
        "best mIoU on validation": "62.50 %",
        "best epoch": "2",
        "epochs done": "3",
        "steps done": "30",
        "time": "1 h 02 min",
        "seed": "3",
        "encoder": "pretrained (a1_in1k)",
        "overrides": "optimizer.lr=0.002",
        "loss.ce": "1.0",
        "ema": "null",
        "stages.head.epochs": "1",
        "stages.head.schedule.kind": "constant",
        "zoo": "0.1.0",
    }
    for name, value in expected.items():
        assert lines[lines.index(name) + 1] == value, name
    assert "Measured on validation in epoch 2." in lines
    assert lines[lines.index("sky") + 1 :][:2] == ["\u2013", "absent"]
    assert "not finished" not in lines


def test_class_bars_have_the_length_of_the_share(tmp_path: Path) -> None:
    page = _page(_run(tmp_path))
    styles = [attrs.get("style") for tag, attrs in page.tags if tag == "i"]
    assert [style for style in styles if style and "width" in style] == [
        "width:62.5%",
        "width:25.0%",
    ]
    assert "background:rgb(128, 64, 128)" in styles


def test_the_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    run = _run(tmp_path)
    _write_log(run, [{**event, "stage": SCRIPT} for event in LOG])
    (run / "pictures").mkdir()
    Image.new("RGB", (4, 3)).save(run / "pictures" / "a<b>&.png")
    page = _page(run)
    assert page.names().isdisjoint({"script", "link", "iframe", "object", "b"})
    assert "svg" in page.names()
    assert SCRIPT in page.text.split("\n")
    assert f"unet-resnet18 on my {SCRIPT} set" in page.text
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/png;base64,"), (tag, name)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "content" in a)
    assert "default-src 'none'" in str(policy)
    assert "/secret/place" not in (run / "report.html").read_text()


def test_an_unfinished_run_with_a_line_cut_short(tmp_path: Path) -> None:
    run = _run(tmp_path)
    _write_log(run, LOG[:4], tail='{"event": "st')
    page = _page(run)
    lines = page.text.split("\n")
    assert lines[lines.index("state") + 1] == "not finished"
    assert lines[lines.index("epochs done") + 1] == "2"
    assert lines[lines.index("time") + 1] == "1 min 00 s"


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    run = _run(tmp_path)
    (run / "log.jsonl").unlink()
    text = _page(run).text
    assert "No step has been logged yet." in text
    assert "No epoch has ended yet." in text


@pytest.mark.parametrize(
    ("stopped", "shown"),
    [("early", "stopped early"), ("interrupted", "interrupted"), ("other", "other")],
)
def test_how_a_run_stopped(tmp_path: Path, stopped: str, shown: str) -> None:
    run = _run(tmp_path)
    _result(run, stopped=stopped, seconds=12)
    lines = _page(run).text.split("\n")
    assert lines[lines.index("state") + 1] == shown
    assert lines[lines.index("time") + 1] == "12 s"


def test_an_evaluation_replaces_the_validation_table(tmp_path: Path) -> None:
    run = _run(tmp_path)
    (run / "eval.json").write_text(record_text(record()))
    text = _page(run).text
    assert "Evaluation on test" in text
    assert "73.86 %" in text
    assert "camvid, split test, 233 images, 360 x 480 pixels" in text
    assert "Measured on the test split." in text


def _table(page: _Page, name: str) -> list[str]:
    lines = page.text.split("\n")
    return [line for line in lines[lines.index(name) :] if line.strip()]


def test_records_in_the_run_folder_are_found(tmp_path: Path) -> None:
    run = _run(tmp_path)
    write_record(record(split="val", chosen_on=None), run)
    assert "Evaluation on val" in _page(run).text
    path = write_record(record(), run / "results")
    page = _page(run)
    assert "Evaluation on test" in page.text
    # of the matrix [[8, 2, 0], [1, 9, 0], [0, 0, 0]]
    table = _table(page, "predicted as")
    assert table[1:11] == [
        "pixels", "of the class", "road", "car", "2", "20.00 %", "car", "road", "1", "10.00 %",
    ]  # fmt: skip
    assert {"80", "20", "90", "10"} <= set(_table(page, "Confusion matrix"))
    assert "Reliability" not in page.text
    path.write_text("{}")
    with pytest.raises(InputError, match=re.escape(path.name)):
        report(run)


def test_an_evaluation_has_reliability_and_best_and_worst_images(tmp_path: Path) -> None:
    data, run = write_stripes(tmp_path / "stripes"), _run(tmp_path)
    relabel(data, "test/g.png", slice(4, 12), slice(36, 44), 0)  # 64 pixels of a car
    page = _Page(report(run, measured=measure(brightest(STRIPES), data, "test")).read_text())
    sure = np.exp(6) / (np.exp(6) + 2)
    table = _table(page, "Evaluation on test")
    rows = dict(zip(table[1::2], table[2::2], strict=False))
    assert rows["pixel accuracy"] == f"{100 * 3776 / 3840:.2f} %"
    assert rows["expected calibration error"] == f"{100 * (sure - 3776 / 3840):.2f} %"
    assert rows["data"] == "stripes, split test, 2 images"
    assert _table(page, "predicted as")[3:7] == ["road", "<b>car</b>", "64", "4.76 %"]
    assert "Reliability" in page.text
    # of g: road 640 / 704, sky 1, car 576 / 640
    assert _table(page, "Worst images of test")[1] == "g: mIoU 93.6 %"
    assert _table(page, "Best images of test")[1] == "f: mIoU 100.0 %"
    urls = [str(attrs["src"]) for tag, attrs in page.tags if tag == "img"]
    assert [url[:23] for url in urls] == ["data:image/webp;base64,"] * 2
    assert (run / "report.html").stat().st_size < 100_000
    first = (run / "report.html").read_bytes()
    report(run, measured=measure(brightest(STRIPES), data, "test"))
    assert (run / "report.html").read_bytes() == first


def test_a_split_is_evaluated_and_val_is_shown_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_stripes(tmp_path / "stripes")
    run = _run(tmp_path, data={"name": "stripes", "source": str(data), "classes": STRIPES})
    training = {"dataset": "stripes", "recipe": "cnn", "seed": 0, "steps": 7, "chosen_on": "val"}
    save_folder(tiny(classes=STRIPES), run / "best", training=training, metrics=METRICS)
    page = _page(run)
    assert _table(page, "Images of val")[1:5] == ["b", "c", "d", "e"]
    page = _Page(report(run, split="val").read_text())
    assert "val: its score is too good to report" in page.text
    assert "Worst images of val" in page.text
    other = write_stripes(tmp_path / "other")
    (other / "dataset.yaml").write_text("version: 1\nclasses: [a, b, c]\n")
    with pytest.raises(InputError, match="predicts 3 classes"):
        report(run, data=other)
    shutil.rmtree(data)
    assert "Images of val" not in _page(run).text
    assert "The page has no images: The data that" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(InputError, match=r"cannot be used; --data \(data=\) says where it is now"):
        report(run, split="test")


def test_a_run_that_does_not_know_its_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not say where its data is\. Give it by --data"):
        report(_run(tmp_path), split="test")


def test_only_the_classes_with_the_most_errors_are_in_a_matrix() -> None:
    count = MOST_CLASSES + 5
    matrix = np.diag(np.full(count, 100))
    matrix[:MOST_CLASSES, 0] += 1
    names = [f"class {index}" for index in range(count)]
    text = svg(confusion_chart(matrix, names))
    assert f">class {MOST_CLASSES - 1}<" in text
    assert f">class {MOST_CLASSES}<" not in text


def test_pictures_are_inlined_up_to_a_limit(tmp_path: Path) -> None:
    run = _run(tmp_path)
    (run / "pictures").mkdir()
    for index in range(MAX_PICTURES + 2):
        Image.new("RGB", (2, 2)).save(run / "pictures" / f"{index:03d}.png")
    page = _page(run)
    assert sum(tag == "img" for tag, _ in page.tags) == MAX_PICTURES
    assert "2 more in the run folder." in page.text


def test_the_page_can_go_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "pages" / "page.html"
    assert report(_run(tmp_path), out) == out
    assert out.is_file()
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run folder: it holds no run\.json\. Give"):
        report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", r"Cannot read .*run\.json as JSON"),
        ("run.json", "[]", r"run\.json has problems"),
        ("result.json", '{"best_epoch": "x"}', r"result\.json has problems:\n  - best_epoch: "),
        ("result.json", "[", r"Cannot read .*result\.json as JSON"),
        ("eval.json", "{}", r"eval\.json is not a usable record"),
        ("log.jsonl", '{"event": "step"}\n{"event"\n', r"log\.jsonl, line 1 is not a log event"),
        ("pictures/a.png", "no picture", r"a\.png is not a PNG image; remove it"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    run = _run(tmp_path)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(content)
    with pytest.raises(InputError, match=message):
        report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"event": "other"},
        {"step": "5"},
        {"step": -1},
        {"epoch": None},
        {"loss": "low"},
        {"iou_per_class": [0.5]},
        {"iou_per_class": {"road": "high"}},
    ],
)
def test_a_line_that_is_no_event_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    _write_log(tmp_path, [LOG[0], {**LOG[0], **change}, LOG[1]])
    with pytest.raises(InputError, match=r"line 2 is not a log event: .*; remove that line"):
        read_log(tmp_path / "log.jsonl")


def test_an_epoch_that_was_written_again_counts_once() -> None:
    again = {**LOG[3], "miou": 0.7}
    assert [event["miou"] for event in latest([*LOG, again], "epoch")] == [0.3, 0.7, 0.5]


def _values(chart: dict[str, Any], series: str) -> list[tuple[float, float]]:
    """The points of one series, from whatever data set of the chart holds them."""
    rows: list[dict[str, Any]] = []
    pending: list[Any] = [chart]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            rows += node.get("values", []) if isinstance(node.get("values"), list) else []
            pending += node.values()
        elif isinstance(node, list):
            pending += node
    return sorted({(row["x"], row["y"]) for row in rows if row.get("series") == series})


def test_curves_hold_the_log_in_epochs_done() -> None:
    chart = curves(LOG).to_dict()
    assert _values(chart, "training, steps") == [(0.5, 2.0), (1.5, 1.0), (2.5, 0.9)]
    assert _values(chart, "training, epochs") == [(1.0, 1.0), (2.0, 0.5), (3.0, 1 / 3)]
    assert _values(chart, "validation") == [(1.0, 1.5), (2.0, 0.75), (3.0, 0.5)]
    assert _values(chart, "mIoU") == [(1.0, 30.0), (2.0, 62.5), (3.0, 50.0)]
    assert [y for _, y in _values(chart, "learning rate")] == pytest.approx([0.005, 0.015, 0.025])
    text = svg(curves(LOG))
    for shown in (">head<", ">all<", ">best 62.5<", ">epochs done<", ">learning rate<"):
        assert shown in text


def test_curves_before_the_first_epoch_count_steps() -> None:
    chart = curves(LOG[:1]).to_dict()
    assert _values(chart, "training, steps") == [(5.0, 2.0)]
    assert ">steps done<" in svg(curves(LOG[:1]))


def test_values_that_are_not_finite_are_left_out() -> None:
    log = [LOG[0], {**LOG[1], "val_loss": None, "train_loss": float("nan")}]
    chart = curves(log).to_dict()
    assert _values(chart, "validation") == []
    assert _values(chart, "training, epochs") == []


def test_long_logs_are_thinned_and_keep_the_last_step() -> None:
    log = [_step(step, 1, "all", 1.0) for step in range(1, 2002)]
    points = _values(curves(log).to_dict(), "training, steps")
    assert len(points) <= 400
    assert points[-1] == (2001.0, 1.0)


def test_write_curves_leaves_a_picture_and_an_svg(tmp_path: Path) -> None:
    _write_log(tmp_path, LOG)
    write_curves(tmp_path)
    with Image.open(io.BytesIO((tmp_path / "curves.png").read_bytes())) as picture:
        assert picture.width > 1200
        assert picture.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert (tmp_path / "curves.svg").read_text().startswith("<svg")


def test_an_empty_log_still_draws(tmp_path: Path) -> None:
    write_curves(tmp_path)
    assert (tmp_path / "curves.png").is_file()
