"""The page in a real browser: sorting, filters, the way to the records, keyboard, phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.record_examples import confusion_with, record, speed_record
from helpers.scripts import load_script

from zoo.leaderboard.build import write
from zoo.records.record import write_record
from zoo.records.speed import write_speed_record

ROOT = Path(__file__).parents[2]


chromium = load_script("chromium")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        chromium.find() is None,
        reason="NO CHROMIUM: the page of the leaderboard is NOT tested; apt-get install chromium",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.Chromium() as found:
        yield found


@pytest.fixture(scope="module")
def leaderboard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    models = [
        ("unet-resnet18", 60, 14.3, "a1_in1k"),
        ("fpn-resnet18", 80, 13.0, "a1_in1k"),
        ("unet-convnext_tiny", 90, 33.0, "in12k_ft_in1k"),
        ("unet-<b>nasty</b>", 70, 5.0, "tag"),
    ]
    for name, hits, params, tag in models:
        changes = {"confusion": confusion_with(hits), "params_m": params, "gmacs": params}
        run = record(model=name, encoder_weights=tag, **changes)
        write_record(run, folder / "results")
    for name, p50, machine in (
        ("unet-resnet18", 9.5, "A"), ("fpn-resnet18", 80.0, "A"), ("fpn-resnet18", 2.0, "B"),
    ):  # fmt: skip
        timed = speed_record(model=name, machine=machine, latency_ms={"p50": p50, "p95": 99.0})
        write_speed_record(timed, folder / "speed")
    write(folder / "results", folder, folder / "speed")
    return folder / "leaderboard.html"


@pytest.fixture
def opened(browser: Any, leaderboard: Path) -> Iterator[Any]:
    browser.problems.clear()
    browser.open(ROOT / "LICENSE")  # so that the page is loaded anew
    browser.open(leaderboard)
    yield browser
    assert browser.problems == []


SHOWN = """[...document.querySelectorAll(".main tbody tr")].filter(r => !r.hidden)
  .map(r => r.cells[1].textContent)"""
BY_MIOU = ["unet-convnext_tiny", "fpn-resnet18", "unet-<b>nasty</b>", "unet-resnet18"]


def head(name: str) -> str:
    return f'document.querySelector(".main th[data-name={name}] button")'


def put(browser: Any, control: str, value: str) -> None:
    browser.run(
        f'(() => {{ const c = document.getElementById("{control}"); c.value = "{value}";'
        ' c.dispatchEvent(new Event("input", {bubbles: true})); })()'
    )


def test_it_opens_in_order(opened: Any) -> None:
    assert opened.run(SHOWN) == BY_MIOU
    assert opened.run("document.getElementById('count').textContent") == "4 of 4 rows"
    assert opened.run("document.querySelectorAll('b').length") == 0


def test_a_head_sorts_and_sorts_back(opened: Any) -> None:
    by_size = ["unet-<b>nasty</b>", "fpn-resnet18", "unet-resnet18", "unet-convnext_tiny"]
    opened.run(head("params") + ".click()")
    assert opened.run(SHOWN) == by_size
    state = head("params") + ".parentElement.getAttribute('aria-sort')"
    assert opened.run(state) == "ascending"
    opened.run(head("params") + ".click()")
    assert opened.run(SHOWN) == by_size[::-1]
    assert opened.run(state) == "descending"
    opened.run(head("miou") + ".click()")  # scores begin with the best
    assert opened.run(SHOWN) == BY_MIOU
    assert opened.run(state) == "none"


def test_rows_without_a_number_stand_last_either_way(opened: Any) -> None:
    for expected in (["unet-resnet18", "fpn-resnet18"], ["fpn-resnet18", "unet-resnet18"]):
        opened.run(head("latency") + ".click()")
        assert opened.run(SHOWN)[:2] == expected


def test_filters(opened: Any) -> None:
    put(opened, "search", "RESNET")
    assert opened.run(SHOWN) == ["fpn-resnet18", "unet-resnet18"]
    put(opened, "decoder", "unet")
    assert opened.run(SHOWN) == ["unet-resnet18"]
    assert opened.run("document.getElementById('count').textContent") == "1 of 4 rows"
    other = """[...document.querySelectorAll("table.board:not(.main) tbody tr")]
      .filter(r => !r.hidden).map(r => r.cells[1].textContent)"""
    assert opened.run(other) == ["unet-resnet18"]
    opened.run("document.querySelector('button[type=reset]').click()")
    opened.run("new Promise(r => setTimeout(r, 20))")
    assert opened.run(SHOWN) == BY_MIOU
    put(opened, "params", "14")
    assert opened.run(SHOWN) == ["fpn-resnet18", "unet-<b>nasty</b>"]
    put(opened, "params", "")
    put(opened, "family", "convnext")
    assert opened.run(SHOWN) == ["unet-convnext_tiny"]
    put(opened, "family", "")
    put(opened, "license", "not stated")
    assert opened.run(SHOWN) == ["unet-<b>nasty</b>"]


def test_latency_is_that_of_the_chosen_machine(opened: Any) -> None:
    put(opened, "latency", "10")
    assert opened.run(SHOWN) == ["unet-resnet18"]
    hidden = (
        '[...document.querySelectorAll("figure[data-setup]")].map(f => [f.dataset.setup, f.hidden])'
    )
    assert opened.run(hidden) == [["0", False], ["0", False], ["1", True], ["1", True]]
    put(opened, "setup", "1")
    assert opened.run(SHOWN) == ["fpn-resnet18"]
    assert opened.run(hidden) == [["0", True], ["0", True], ["1", False], ["1", False]]


def test_a_name_leads_to_where_its_numbers_come_from(opened: Any) -> None:
    opened.run('document.querySelector(".main tbody tr a").click()')
    opened.run("new Promise(r => setTimeout(r, 50))")
    found = opened.run(
        """(() => { const d = document.activeElement.closest("details");
        const box = d.getBoundingClientRect();
        return [d.open, d.querySelector("code").textContent, box.height > 100,
                box.top >= -1 && box.top < innerHeight]; })()"""
    )
    assert found[0] is True
    assert found[1].startswith("zoo finetune unet-convnext_tiny --data DATA --recipe cnn")
    assert found[2:] == [True, True]


def test_a_link_to_a_row_opens_it_at_once(opened: Any, leaderboard: Path) -> None:
    target = opened.run('document.querySelector(".main tbody tr a").hash')
    opened.open(ROOT / "LICENSE")
    opened.open(leaderboard, target)
    assert opened.run(f'document.querySelector("{target.replace("#", "[id=")}]").open') is True


def test_the_keyboard_sorts(opened: Any) -> None:
    opened.run(head("params") + ".focus()")
    opened.press("Enter", 13, "\r")
    assert opened.run(SHOWN)[0] == "unet-<b>nasty</b>"
    opened.press("Tab", 9)
    assert opened.run("document.activeElement.textContent") == "GMACs"


def test_a_long_table_shows_a_hundred_rows_until_asked(browser: Any, tmp_path: Path) -> None:
    for number in range(103):
        run = record(model=f"unet-m{number}", params_m=float(number))
        write_record(run, tmp_path / "results")
    write(tmp_path / "results", tmp_path)
    browser.problems.clear()
    browser.open(tmp_path / "leaderboard.html")
    shown = f"({SHOWN}).length"
    more = 'document.querySelector(".scroll + .more")'
    assert browser.run(shown) == 100
    assert browser.run(f"[{more}.hidden, {more}.textContent]") == [False, "show all 103 rows"]
    browser.run(head("params") + ".click()")
    browser.run(head("params") + ".click()")
    assert browser.run(SHOWN)[:2] == ["unet-m102", "unet-m101"]
    assert browser.run(shown) == 100
    put(browser, "search", "m10")
    assert browser.run(SHOWN) == ["unet-m102", "unet-m101", "unet-m100", "unet-m10"]
    assert browser.run(f"{more}.hidden") is True
    put(browser, "search", "")
    browser.run(f"{more}.click()")
    assert browser.run(shown) == 103
    assert browser.run(f"{more}.hidden") is True
    assert browser.problems == []


def test_a_phone_has_no_sideways_scrolling_but_in_tables(opened: Any) -> None:
    opened.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2,
                mobile=True)  # fmt: skip
    try:
        assert opened.run("document.documentElement.scrollWidth") <= 360
        assert opened.run("document.querySelector('.scroll').scrollWidth") > 360
    finally:
        opened.call("Emulation.clearDeviceMetricsOverride")


def test_it_is_dark_where_that_is_wished(opened: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = opened.run(colour)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    opened.call("Emulation.setEmulatedMedia", features=[feature])
    try:
        assert (light, opened.run(colour)) == ("rgb(255, 255, 255)", "rgb(21, 24, 28)")
    finally:
        opened.call("Emulation.setEmulatedMedia", features=[])


def test_a_foreign_script_does_not_run(browser: Any, leaderboard: Path, tmp_path: Path) -> None:
    text = leaderboard.read_text().replace("<h1>", "<script>window.bad = 1</script><h1>")
    (tmp_path / "page.html").write_text(text)
    browser.problems.clear()
    browser.open(tmp_path / "page.html")
    assert browser.run("window.bad === undefined") is True
    assert any("Content Security Policy" in problem for problem in browser.problems)
