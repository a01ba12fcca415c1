"""Runs that start from a model object: what they take, keep, say and record; what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_settings import MODEL
from torch import nn

import zoo
from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.creation.import_checkpoint import import_checkpoint
from zoo.evaluation.evaluate import evaluate, make_record
from zoo.hub.folder import read_folder
from zoo.leaderboard.rank import rank
from zoo.models.build import weights_id
from zoo.models.segmentation import SegmentationModel
from zoo.records.record import record_text
from zoo.training import finetune as module
from zoo.training.engine.trainer import Trainer

ONE_EPOCH = [
    "crop=32", "batch_size=4", "precision=fp32", "workers=0", "stages=[{name: all, epochs: 1}]"
]  # fmt: skip


def run(model: Any, data: Path, out: Path, **more: Any) -> Any:
    return zoo.finetune(model, data, out=out, overrides=ONE_EPOCH, **more)


def model(classes: int = 8) -> SegmentationModel:
    torch.manual_seed(1)
    return create(MODEL, classes=classes, encoder_weights=None)


def state_of(found: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in found.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("given") / "run"
    run(model(), scenes, out)
    return out


def test_a_copy_is_trained_and_the_object_stays(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = model().eval()
    given.net.encoder.requires_grad_(False)
    before, learns = state_of(given), [p.requires_grad for p in given.parameters()]
    run(given, scenes, tmp_path / "run")
    assert equal(state_of(given), before)
    assert not any(layer.training for layer in given.modules())
    assert [p.requires_grad for p in given.parameters()] == learns
    trained = create(tmp_path / "run")
    assert not torch.equal(trained.net.encoder.model.layer4[0].conv1.weight,
                           given.net.encoder.model.layer4[0].conv1.weight)  # fmt: skip
    assert equal(state_of(trained), state_of(create(finished)))
    said = " ".join(capsys.readouterr().err.split())
    assert "the given unet-test_resnet: its 8 classes take the names of scenes." in said
    assert trained.spec.classes[:2] == ["sky", "building"]


def test_records_of_given_weights_are_a_table_of_their_own(finished: Path, scenes: Path) -> None:
    digest = weights_id(model().net.state_dict())
    described = json.loads((finished / "run.json").read_text())
    assert (described["started_from"], described["encoder_init"]) == ("given", digest)
    assert read_folder(finished / "given").training == {"encoder_init": digest}
    assert equal(state_of(create(finished / "given")), state_of(model()))
    record = make_record(evaluate(finished, scenes, split="test"))
    assert (record.encoder_init, record.encoder_weights) == (digest, None)
    random = record.model_copy(update={"encoder_init": "random"})
    tables = rank({Path("a"): record, Path("b"): random})
    assert [table.key.encoder_init for table in tables] == [digest, "random"]
    assert f'"encoder_init": "{digest}"' in record_text(record)


def test_the_digest_is_of_names_and_values() -> None:
    # SHA-256 of b"a (2,)\n", 1.0 and 2.0 as float32, b"n ()\n", 3 as int64
    state = {"n": torch.tensor(3), "a": torch.tensor([1.0, 2.0])}
    assert weights_id(state) == weights_id({"a": state["a"].half(), "n": state["n"]})
    assert weights_id(state) == "given-1fe5ffdeb3f2"
    assert weights_id(state | {"n": torch.tensor(4)}) != weights_id(state)


def test_a_run_resumes_without_its_object_before_the_first_checkpoint(
    finished: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(module, "open_run", killed)
        with pytest.raises(KeyboardInterrupt):
            run(model(), scenes, out)
    assert sorted(path.name for path in out.iterdir()) == ["given", "run.lock"]
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            run(model(), scenes, out)
    assert not (out / "checkpoint.pt").exists()
    other = model()
    other.net.segmentation_head[0].bias.data += 1
    with pytest.raises(InputError, match=r"encoder_init: the run has \"given-.*, now it is"):
        run(other, scenes, out, resume=True)
    run(out / "given", scenes, out, resume=True)
    assert equal(state_of(create(out)), state_of(create(finished)))


def test_other_classes_take_a_new_head(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"the given unet-test_resnet has 5 classes \(class_0, .*"
                                         r"\(new_head=True\) to start"):  # fmt: skip
        run(model(5), scenes, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(model(5), scenes, tmp_path / "run", new_head=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "the given unet-test_resnet: the segmentation head is replaced (5 -> 8 classes)" in said
    assert len(create(tmp_path / "run" / "given").spec.classes) == 5


def _other_layer(given: SegmentationModel) -> None:
    given.net.segmentation_head[0] = nn.Conv2d(16, 8, 1)


def _other_kind(given: SegmentationModel) -> None:
    given.net.encoder.model.act1 = nn.GELU()


def _nan(given: SegmentationModel) -> None:
    given.net.segmentation_head[0].weight.data[0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _other_layer,
            r"Layers of the given unet-test_resnet were changed; .*\n.*\n.*shape \(8, 16",
        ),
        (
            _other_kind,
            r"were changed; a run can only .*\n  - net.encoder.model.act1 is GELU, zoo.cre",
        ),
        (_nan, "the given unet-test_resnet holds weights that are NaN or infinite: segmentation_"),
        (
            lambda given: given.to("meta"),
            "the given unet-test_resnet has no weights: it is on the m",
        ),
        (nn.DataParallel, r"model should be .* without a wrapper, got a value .*DataParallel"),
        (lambda given: given.net, r"model should be .* without a wrapper, got a value .*Unet"),
    ],
)
def test_objects_that_cannot_be_taken(
    change: Callable[[Any], object], message: str, scenes: Path, tmp_path: Path
) -> None:
    given = model()
    found = change(given)
    with pytest.raises(InputError, match=message):
        run(given if found is None else found, scenes, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_arguments_that_are_for_names() -> None:
    with pytest.raises(InputError, match="the given unet-test_resnet has weights; encoder_weights"):
        zoo.finetune(model(), "nothing", encoder_weights=None)
    with pytest.raises(InputError, match=r"is built already, .* out model\.decoder_channels, or"):
        zoo.finetune(model(), "nothing", overrides=["model.decoder_channels=[8]"])


def test_find_lr_takes_an_object_and_leaves_it(scenes: Path, tmp_path: Path) -> None:
    given = copy.deepcopy(model()).half()
    before = state_of(given)
    zoo.find_lr(given, scenes, steps=10, out=tmp_path / "lr", overrides=ONE_EPOCH)
    assert equal(state_of(given), before)
    assert sorted(path.suffix for path in (tmp_path / "lr").glob("lr*")) == [
        ".json",
        ".png",
        ".svg",
    ]


def test_scores_and_predictions_leave_modes_and_learning_alone(
    finished: Path, scenes: Path
) -> None:
    given = create(finished).train()
    given.net.encoder.eval().requires_grad_(False)
    modes = [layer.training for layer in given.modules()]
    learns = [parameter.requires_grad for parameter in given.parameters()]
    evaluate(given, scenes, split="val")
    next(zoo.predict(given, sorted((scenes / "val" / "images").iterdir())[0]))
    assert [layer.training for layer in given.modules()] == modes
    assert [parameter.requires_grad for parameter in given.parameters()] == learns


def test_what_is_still_known_of_changed_weights(
    finished: Path, scenes: Path, tmp_path: Path
) -> None:
    training = read_folder(finished / "best").training
    assert training is not None
    loaded = create(finished).double().float().train()
    zoo.save(loaded, tmp_path / "same")
    assert read_folder(tmp_path / "same").training == training
    loaded.net.segmentation_head[0].bias.data[3] += 0.5
    seen = {key: training[key] for key in ("dataset", "data_hash", "chosen_on")}
    assert seen["chosen_on"] == "val"
    zoo.save(loaded, tmp_path / "saved")
    assert read_folder(tmp_path / "saved").training == seen
    digest = weights_id(loaded.net.state_dict())
    for found in (loaded, tmp_path / "saved"):
        with pytest.raises(InputError, match="The split 'val' chose the best epoch"):
            evaluate(found, scenes, split="val", out=tmp_path / "records")
        record = make_record(evaluate(found, scenes, split="test"))
        assert (record.encoder_init, record.chosen_on, record.chosen_miou) == (digest, "val", None)
        assert (record.recipe, record.steps, record.overrides) == ("none", 0, {})
    run(loaded, scenes, tmp_path / "run")
    given = read_folder(tmp_path / "run" / "given").training
    assert given == seen | {"encoder_init": digest}


def test_a_run_from_imported_weights_has_a_record(scenes: Path, tmp_path: Path) -> None:
    torch.save(model().net.state_dict(), tmp_path / "old.pt")
    import_checkpoint(tmp_path / "old.pt", MODEL, 8, tmp_path / "imported")
    run(tmp_path / "imported", scenes, tmp_path / "run")
    record = make_record(evaluate(tmp_path / "run", scenes, split="test"))
    assert record.encoder_init == weights_id(model().net.state_dict())
