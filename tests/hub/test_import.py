"""zoo import: old checkpoints become model folders, or say what does not fit."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from helpers.hub_models import same_output, tiny

import zoo
from zoo.cli.main import run
from zoo.common.errors import InputError
from zoo.creation.import_checkpoint import import_checkpoint

NAME = "unet-test_resnet"


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module._orig_mod.net."])
@pytest.mark.parametrize("holder", [None, "state_dict", "model"])
def test_prefixes_and_holders(tmp_path: Path, prefix: str, holder: str | None) -> None:
    state: Any = {f"{prefix}{name}": t for name, t in tiny().net.state_dict().items()}
    torch.save({holder: state, "epoch": 3} if holder else state, tmp_path / "old.pth")
    made = import_checkpoint(tmp_path / "old.pth", NAME, ["road", "a | b"], tmp_path / "new")
    assert (made.prefix, made.left_out, made.filled) == (prefix, [], [])
    assert same_output(zoo.create(tmp_path / "new"), tiny())


def test_what_is_not_part_of_the_network_is_left_out_and_reported(tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in tiny().net.state_dict().items()}
    state |= {"criterion.weight": torch.ones(2), "model.ema_decay": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "old.ckpt")
    made = import_checkpoint(tmp_path / "old.ckpt", NAME, 2, tmp_path / "new")
    assert made.left_out == ["criterion.weight", "model.ema_decay"]


def test_a_checkpoint_of_before_batches_were_counted(tmp_path: Path) -> None:
    state = {n: t for n, t in tiny().net.state_dict().items() if "num_batches" not in n}
    torch.save(state, tmp_path / "old.pth")
    import_checkpoint(tmp_path / "old.pth", NAME, 2, tmp_path / "new")
    assert same_output(zoo.create(tmp_path / "new"), tiny())


def test_an_encoder_of_smps_own(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = smp.Unet("resnet18", encoder_weights=None, classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "old.pth")
    import_checkpoint(tmp_path / "old.pth", "unet-smp:resnet18", 3, tmp_path / "new")
    model = zoo.create(tmp_path / "new").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), theirs(images))
    again = smp.from_pretrained(str(tmp_path / "new")).eval()
    with torch.no_grad():
        assert torch.equal(again(images), theirs(images))


def averaged(state: dict[str, Any]) -> dict[str, Any]:
    """Every weight plus 1; counters as they are."""
    return {n: t + 1 if t.is_floating_point() else t for n, t in state.items()}


def in_order(state: dict[str, Any]) -> list[Any]:
    return [averaged(state)[name] for name, _ in tiny().net.named_parameters()]


def joined(raw: str, ema: str, separator: str, state: dict[str, Any]) -> dict[str, Any]:
    """One dictionary with a prefix for each set, the buffers only among the raw weights."""
    params = {name for name, _ in tiny().net.named_parameters()}
    average = {n.replace(".", separator): t for n, t in averaged(state).items() if n in params}
    return {raw + n: t for n, t in state.items()} | {ema + n: t for n, t in average.items()}


TWO_SETS: dict[str, Any] = {
    "timm": lambda s: {"state_dict": s, "state_dict_ema": averaged(s), "epoch": 3},
    "torchvision": lambda s: {
        "model": s,
        "model_ema": {"n_averaged": torch.tensor(4)}
        | {f"module.{name}": tensor for name, tensor in averaged(s).items()},
    },
    "what scripts store beside them": lambda s: {
        "state_dict": s, "state_dict_ema": averaged(s), "metric": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, data=PosixPath("data"), epochs=np.int64(3)),
    },
    "state dictionaries": lambda s: {"model_state_dict": s, "ema_state_dict": averaged(s)},
    "with decay": lambda s: {"net": s, "ema": {"module": averaged(s), "updates": 7}},
    "by name": lambda s: {"model": s, "ema": {"shadow": averaged(s), "decay": 0.999}},
    "torch-ema": lambda s: {"model": s, "ema": {"decay": 0.9, "shadow_params": in_order(s)}},
    "Lightning's callbacks": lambda s: {
        "state_dict": {f"model.{name}": tensor for name, tensor in s.items()},
        "callbacks": {"EMA": {"ema_weights": averaged(s)}, "EarlyStopping": {"wait_count": 1}},
    },
    "Lightning's WeightAveraging": lambda s: {
        "state_dict": averaged(s), "current_model_state": s,
        "averaging_state": {"n_averaged": torch.tensor(4)},
    },
    "MMEngine": lambda s: {
        "meta": {"mmengine_version": "0.10"}, "state_dict": averaged(s),
        "ema_state_dict": {"steps": torch.tensor(4)} | {f"module.{n}": t for n, t in s.items()},
    },
    "MMSegmentation 0.x": lambda s: {"state_dict": joined("", "ema_", "_", s)},
    "ema-pytorch": lambda s: joined("online_model.", "ema_model.", ".", s),
    "a module beside the model": lambda s: {"state_dict": joined("net.", "net_ema.", ".", s)},
    "LitEma": lambda s: {"state_dict": joined("model.", "model_ema.", "", s)},
}  # fmt: skip


@pytest.mark.parametrize("writer", TWO_SETS)
def test_of_two_sets_of_weights_the_average_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], writer: str
) -> None:
    state = dict(tiny().net.state_dict())
    torch.save(TWO_SETS[writer](state), tmp_path / "old.pth")
    params = [name for name, _ in tiny().net.named_parameters()]
    for wanted, kind, right in ((None, "ema", averaged(state)), ("raw", "raw", state)):
        made = import_checkpoint(
            tmp_path / "old.pth", NAME, 2, tmp_path / kind, checkpoint_weights=wanted
        )
        model = zoo.create(tmp_path / kind)
        found = model.net.state_dict()
        assert [name for name in params if not torch.equal(found[name], right[name])] == []
        assert made.weights == (model.provenance or {})["checkpoint_weights"] == kind
        said = " ".join(capsys.readouterr().err.split())
        assert said.count("the EMA is imported") == (wanted is None)


def test_an_average_without_buffers_has_those_of_the_raw_weights(tmp_path: Path) -> None:
    state = dict(tiny().net.state_dict())
    name = next(name for name in state if name.endswith("running_mean"))
    state[name] = torch.full_like(state[name], 0.25)
    torch.save(joined("", "ema_", "_", state), tmp_path / "old.pth")
    import_checkpoint(tmp_path / "old.pth", NAME, 2, tmp_path / "new")
    found = zoo.create(tmp_path / "new").net.state_dict()
    assert torch.equal(found[name], state[name])


@pytest.mark.parametrize(
    ("content", "wanted", "message"),
    [
        (lambda s: {"model": s}, "ema", r"no EMA weights, only raw weights \(model\)"),
        (lambda s: {"ema": s}, "raw", r"no raw weights, only EMA weights \(ema\)"),
        (lambda s: s, "swa", "raw, ema"),
        (
            lambda s: {"model": s, "ema": {"shadow_params": in_order(s)[1:]}}, None,
            r"EMA weights without names, \d+ tensors .* --checkpoint-weights raw",
        ),
    ],
)  # fmt: skip
def test_a_file_without_the_wanted_weights(
    tmp_path: Path, content: Any, wanted: str | None, message: str
) -> None:
    torch.save(content(dict(tiny().net.state_dict())), tmp_path / "old.pth")
    with pytest.raises(InputError, match=message):
        import_checkpoint(
            tmp_path / "old.pth", NAME, 2, tmp_path / "new", checkpoint_weights=wanted
        )
    assert not (tmp_path / "new").exists()


def test_raw_weights_beside_a_list_that_does_not_match(tmp_path: Path) -> None:
    state = dict(tiny().net.state_dict())
    torch.save({"model": state, "ema": {"shadow_params": in_order(state)[1:]}}, tmp_path / "a.pth")
    import_checkpoint(tmp_path / "a.pth", NAME, 2, tmp_path / "new", checkpoint_weights="raw")
    assert same_output(zoo.create(tmp_path / "new"), tiny())


def test_numbers_of_an_average_are_no_weights(tmp_path: Path) -> None:
    state = dict(tiny().net.state_dict())
    numbers = {"decay": torch.tensor(0.9), "updates": torch.tensor(3)}
    torch.save({"ema": numbers, "model": state}, tmp_path / "a.pth")
    made = import_checkpoint(tmp_path / "a.pth", NAME, 2, tmp_path / "new")
    assert made.weights == "raw"
    assert same_output(zoo.create(tmp_path / "new"), tiny())
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    torch.save({"model": state, "model_ema": encoder}, tmp_path / "b.pth")
    words = r"its EMA weights \(model_ema\); it holds raw weights too: --checkpoint-weights raw"
    with pytest.raises(InputError, match=words):
        import_checkpoint(tmp_path / "b.pth", NAME, 2, tmp_path / "half")


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    content |= {"model": content, "ema": content}
    torch.save(content, tmp_path / "old.pth")
    with pytest.raises(InputError, match="holds no weights by name"):
        import_checkpoint(tmp_path / "old.pth", NAME, 2, tmp_path / "new")


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


def write_bomb(path: Path) -> None:
    torch.save({"state_dict": Bomb()}, path)


def write_raw_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


@pytest.mark.parametrize("write", [write_bomb, write_raw_pickle])
def test_nothing_is_executed(tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "old.pth")
    with pytest.raises(InputError, match="which could run code"):
        import_checkpoint(tmp_path / "old.pth", NAME, 2, tmp_path / "new")
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a PyTorch checkpoint"),
        (b"hello", "run code|is not a PyTorch checkpoint"),
        (b"\x80\x02cnumpy\ndtype\n)R.", r"is not a PyTorch checkpoint \("),
        (b"\x80\x02cargparse\nNamespace\n(K\x01tR.", r"is not a PyTorch checkpoint \("),
        (None, "There is no checkpoint"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "old.pth").write_bytes(content)
    with pytest.raises(InputError, match=message):
        import_checkpoint(tmp_path / "old.pth", NAME, 2, tmp_path / "new")


def test_a_checkpoint_without_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "loss": [1.0]}, tmp_path / "old.pth")
    with pytest.raises(InputError, match="holds no weights by name"):
        import_checkpoint(tmp_path / "old.pth", NAME, 2, tmp_path / "new")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = tiny("fpn-test_resnet").net.state_dict()
    torch.save(state, tmp_path / "old.pth")
    with pytest.raises(InputError, match="does not fit unet-test_resnet") as caught:
        import_checkpoint(tmp_path / "old.pth", NAME, 2, tmp_path / "new")
    assert "decoder.blocks" in str(caught.value)
    torch.save(tiny().net.state_dict(), tmp_path / "old.pth")
    with pytest.raises(InputError, match=r"segmentation_head\.0\.weight"):
        import_checkpoint(tmp_path / "old.pth", NAME, 5, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"module.{name}": tensor for name, tensor in tiny().net.state_dict().items()}
    torch.save({"state_dict": state | {"loss.weight": torch.ones(1)}}, tmp_path / "old.pth")
    command = ["import", str(tmp_path / "old.pth"), "--model", NAME, "--classes", "road,rest"]
    command += ["--out", str(tmp_path / "new"), "--mean", "0.1,0.2,0.3"]
    assert run([*command, "--std", "0.5,0.5,x"]) == 2
    assert "must be numbers separated by commas" in capsys.readouterr().err
    assert run([*command, "--std", "0.5,0.5"]) == 2
    assert "need 3 values each" in capsys.readouterr().err
    assert run([*command, "--std", "0.5,0.5,0.5"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'new'}\n"
    assert "Removed from the tensor names: module." in err
    assert "not part of the network: loss.weight" in err
    spec = zoo.create(tmp_path / "new").spec
    assert (spec.classes, spec.mean) == (["road", "rest"], [0.1, 0.2, 0.3])
    assert run([*command, "--std", "0.5,0.5,0.5"]) == 2
    assert "exists already" in capsys.readouterr().err

    weights = ["--out", str(tmp_path / "ema"), "--checkpoint-weights", "ema"]
    assert run([*command[:6], *weights]) == 2
    assert "holds no EMA weights" in capsys.readouterr().err
