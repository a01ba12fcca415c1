"""The page: what it holds, that no text of a record becomes markup, and the plots."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.record_examples import confusion_with, counted, fields, record, speed_record

from zoo.common.html import data_block, render
from zoo.leaderboard import site
from zoo.leaderboard.board import read_board
from zoo.leaderboard.build import write
from zoo.leaderboard.lookup import measured_rows
from zoo.leaderboard.plots import Plot, Point, plot
from zoo.leaderboard.site import commands
from zoo.records.image_counts import write_with_counts
from zoo.records.record import metrics_from_confusion, write_record
from zoo.records.speed import write_speed_record

NASTY = "<script>alert(1)</script>\"'&"


class Read(HTMLParser):
    """The elements of a page, their attributes, the texts of its cells, and its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        self._inside = tag if tag in ("td", "th", "script") else self._inside

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag in ("td", "th", "script") else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside:
            self.cells[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def built(folder: Path, *changes: dict[str, Any]) -> str:
    for change in changes:
        write_record(record(**change), folder / "results")
    write(folder / "results", folder / "out", folder / "speed")
    return (folder / "out" / "leaderboard.html").read_text()


def test_a_row_shows_the_numbers_worked_out_by_hand(tmp_path: Path) -> None:
    write_speed_record(speed_record(), tmp_path / "speed")
    found = Read(built(tmp_path, {"gmacs": 21.5}))
    start = found.cells.index("precision") + 1
    assert found.cells[start : start + 16] == [
        *("1", "unet-resnet18", "73.86", "\u2013", "1", "85.00", "84.96", "14.33", "21.50", "40.0"),
        *("310", "unet", "resnet", "apache-2.0", "cnn", "bf16"),
    ]


def test_intervals_over_seeds_and_over_images(tmp_path: Path) -> None:
    seeds = [{"seed": seed, "confusion": confusion_with(60 + 20 * seed)} for seed in (0, 1)]
    text = built(tmp_path, *seeds)
    assert "<td>54.76 \u00b1 151.26</td><td>\u2013</td><td>2</td>" in text
    first, counts = counted([[9, 1, 0], [1, 9, 0], [0, 0, 0]], [[8, 2, 0], [2, 8, 0], [0, 0, 0]])
    write_with_counts(first, tmp_path / "one" / "results", counts)
    text = built(tmp_path / "one")
    (row,) = read_board(tmp_path / "one" / "out" / "leaderboard.json").tables[0].rows
    assert row.images_interval is not None
    assert f"<td>{100 * row.images_interval:.2f}</td><td>1</td>" in text
    assert "95 % interval of the bootstrap over the images" in text


def test_folds_are_counted_as_folds(tmp_path: Path) -> None:
    folds = [
        {"dataset": f"drive/fold_{n}", "data_hash": f"{n}" * 16, "confusion": confusion_with(hits)}
        for n, hits in enumerate((60, 80))
    ]
    text = built(tmp_path, *folds)
    assert "<td>54.76 \u00b1 151.26</td><td>\u2013</td><td>2 folds</td>" in text
    assert "the mean over folds" in text
    assert "ties rest on seeds alone" not in text
    board = read_board(tmp_path / "out" / "leaderboard.json")
    [(_, text)] = measured_rows("unet-resnet18", board)
    assert "% on drive, test, pretrained encoder: rank 1 of 1, 2 folds, recipe cnn" in text


def test_one_script_alone_may_run_and_nothing_is_fetched(tmp_path: Path) -> None:
    text = built(tmp_path, {})
    found = Read(text)
    block, script = found.scripts
    assert json.loads(block) == {}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in found.all("meta") if "http-equiv" in meta]
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    tags = {tag for tag, _ in found.elements}
    assert tags.isdisjoint({"link", "img", "iframe", "object", "embed"})
    for tag, attributes in found.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "href") or str(value).startswith("#"), (tag, value)
    assert not re.search(r"url\(|@import|https?:", re.sub(r' xmlns[:\w]*="[^"]+"', "", text))


def test_texts_of_records_cannot_become_markup(tmp_path: Path) -> None:
    confusion = fields()["confusion"]
    classes = [NASTY, "</style>", "</title>"]
    text = built(
        tmp_path,
        {
            "classes": classes,
            "metrics": metrics_from_confusion(confusion, classes).model_dump(),
            "model": NASTY, "recipe": NASTY, "device": NASTY, "dataset": NASTY, "tta": NASTY,
            "split": NASTY, "chosen_on": "<b>", "precision": "<i>", "commit": "<u>",
            "encoder_weights": NASTY, "overrides": {NASTY: "</pre><b>"}, "env": {"<b>": NASTY},
        },
    )  # fmt: skip
    found = Read(text)
    assert len(found.all("script")) == 2
    tags = [tag for tag, _ in found.elements]
    assert [tags.count(tag) for tag in ("b", "i", "u", "style")] == [0, 0, 0, 1]
    assert NASTY in found.cells
    write_speed_record(speed_record(model=NASTY, machine=NASTY), tmp_path / "speed")
    again = Read(built(tmp_path, {"model": NASTY}))
    assert len(again.all("script")) == 2
    assert list(json.loads(again.scripts[0]).values()) == [[[40.0, 310.2]]]


def test_a_page_with_no_records_says_so(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert "<p>There are no records yet.</p>" in built(tmp_path)


def test_every_link_leads_somewhere_and_every_id_is_there_once(tmp_path: Path) -> None:
    write_speed_record(speed_record(), tmp_path / "speed")
    found = Read(built(tmp_path, {}, {"model": "fpn-resnet18"}, {"dataset": "drive"}))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(link["href"]) for link in found.all("a")]
    assert links
    assert {link[1:] for link in links} <= set(map(str, ids))
    labels = [label["for"] for label in found.all("label")]
    assert set(labels) <= set(ids)


def test_changes_since_the_last_version_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 'id="changes"' not in built(tmp_path, {})
    text = built(tmp_path, {"model": "fpn-resnet18"})
    assert "<summary>Changes since version" in text
    assert (
        "<li>changed: unet-resnet18 on camvid, test, pretrained encoder, rank 1 to 2</li>" in text
    )
    assert "<li>new: fpn-resnet18 on camvid, test, pretrained encoder, rank 1, mIoU" in text
    many = [{"model": f"unet-m{n}", "confusion": confusion_with(50)} for n in range(3)]
    for number, change in enumerate(many):
        change["dataset"] = f"d{number}"
    monkeypatch.setattr(site, "CHANGES", 2)
    text = built(tmp_path, *many)
    assert text.count("<li>new: unet-m") == 2
    assert "<li>and 1 more</li>" in text


def test_the_commands_of_a_row(tmp_path: Path) -> None:
    built(
        tmp_path,
        {"commit": "0" * 40 + "-dirty", "seed": 3, "overrides": {"crop": 64, "loss": {"ce": 1}}},
        {"encoder_init": "random", "encoder_weights": None, "recipe": "scratch"},
        {"dataset": "drive", "recipe": "none", "commit": "1" * 40},
    )
    board = read_board(tmp_path / "out" / "leaderboard.json")
    first, scratch, plain = [commands(table, row) for table, row in board.entries()]
    score = "zoo eval RUN --data DATA --split test --out RESULTS"
    assert first.splitlines() == [
        f"git checkout {'0' * 40}  # with changes that were not committed",
        "zoo finetune unet-resnet18 --data DATA --recipe cnn --out RUN seed=3 crop=64 "
        "'loss={\"ce\": 1}'",
        score,
    ]
    assert scratch.splitlines() == [
        "zoo finetune unet-resnet18 --data DATA --recipe scratch --out RUN --encoder-weights none "
        "seed=0",
        score,
    ]
    assert plain.splitlines() == [
        f"git checkout {'1' * 40}",
        "zoo eval unet-resnet18 --data DATA --split test --out RESULTS",
    ]


def points(made: Plot) -> dict[str, tuple[float, float, bool]]:
    """The points of a plot by id: x, y, whether it is on the front."""
    behind, _, ahead = made.svg.partition("ahead_marks")
    mark = r'<path aria-label="[^"]*"[^>]*? transform="translate\(([-\d.e]+),([-\d.e]+)\)"'
    found = [(*map(float, place), front) for front, part in ((False, behind), (True, ahead))
             for place in re.findall(mark, part)]  # fmt: skip
    return dict(zip(made.ids, found, strict=True))


def test_points_are_on_a_logarithmic_axis_and_the_front_is_joined() -> None:
    given = [
        Point("a", "small", 1.0, 50.0),
        Point("b", "middle", 10.0, 60.0),
        Point("c", "beaten <b>", 10.0, 55.0),
        Point("d", "large", 100.0, 70.0),
    ]
    made = plot(given, "parameters, M")
    assert made is not None
    assert made.ids == ["c", "a", "b", "d"]
    found = points(made)
    assert [name for name, (_, _, front) in found.items() if front] == ["a", "b", "d"]
    (xa, ya, _), (xb, yb, _), (xd, yd, _) = (found[name] for name in "abd")
    assert xb - xa == pytest.approx(xd - xb)
    assert ya - yb == pytest.approx(yb - yd)
    assert yb < found["c"][1] < ya
    front = re.search(r"front_marks.*? d=\"([^\"]+)\"", made.svg)
    assert front is not None
    steps = [float(number) for number in re.findall(r"[\d.]+", front[1])]
    assert steps == pytest.approx([xa, ya, xb, ya, xb, yb, xd, yb, xd, yd], abs=1e-2)
    assert made.title == "mIoU against parameters, M: 3 of 4 rows are on the front"
    assert 'aria-label="beaten &lt;b&gt;: 55.00 %, 10"' in made.svg
    assert plot(given, "parameters, M") == made


def test_plots_of_one_point_of_none_and_of_many() -> None:
    assert plot([], "x") is None
    one = plot([Point("a", "one", 2.0, 0.0)], "x")
    assert one is not None
    assert points(one) == {"a": (pytest.approx(182), pytest.approx(102), True)}
    many = [Point(str(n), f"model-{n}", 2.0, 10.0 + n / 100) for n in range(10)]
    many += [Point("x", "model-x", 1.0, 9.0), Point("y", "model-y", 2.2, 10.1)]
    made = plot(many, "x")
    assert made is not None
    # the front is x (9 %), 9 (10.09 %) and y (10.1 %), whose name would overlap that of 9
    assert [name for name in ("x", "8", "9", "y") if f">model-{name}</text>" in made.svg] == [
        "x", "y",
    ]  # fmt: skip
    assert 'aria-label="model-3: 10.03 %, 2"' in made.svg


def test_a_picture_for_each_cost_that_is_known(tmp_path: Path) -> None:
    text = built(tmp_path, {}, {"model": "fpn-resnet18", "gmacs": 7.0})
    assert len(re.findall("<svg", text)) == 2
    write_speed_record(speed_record(), tmp_path / "speed")
    write_speed_record(speed_record(machine="other", peak_mb=None), tmp_path / "speed")
    figures = re.findall(r"<figure[^>]*?(?: data-setup=[^>]*)?>", built(tmp_path))
    setups = [figure[figure.index(" data-rows") :].partition('" ')[2] for figure in figures]
    assert setups == ["", "", 'data-setup="0">', 'data-setup="0">', 'data-setup="1" hidden>']


def test_a_page_without_a_script_allows_none() -> None:
    assert "script" not in render("common/page.html", title="t", style="", body="x")
    assert data_block("x", {"a": "</script>"}) == (
        '<script type="application/json" id="x">{"a":"\\u003c/script>"}</script>'
    )
