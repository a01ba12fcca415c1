"""Timing models: turns with the reference, short memory, failures, and one real measurement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zoo.bench.speed import measure
from zoo.bench.speed.measure import (
    SpeedOutcome,
    SpeedSetting,
    checked,
    parse_batches,
    parse_size,
    percentile_95,
    setting_from,
)
from zoo.cli.main import run
from zoo.common.errors import InputError, RunError
from zoo.records.speed import (
    SpeedRecord,
    parse_speed_record,
    read_speed_records,
)

SETTING = SpeedSetting(size=(64, 96), batches=(2, 4, 16), rounds=3, reference="fpn-test_resnet")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the processes that only pretend have answered, in order."""
    monkeypatch.setenv("FAKE_SPEED_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def timed(*names: str, setting: SpeedSetting = SETTING) -> list[SpeedOutcome]:
    return list(measure.measure(names, setting, module="helpers.fake_speed"))


def record(outcome: SpeedOutcome) -> SpeedRecord:
    assert outcome.record is not None, outcome.reason
    return outcome.record


def test_a_model_takes_turns_with_the_reference(log: Path) -> None:
    found = record(timed("unet-test_resnet")[0])
    # two images take 20, 60 and 40 ms, three times; those of the reference always 80 ms
    assert found.latency_ms.p50 == 40.0
    assert found.latency_ms.p95 == 60.0
    assert found.reference.model == "fpn-test_resnet"
    assert found.reference.ratio == 0.5
    # 16 images are too many and 8 are not; a median image takes 20 ms
    assert found.throughput == {"2": 50.0, "4": 50.0, "8": 50.0}
    assert (found.batch, found.size, found.peak_mb) == (2, [64, 96], 102.0)
    assert (found.machine, found.memory_format) == ("one CPU, 2 threads", "channels_last")
    turns = ["unet-test_resnet seconds", "fpn-test_resnet seconds"] * 3
    assert log.read_text().splitlines() == [
        "fpn-test_resnet model",
        "unet-test_resnet model",
        *turns,
        "unet-test_resnet seconds",
        "unet-test_resnet short",
        "unet-test_resnet model",
        "unet-test_resnet seconds",
    ]


def test_the_latency_falls_back_to_a_batch_that_fits(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = SpeedSetting(size=(64, 96), batches=(8, 16), rounds=1, reference="fpn-test_resnet")
    found = record(timed("unet-test_resnet", setting=setting)[0])  # the reference holds 5 images
    assert found.batch == 4
    assert found.throughput == {"4": 50.0, "8": 50.0}
    said = " ".join(capsys.readouterr().err.split())
    assert "unet-test_resnet: not enough memory for 8 images of 64x96, trying half." in said
    assert "unet-test_resnet: not enough memory for 16 images, trying half." in said


def test_a_process_that_the_system_ended_is_started_again(log: Path) -> None:
    [outcome] = timed("segformer-test_resnet")
    found = record(outcome)
    assert (found.batch, found.throughput) == (1, {"1": 10.0})
    assert log.read_text().count("segformer-test_resnet model") == 4


def test_models_that_fail_do_not_disturb_the_others(log: Path) -> None:
    names = ["linknet", "manet", "fcn", "pan", "unet"]
    found = timed(*(f"{name}-test_resnet" for name in names))
    assert [outcome.reason for outcome in found] == [
        "nothing can be built",
        "there is not enough memory for the model itself",
        "its process ended with exit code 3",
        "there is not enough memory for one image of 64x96",
        "",
    ]
    assert [outcome.record is not None for outcome in found] == [False, False, False, False, True]


def test_without_a_reference_nothing_is_measured(log: Path) -> None:
    setting = SpeedSetting(reference="fcn-test_resnet")
    with pytest.raises(RunError, match=r"The reference fcn-test_resnet cannot be timed: its pro"):
        timed("unet-test_resnet", setting=setting)


def test_the_verb_writes_records_and_says_what_failed(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = measure.measure

    def pretend(names: list[str], setting: SpeedSetting) -> list[SpeedOutcome]:
        assert setting.batches == (2, 4)
        return list(real(names, setting, module="helpers.fake_speed"))

    monkeypatch.setattr("zoo.bench.speed.measure.measure", pretend)
    words = ["bench", "speed", "unet-test_resnet", "fcn-test_resnet", "unet-test_resnet"]
    words += ["--size", "64x96", "--batches", "4,2,4", "--rounds", "1", "--reference"]
    words += ["fpn-test_resnet", "--out", str(tmp_path / "speed")]
    assert run(words) == 1
    said = capsys.readouterr()
    assert "- fcn-test_resnet: its process ended with exit code 3" in said.err
    assert "64x96, fp32, channels_last; milliseconds of 2 images; the ref" in " ".join(
        said.err.split()
    )
    heads, row = said.out.splitlines()
    assert heads.split()[:3] == ["model", "params", "M"]
    assert row.split() == [
        *("unet-test_resnet", "1.50", "-", "40.0", "58.0", "50.0", "(2)", "102", "0.25", "0.50")
    ]
    [found] = read_speed_records(tmp_path / "speed").values()
    assert found.model == "unet-test_resnet"
    assert run([*words[:3], *words[5:-2], "--json"]) == 0
    [printed] = json.loads(capsys.readouterr().out)
    assert printed["latency_ms"] == {"p50": 40.0, "p95": 58.0}
    assert parse_speed_record(printed, "what was printed").record_hash == printed["record_hash"]


def test_all_that_is_wrong_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "speed", "unet-nothing", "--reference", "what", "--precision", "int8"]
    words += ["--memory-format", "rows", "--device", "tpu", "--size", "16x64", "--batches", "0"]
    assert run([*words, "--threads", "0", "--rounds", "0"]) == 2
    said = capsys.readouterr().err
    for part in (
        "zoo: Cannot benchmark:",
        "Unknown encoder 'nothing'.",
        "'what'",
        "the precision must be one of fp32, bf16, fp16, auto, not 'int8'",
        "the memory format must be one of channels_last, contiguous, not 'rows'",
        "the device must be one of auto, cpu, cuda, not 'tpu'",
        "each side must have 32 to 16384 pixels, not 16x64",
        "batch sizes must be between 1 and 65536, not (0,)",
        "--threads must be at least 1, not 0",
        "--rounds must be at least 1, not 0",
    ):
        assert part in said, part


def test_sizes_and_batches_are_read() -> None:
    assert parse_size("512") == (512, 512)
    assert parse_size("360X480") == (360, 480)
    assert parse_batches("1, 4,16") == (1, 4, 16)
    for text in ("", "a", "1x2x3", "-5", "x"):
        with pytest.raises(InputError, match="Use 512, or HEIGHTxWIDTH as in 360x480"):
            parse_size(text)
    with pytest.raises(InputError, match="Use whole numbers, as in 1,4,16"):
        parse_batches("1,,2")


def test_settings_survive_their_text() -> None:
    assert setting_from(SETTING.as_text()) == SETTING
    assert checked(["unet-test_resnet"], SpeedSetting(batches=(4, 1, 4))).batches == (1, 4)


def test_the_percentile_is_numpys() -> None:
    values = np.random.default_rng(0).random(37).tolist()
    assert percentile_95(values) == pytest.approx(np.percentile(values, 95), rel=1e-12)


@pytest.mark.long
def test_a_real_model_is_measured_within_its_memory() -> None:
    """256 images need 460 MB, more than the limit allows."""
    setting = SpeedSetting(
        size=(64, 64), batches=(1, 512), precision="fp32", threads=1, device="cpu", rounds=2,
        turn_s=0.01, reference="unet-test_resnet", memory_mb=300,
    )  # fmt: skip
    [outcome] = measure.measure(["unet-test_resnet"], setting)
    found = record(outcome)
    from zoo.creation.create import create
    from zoo.models.build import gmacs, params_m

    net = create("unet-test_resnet", classes=19, encoder_weights=None)
    assert found.params_m == params_m(net)
    assert found.gmacs == gmacs(net.spec, 64, 64)
    assert found.throughput.keys() > {"1"}
    assert max(map(int, found.throughput)) < 512
    assert found.peak_mb is not None
    assert 4 * found.params_m * 1e6 / 2**20 < found.peak_mb < 300
    assert found.threads == 1
    assert found.machine.endswith(", 1 threads")
    assert 0.2 < found.reference.ratio < 5


def test_a_gpu_that_is_not_there_is_named() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    from zoo.bench.speed.timing import Bench

    with pytest.raises(InputError, match="torch finds no GPU"):
        Bench("unet-test_resnet", SpeedSetting(device="cuda"))
