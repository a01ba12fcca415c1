"""zoo check encoders: what a pair must do, the table and how it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from zoo.checks import coverage
from zoo.cli.main import run
from zoo.common.errors import InputError
from zoo.hub.folder import read_folder
from zoo.models.segmentation import SegmentationModel
from zoo.registry import encoders as table
from zoo.registry.decoders import DECODERS
from zoo.registry.encoders import Pair, encoders


def test_the_pairs_are_the_smallest_net_of_each_module_with_each_decoder() -> None:
    pairs = coverage.wanted()
    modules = {row.module for row in encoders().values()}
    assert len(pairs) == len(modules) * (len(DECODERS) - 2) + 2 * 3 == 98 * 15 + 6
    (net,) = {encoder.name for encoder, _ in pairs if encoder.module == "resnet"}
    assert net == "test_resnet"
    assert [key for _, key in coverage.wanted("resnet", "f*")] == ["fpn", "fcn"]
    plain = {encoder.module for encoder, _ in coverage.wanted("*", "[ep]*mt")}
    assert plain == {"vision_transformer", "deit", "eva"}
    with pytest.raises(InputError, match="No pair of a timm module 'resnot' and a decoder"):
        coverage.wanted("resnot")


@pytest.mark.parametrize(
    ("module", "decoder", "path"),
    [
        ("resnet", "unet", "smp"),
        ("resnet", "linear", "adapter"),
        ("resnet", "pspnet", "adapter"),
        ("mambaout", "pan", "adapter"),
        ("vision_transformer", "eomt", "adapter"),
        ("rexnet", "pspnet_lite", "adapter"),  # its map of stride 8 has 61 channels
    ],
)
def test_a_pair_that_works(module: str, decoder: str, path: str) -> None:
    ((encoder, key),) = coverage.wanted(module, decoder)
    assert coverage.run_pair(encoder, key) == Pair(module, encoder.name, decoder, path, "")


class Faulty(nn.Module):
    """One wrong thing at a time."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.fault = fault
        if fault == "dead":
            self.classifier = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.decoder(self.encoder(images))
        if self.fault == "size":
            return logits[..., :1]
        if self.fault == "bf16" and not self.training:
            return logits / 0
        if self.fault == "state" and not self.training:
            return logits + torch.rand(())
        return logits * 0 if self.fault == "zero" else logits


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("none", ""),
        ("size", "PairError: the network gives logits of 160 x 1 pixels"),
        ("dead", "PairError: 2 parameters without gradient, such as net.classifier.weight"),
        ("zero", "PairError: the gradient of the whole encoder is zero"),
        ("bf16", "PairError: logits under bf16 are not finite"),
        ("state", "PairError: a loaded model gives other logits than the stored one"),
    ],
)
def test_every_fault_is_found(fault: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(spec: object, *_: object) -> SegmentationModel:
        return SegmentationModel(Faulty(fault), spec)

    def loaded(folder: Path) -> SegmentationModel:
        model = made(read_folder(folder).spec)
        model.net.load_state_dict(load_file(folder / "model.safetensors"))
        return model

    monkeypatch.setattr(coverage, "build", made)
    monkeypatch.setattr(coverage, "load_folder", loaded)
    assert coverage.run_pair(encoders()["test_resnet"], "linear").problem == problem


def test_what_plain_smp_loads_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = coverage.smp.from_pretrained

    def loaded(folder: str) -> nn.Module:
        net = loads(folder)
        with torch.no_grad():
            net.segmentation_head[0].bias.add_(1)
        return net

    monkeypatch.setattr(coverage.smp, "from_pretrained", loaded)
    problem = coverage.run_pair(encoders()["test_resnet"], "unet").problem
    assert problem == "PairError: plain SMP gives other logits from the stored model"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pairs that were run; deeplabv3 fails."""
    ran: list[str] = []

    def run_pair(encoder: object, decoder: str) -> Pair:
        ran.append(decoder)
        problem = "ValueError: no" if decoder == "deeplabv3" else ""
        return Pair("resnet", "test_resnet", decoder, "smp", problem)

    monkeypatch.setattr(coverage, "run_pair", run_pair)
    return ran


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, counted: list[str]) -> None:
    file = tmp_path / "coverage.csv"
    coverage.run_all(coverage.wanted("resnet", "u*"), file=file)
    assert counted == ["unet", "unetplusplus", "upernet"]
    rows = coverage.run_all(coverage.wanted("resnet", "un*"), file=file)
    assert counted == ["unet", "unetplusplus", "upernet"]
    assert [row.decoder for row in rows] == ["unet", "unetplusplus"]
    coverage.run_all(coverage.wanted("resnet", "unet"), rerun=True, file=file)
    assert counted[3:] == ["unet"]
    assert len(table.parse_coverage(file.read_text())) == 3
    other = file.read_text().replace("with timm ", "with timm 9", 1)
    file.write_text(other)
    coverage.run_all(coverage.wanted("resnet", "unet"), file=file)
    assert counted[4:] == ["unet"]


def test_the_summary_has_the_denominator_and_every_failure() -> None:
    rows = [
        Pair("a", "a1", "unet", "smp", ""),
        Pair("b", "b1", "unet", "adapter", "E: x"),
        Pair("c", "c1", "unet", "adapter", ""),
    ]
    assert coverage.summary(rows) == [
        "unet            2 of 3 work, 1 of these through the adapter",
        "all             2 of 3 work, 1 of these through the adapter",
        "unet-b1: E: x",
    ]


def test_the_summary_says_what_a_decoder_leaves_out_and_why() -> None:
    *_, line = coverage.summary([Pair("eva", "e", "eomt", "adapter", "")])
    refused = [row for row in encoders().values() if DECODERS["eomt"].refuses(row)]
    assert line == (
        f"eomt leaves out {len(refused)} of 1371 architectures: queries only pass through plain "
        "transformers whose blocks have no parallel parts"
    )
    assert len(refused) == 1134
    assert all(bool(row.why) == bool(row.takes or row.leaves_out) for row in DECODERS.values())


def test_the_command_runs_writes_and_fails_where_a_pair_fails(
    tmp_path: Path,
    counted: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "coverage.csv"
    monkeypatch.setattr(coverage.run_all, "__kwdefaults__", {"rerun": False, "file": file})
    arguments = ["check", "encoders", "--write", "--module", "resnet", "--decoder"]
    assert run([*arguments, "unet"]) == 0
    assert "1 of 1 work" in capsys.readouterr().out
    assert run([*arguments, "deeplab*"]) == 1
    assert "deeplabv3-test_resnet: ValueError: no" in capsys.readouterr().out
    assert counted == ["unet", "deeplabv3", "deeplabv3plus"]
    assert len(table.parse_coverage(file.read_text())) == 3


def test_what_differs_from_the_table_is_said(
    counted: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {("resnet", "deeplabv3"): Pair("resnet", "test_resnet", "deeplabv3", "smp", "")}
    monkeypatch.setattr(table, "covered_pairs", lambda: said)
    monkeypatch.setattr(table, "coverage_versions", lambda: "timm 0.1")
    assert run(["check", "encoders", "--module", "resnet"]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert f"made with timm 0.1; installed are {coverage.versions()}" in text
    assert "14 of 15 pairs are missing" in text
    assert "deeplabv3-test_resnet: the table has ('smp', ''), this run ('smp', 'ValueErr" in text
    monkeypatch.setattr(table, "coverage_versions", coverage.versions)
    said[("resnet", "fpn")] = Pair("resnet", "test_resnet", "fpn", "smp", "")
    assert run(["check", "encoders", "--module", "resnet", "--decoder", "fpn"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "fpn             1 of 1 work, 0 of these through the adapter",
        "all             1 of 1 work, 0 of these through the adapter",
        "the table of decoders and encoders is up to date",
    ]


def test_the_page_states_what_the_table_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
    assert "\n".join(coverage.summary(coverage.listed())) in page


@pytest.mark.long
def test_a_part_of_the_table_holds_here() -> None:
    """Of every way: SMP's own, dilated by timm or by zoo, merged, mask queries."""
    assert coverage.differences(2, module="[dr]e[gn]*") == []
    assert coverage.differences(1, module="vision_transformer", decoder="eomt") == []


def test_the_table_that_ships_is_generated_and_names_known_pairs() -> None:
    text = coverage.FILE.read_text()
    assert text.startswith("# Generated by `zoo check encoders --write` with timm ")
    known = {(encoder.module, encoder.name, key) for encoder, key in coverage.wanted()}
    rows = table.parse_coverage(text)
    assert {(row.module, row.encoder, row.decoder) for row in rows} <= known
    assert text == table.format_coverage(rows, table.coverage_versions())
