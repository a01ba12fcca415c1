"""Models of others under a name of the registry: one door, their classes, their terms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from helpers.hub_models import files_of
from helpers.hub_server import LoopbackHub
from PIL import Image

import zoo
from zoo.cli.main import run
from zoo.common.class_lists import CLASS_LISTS
from zoo.common.errors import InputError
from zoo.data.scenes import write_scenes
from zoo.hub.card import fields_of
from zoo.hub.config import parse_config
from zoo.hub.folder import load_folder, save_folder
from zoo.hub.push import plan_upload
from zoo.leaderboard.lookup import show
from zoo.registry.decoders import check_options
from zoo.registry.load import load_registry
from zoo.registry.resolve import list_models, resolve
from zoo.registry.weights import default_weights
from zoo.training.plan import RunRequest, make_plan

NAME, HUB = "segformer-b0-ade20k", "smp-hub/segformer-b0-512x512-ade-160k"
TINY, TINY_HUB = "unet-tiny-streets", "team/streets"
ROW = (
    "models: {unet-tiny-streets: {encoder: test_resnet, license: cc-by-nc-4.0, default: streets, "
    "mean: [0.1, 0.2, 0.3], std: [0.5, 0.5, 0.5], args: {decoder_channels: [16, 8, 8, 4, 4]}, "
    "weights: {streets: {hub: team/streets, classes: {road: [9, 8, 7], rest: [0, 0, 1]}}}}}"
)


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, bytes]]:
    """The network of SegFormer-B0 and the files that SMP writes of it."""
    torch.manual_seed(0)
    net = smp.Segformer("mit_b0", encoder_weights=None, classes=150).eval()
    folder = tmp_path_factory.mktemp("segformer")
    net.save_pretrained(folder)
    return net, files_of(folder)


@pytest.fixture
def tiny(
    loopback_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, str]:
    """A tiny network of SMP on the Hub, named by an overlay; with its commit."""
    torch.manual_seed(0)
    channels = (16, 8, 8, 4, 4)
    net = smp.Unet("tu-test_resnet", encoder_weights=None, classes=2, decoder_channels=channels)
    net.eval().save_pretrained(tmp_path / "smp")
    (tmp_path / "mine.yaml").write_text(ROW)
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "mine.yaml"))
    return net, loopback_hub.add_repo(TINY_HUB, files_of(tmp_path / "smp"))


def same(model: Any, net: Any) -> bool:
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.equal(model.eval()(images), net(images))


def test_a_name_gives_the_trained_model_with_its_classes_and_terms(
    loopback_hub: LoopbackHub,
    segformer: tuple[Any, dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    net, files = segformer
    commit = loopback_hub.add_repo(HUB, files)
    model = zoo.create(NAME)
    said = capsys.readouterr().err
    assert f"pins no commit of {NAME}; using hf-hub:{HUB}@{commit}" in said
    assert "nvidia-source-code-license: no commercial use" in said
    assert "names neither classes" not in said
    assert same(model, net)
    spec = model.spec
    assert (spec.name, spec.encoder) == (NAME, "smp:mit_b0")
    assert dict(zip(spec.classes, spec.palette, strict=True)) == CLASS_LISTS["ade20k"]
    assert spec.classes[:3] == ["wall", "building", "sky"]
    assert len(spec.classes) == 150
    assert (spec.mean, spec.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert spec.license == "nvidia-source-code-license"
    assert (spec.encoder_weights, spec.encoder_revision) == (f"hf-hub:{HUB}", commit)
    assert model.provenance == {"pulled_from": f"{HUB}@{commit}"}
    assert zoo.create(NAME, weights="ade20k").spec == spec
    assert zoo.create(f"hf-hub:{HUB}@{commit}").spec == spec


def test_other_classes_swap_the_layer_that_scores_them(
    loopback_hub: LoopbackHub, segformer: tuple[Any, dict[str, bytes]]
) -> None:
    net, files = segformer
    loopback_hub.add_repo(HUB, files)
    model = zoo.create(NAME, classes=["road", "rest"])
    ours, theirs = model.net.state_dict(), net.state_dict()
    changed = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    assert changed == {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    assert model.spec.classes == ["road", "rest"]
    assert model.spec.license == "nvidia-source-code-license"


def test_the_terms_travel_with_what_is_made_of_the_weights(
    tiny: tuple[Any, str], tmp_path: Path
) -> None:
    commit = tiny[1]
    save_folder(zoo.create(TINY, classes=["a", "b", "c"]), tmp_path / "made")
    made = load_folder(tmp_path / "made")
    assert (made.spec.license, made.spec.encoder_revision) == ("cc-by-nc-4.0", commit)
    with pytest.raises(InputError, match=r"mit allows commercial use.*\(cc-by-nc-4\.0\) forbid"):
        plan_upload(tmp_path / "made", "org/made", license="mit")
    plan = plan_upload(tmp_path / "made", "org/made")
    assert fields_of(plan.card)["license"] == "cc-by-nc-4.0"


def test_an_overlay_names_a_model_of_anybody(
    tiny: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, commit = tiny
    monkeypatch.delenv("ZOO_REGISTRY")
    with pytest.raises(InputError, match="There is no model 'unet-tiny-streets'"):
        zoo.create(TINY)
    model = zoo.create(TINY, registry=tmp_path / "mine.yaml")
    assert same(model, net)
    assert (model.spec.classes, model.spec.palette) == (["road", "rest"], [(9, 8, 7), (0, 0, 1)])
    assert model.spec.mean == [0.1, 0.2, 0.3]
    pinned = ROW.replace("streets, classes", f"streets, revision: {commit}, classes")
    (tmp_path / "mine.yaml").write_text(pinned)
    assert zoo.create(TINY, registry=tmp_path / "mine.yaml").spec == model.spec


def test_every_verb_takes_the_name(
    tiny: tuple[Any, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = tiny[1]
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "one.png")
    assert run(["predict", TINY, str(tmp_path / "one.png"), "--out", str(tmp_path / "seen")]) == 0
    assert (tmp_path / "seen" / "masks" / "one.png").is_file()
    capsys.readouterr()
    assert run(["pull", TINY]) == 0
    assert Path(capsys.readouterr().out.strip()).name == commit
    data = write_scenes(tmp_path / "scenes", train=2, val=2, test=1, size=(64, 64))
    plan = make_plan(RunRequest(TINY, data))
    assert plan.folder is not None
    assert (plan.model, plan.folder.name, plan.recipe_name) == (TINY, commit, "cnn")
    assert make_plan(RunRequest(TINY, data, encoder_weights=None)).folder is None


@pytest.mark.long
def test_a_published_model_is_fine_tuned_on_other_classes(
    loopback_hub: LoopbackHub,
    segformer: tuple[Any, dict[str, bytes]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commit = loopback_hub.add_repo(HUB, segformer[1])
    data = str(write_scenes(tmp_path / "scenes", train=2, val=2, test=1, size=(64, 64)))
    stages = (
        "stages=[{name: head, epochs: 1, unfreeze: 0.0}, {name: half, epochs: 1, unfreeze: 0.5}]"
    )
    arguments = [
        "finetune", NAME, "--data", data, "--out", str(tmp_path / "run"), "crop=64", "batch_size=2",
        "workers=0", "precision=fp32", stages,
    ]  # fmt: skip
    assert run(arguments) == 2
    assert "was trained on 150 classes (wall, building" in capsys.readouterr().err
    assert run([*arguments, "--dry-run"]) == 2
    assert "Give --new-head" in capsys.readouterr().err
    assert run([*arguments, "--new-head", "--dry-run"]) == 0
    assert "4 of 9" in capsys.readouterr().out
    assert run([*arguments, "--new-head"]) == 0
    best = load_folder(tmp_path / "run" / "best")
    assert (best.spec.name, best.spec.encoder_revision) == (NAME, commit)
    assert best.spec.license == "nvidia-source-code-license"
    assert best.provenance is not None
    assert best.provenance["encoder_init"] == "pretrained"
    frozen, theirs = "encoder.block1.0.norm1.weight", segformer[0].state_dict()
    assert torch.equal(best.net.state_dict()[frozen], theirs[frozen])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 3}, "classes is 3, the row of unet-tiny-streets says 2"),
        ({"encoder_name": "tu-test_resnet2"}, "Unknown encoder|encoder is 'test_resnet2', the row"),
        ({"_model_class": "FPN"}, "decoder is 'fpn', the row of unet-tiny-streets says 'unet'"),
        ({"decoder_channels": [8, 8, 8, 4, 4]}, "decoder_channels is .8, 8, 8, 4, 4., the row of"),
    ],
)
def test_a_repository_that_is_not_what_the_row_says(
    tiny: tuple[Any, str],
    loopback_hub: LoopbackHub,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    files = files_of(tmp_path / "smp")
    config = json.loads(files["config.json"]) | changes
    loopback_hub.commit(TINY_HUB, {"config.json": json.dumps(config).encode()})
    with pytest.raises(InputError, match=message):
        zoo.create(TINY)


def test_an_old_name_of_a_trained_model_works_and_warns(
    tiny: tuple[Any, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(f"{ROW}\nrenamed: {{unet-old-streets: {TINY}}}\n")
    with pytest.warns(FutureWarning, match=f"unet-old-streets is called {TINY} now"):
        assert zoo.create("unet-old-streets").spec.name == TINY


@pytest.mark.parametrize("given", [{"in_chans": 4}, {"img_size": 64}, {"upsampling": 2}])
def test_a_trained_name_takes_no_other_arguments(
    loopback_hub: LoopbackHub, given: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"only classes= can be changed.*encoder_weights=None"):
        zoo.create(NAME, **given)
    assert loopback_hub.lines == []


def test_its_architecture_is_built_without_the_weights(loopback_hub: LoopbackHub) -> None:
    model = zoo.create(NAME, classes=2, in_chans=4, encoder_weights=None)
    assert (model.spec.encoder_weights, model.spec.license) == (None, None)
    assert model.spec.in_chans == 4
    assert zoo.create(NAME, encoder_weights=None).spec.classes == ["background", "foreground"]
    with pytest.raises(InputError, match="segformer has no option queries"):
        zoo.create(NAME, classes=2, encoder_weights=None, queries=3)
    with pytest.raises(InputError, match=r"Unknown weights of segformer-b0-ade20k 'ade'.*ade20k"):
        zoo.create(NAME, weights="ade")
    assert loopback_hub.lines == []


def test_weights_whose_terms_forbid_the_use_are_refused(
    tiny: tuple[Any, str], loopback_hub: LoopbackHub
) -> None:
    message = (
        r"weights of segformer-b0-ade20k are nvidia-source-code-license and may not be used "
        r"commercially; asked for was 'open'. `zoo list --license open` lists"
    )
    with pytest.raises(InputError, match=message):
        zoo.create(NAME, license="open")
    with pytest.raises(InputError, match=r"of test_resnet\.r160_in1k are apache-2\.0; asked"):
        zoo.create("unet-test_resnet", classes=2, license="cc-*")
    assert loopback_hub.lines == []
    zoo.create("unet-test_resnet", classes=2, license="cc-*", encoder_weights=None)
    folder = zoo.pull(TINY)
    with pytest.raises(InputError, match=r"are cc-by-nc-4.0 and may not be used commercially"):
        zoo.create(folder, license="open")
    assert zoo.create(folder, license="cc-by-nc-*").spec.name == TINY


def test_list_filters_by_license(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_models("segformer-b*-ade20k", license="nvidia-*") == [
        f"segformer-b{size}-ade20k" for size in range(6)
    ]
    assert list_models("upernet-swin_*-ade20k", license="open") == [
        "upernet-swin_large-ade20k", "upernet-swin_small-ade20k", "upernet-swin_tiny-ade20k",
    ]  # fmt: skip
    tags = list_models("unet-convnextv2_atto.*", license="cc-by-nc-4.0")
    assert tags == ["unet-convnextv2_atto.fcmae", "unet-convnextv2_atto.fcmae_ft_in1k"]
    assert run(["list", "segformer-b0-*", "--license", "mit"]) == 2
    assert (
        "None of the 2 models has weights licensed under 'mit'. "
        "Their licenses: nvidia-source-code-license. Patterns with * and ? are taken, and "
        "`open`, which means apache-2.0, bsd-3-clause, cc-by-4.0, mit."
    ) in capsys.readouterr().err
    assert list_models("no-such-*", license="mit") == []


def test_show_tells_classes_terms_and_source() -> None:
    shown = {key: value for key, value, _ in show(NAME)}
    assert shown["license"] == "nvidia-source-code-license"
    assert shown["commercial_use"] == "forbidden"
    assert shown["trained.ade20k"] == HUB
    assert shown["trained.ade20k.revision"].startswith("no commit is pinned")
    classes = "150: wall, building, sky, floor, tree, ceiling ... and 144 more"
    assert shown["trained.ade20k.classes"] == classes
    assert shown["trained.ade20k.source"] == "https://github.com/NVlabs/SegFormer"
    assert "commercial_use" not in {key for key, _, _ in show("upernet-swin_tiny-ade20k")}


@pytest.mark.parametrize("name", sorted(load_registry().models))
def test_the_rows_that_ship(name: str) -> None:
    named = default_weights(name)
    assert named is not None
    resolved = resolve(name)
    assert resolved.supported
    check_options(resolved.decoder, resolved.args)
    assert named.weights.classes == CLASS_LISTS[name.rpartition("-")[2]]
    assert named.weights.source is not None
    assert named.model.license is not None
    repo = f"smp-hub/{resolved.decoder}-{name.split('-')[1].replace('_', '-')}"
    assert named.weights.hub.startswith(repo)


def test_the_published_shape_of_upernet_on_swin() -> None:
    config = {
        "_model_class": "UPerNet", "activation": None, "aux_params": None, "classes": 150,
        "decoder_channels": 512, "decoder_use_norm": "batchnorm", "encoder_depth": 5,
        "encoder_name": "tu-swin_tiny_patch4_window7_224", "encoder_weights": None,
        "img_size": 512, "in_channels": 3, "upsampling": 4,
    }  # fmt: skip
    name = "upernet-swin_tiny-ade20k"
    spec = parse_config(config, "config.json", default_weights(name)).spec
    assert (spec.name, spec.img_size, spec.license) == (name, 512, "mit")
    assert spec.encoder_args == {"img_size": 512}
    assert spec.classes[-1] == "flag"
