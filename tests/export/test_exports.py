"""zoo check exports: the table, how it goes on, and whether it holds here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zoo.checks import exports
from zoo.cli.main import run
from zoo.common.errors import InputError, RunError
from zoo.exporting import table
from zoo.exporting.formats import FORMATS
from zoo.exporting.table import FAMILIES, Cell
from zoo.inference.graphs import Graph
from zoo.registry.decoders import DECODERS
from zoo.registry.encoders import encoders


def cell(decoder: str, format: str, status: str = "validated", size: str = "dynamic") -> Cell:
    problem = "" if size == "dynamic" else "ValueError: no"
    measured = ("1.000000", "1.0e-06") if status == "validated" else ("", "")
    return Cell("ResNet", "test_resnet", decoder, format, status, size, *measured, problem)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Decoders that were exported; ONNX of deeplabv3 works at one size, torch-export not at all."""
    found: list[str] = []

    def run_pair(family: str, encoder: object, decoder: str) -> list[Cell]:
        found.append(decoder)
        if decoder == "deeplabv3":
            return [
                cell(decoder, "onnx", size="160x160"),
                cell(decoder, "openvino"),
                cell(decoder, "torch-export", "blocked", ""),
            ]
        return [cell(decoder, name) for name in FORMATS]

    monkeypatch.setattr(exports, "run_pair", run_pair)
    return found


def test_the_pairs_are_all_that_can_be_built() -> None:
    pairs = [(encoder.name, key) for _, encoder, key in exports.wanted()]
    queries = {encoder for encoder, key in pairs if key in ("eomt", "pmt")}
    assert queries <= {"test_vit"}  # plain transformers only
    assert len(pairs) == len(FAMILIES) * (len(DECODERS) - 2) + 2 * len(queries)
    assert [key for _, _, key in exports.wanted("u*-test_resnet")] == [
        "unet", "unetplusplus", "upernet",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"No pair 'resnot'\. Pairs are DECODER-ENCODER"):
        exports.wanted("resnot")


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, ran: list[str]) -> None:
    file = tmp_path / "exports.csv"
    exports.run_all(exports.wanted("deeplabv3-test_resnet"), file=file)
    cells = exports.run_all(exports.wanted("deeplab*-test_resnet"), file=file)
    assert ran == ["deeplabv3", "deeplabv3plus"]
    assert len(cells) == 6
    assert table.parse(file.read_text()) == cells
    exports.run_all(exports.wanted("deeplabv3-test_resnet"), rerun=True, file=file)
    assert ran[2:] == ["deeplabv3"]
    file.write_text(file.read_text().replace("with timm ", "with timm 9", 1))
    exports.run_all(exports.wanted("deeplabv3-test_resnet"), file=file)
    assert ran[3:] == ["deeplabv3"]


def test_what_differs_from_the_table_is_said(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = [cell("deeplabv3", name) for name in ("onnx", "openvino")]
    monkeypatch.setattr(table, "text", lambda: table.as_text(rows, "timm 0.1"))
    assert run(["check", "exports", "--only", "deeplabv3-test_resnet"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"made with timm 0.1; installed are {exports.versions()}" in said
    assert "1 of 3 cells are missing" in said
    assert "onnx: the table has validated dynamic, this run validated 160x160 ValueError" in said
    right = [cell("unet", name) for name in FORMATS]
    monkeypatch.setattr(table, "text", lambda: table.as_text(right, exports.versions()))
    assert run(["check", "exports", "--only", "unet-test_resnet"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "onnx            1 of 1 validated, 1 of these with dynamic sizes"
    assert out[-1] == "the table of exports is up to date"


def test_the_docs_mark_what_is_limited_and_say_why(
    ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = exports.wanted("deeplabv3*-test_resnet")
    rows = [row for pair in pairs for row in exports.run_pair(*pair)]
    monkeypatch.setattr(table, "shipped", lambda: rows)
    marks = {line[0]: line[1] for line in table.matrix()}
    assert marks["`deeplabv3`"] == "onnx: 160x160, openvino: dynamic, torch-export: blocked"
    assert (marks["`deeplabv3plus`"], marks["`unet`"]) == ("dynamic", "-")
    assert table.reasons() == [
        ["`test_resnet`", "`deeplabv3`", "onnx", "160x160", "ValueError: no"],
        ["`test_resnet`", "`deeplabv3`", "torch-export", "blocked", "ValueError: no"],
    ]


def test_where_dynamic_sizes_fail_a_fixed_size_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def to_onnx(graph: Graph, recorded: Graph) -> bytes:
        assert recorded is graph
        raise RunError("no") from ValueError("operators are missing")

    def to_program(graph: Graph, limit_s: float) -> Graph:
        if graph.options.size is None:
            raise RunError("torch cannot export it") from ValueError("sizes\nare burnt in")
        return graph

    monkeypatch.setattr(exports, "to_onnx", to_onnx)
    monkeypatch.setattr(exports, "to_program", to_program)
    monkeypatch.setattr(
        exports, "program_session", lambda graph: lambda x: graph(torch.from_numpy(x)).numpy()
    )
    (pair,) = exports.wanted("linear-test_resnet")
    first, second, third = exports.run_pair(*pair)
    assert first[4:] == ("blocked", "", "", "", "ValueError: operators are missing")
    assert second[3:] == ("openvino", *first[4:])
    assert third[4:7] == ("validated", "256x256", "1.000000")
    assert third.problem == "ValueError: sizes are burnt in"


def test_the_table_that_ships_decides_every_cell() -> None:
    rows = table.shipped()
    assert table.text() == table.as_text(rows, table.made_with(table.text()))
    assert [(row.encoder, row.decoder, row.format) for row in rows] == [
        (encoder.name, key, name) for _, encoder, key in exports.wanted() for name in FORMATS
    ]
    for row in rows:
        if row.status == "validated":
            assert float(row.equal) >= 0.999
            fixed = encoders()[row.encoder].built_for_size
            assert row.size == "dynamic" or row.problem or fixed, row
        else:
            assert row.status == "blocked"
            assert row.problem, row
    dynamic = {row.decoder for row in rows if (row.format, row.size) == ("onnx", "dynamic")}
    assert len(dynamic) >= 13


@pytest.mark.long
def test_a_part_of_the_table_holds_here() -> None:
    """Of a net of any size, and of one that is built for a size."""
    for pair in ("unet-test_resnet", "pspnet-test_convnext", "fpn-test_coatnet"):
        assert exports.differences(1, only=pair) == []
