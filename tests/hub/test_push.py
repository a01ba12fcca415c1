"""zoo.push: what is sent, what is kept, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.hub_models import REPO, files_of, same_output, tiny, write_tiny
from helpers.hub_server import LoopbackHub

import zoo
from zoo.common.errors import InputError, RunError
from zoo.hub.card import BEGIN, END, fields_of
from zoo.remote.address import Address
from zoo.remote.client import Task, bounded

BRANCHES = f"/api/models/{REPO}"


@pytest.fixture
def folder(loopback_hub: LoopbackHub, tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "made")


def remote(hub: LoopbackHub, branch: str = "main") -> dict[str, bytes]:
    repo = hub.repos[REPO]
    return repo.commits[repo.refs[branch]]


def test_a_push_is_one_commit_and_comes_back_bit_identical(
    loopback_hub: LoopbackHub, folder: Path
) -> None:
    done = zoo.push(folder, REPO)
    held = remote(loopback_hub)
    assert set(held) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert held["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert done.revision == loopback_hub.repos[REPO].refs["main"]
    assert sum("/commit/" in line for line in loopback_hub.lines) == 1
    assert len(loopback_hub.requests) <= 12
    assert {r.token for r in loopback_hub.requests if r.path.startswith("/upload/")} == {None}
    assert same_output(zoo.create(f"hf-hub:{REPO}@{done.revision}"), tiny())


def test_an_unchanged_push_makes_no_commit(
    loopback_hub: LoopbackHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = zoo.push(folder, REPO)
    loopback_hub.requests.clear()
    second = zoo.push(folder, REPO)
    assert (second.revision, second.changed) == (first.revision, [])
    assert {request.method for request in loopback_hub.requests} == {"GET", "HEAD"}
    assert "holds this model already" in capsys.readouterr().err


def test_a_model_in_memory_and_a_run(
    loopback_hub: LoopbackHub, folder: Path, tmp_path: Path
) -> None:
    zoo.push(tiny(), REPO)
    assert same_output(zoo.create(f"hf-hub:{REPO}"), tiny())
    write_tiny(tmp_path / "run" / "best")
    assert zoo.push(tmp_path / "run", "org/run").revision is not None


def test_private_branch_tag_and_message(loopback_hub: LoopbackHub, folder: Path) -> None:
    done = zoo.push(folder, REPO, private=True, branch="next", tag="v1", message="The first")
    repo = loopback_hub.repos[REPO]
    assert repo.private
    assert repo.refs["next"] == repo.refs["v1"] == done.revision
    assert "model.safetensors" not in remote(loopback_hub, "main")
    assert repo.messages[str(done.revision)] == "The first"
    assert zoo.push(folder, REPO, branch="next", tag="v1").revision == done.revision
    model = tiny()
    with torch.no_grad():
        model.net.segmentation_head[0].bias += 1
    with pytest.raises(InputError, match="tags are not moved"):
        zoo.push(model, REPO, branch="next", tag="v1")
    assert repo.refs["next"] == done.revision


def test_a_pull_request_leaves_main_alone(loopback_hub: LoopbackHub, folder: Path) -> None:
    head = loopback_hub.add_repo(REPO, {"README.md": b"# Mine\n"})
    done = zoo.push(folder, REPO, pull_request=True)
    assert done.pull_request is not None
    assert done.pull_request.endswith("/discussions/1")
    assert loopback_hub.repos[REPO].refs["main"] == head
    assert "model.safetensors" in remote(loopback_hub, "refs/pr/1")


def test_a_dry_run_sends_nothing(
    loopback_hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = zoo.push(folder, REPO, dry_run=True)
    assert done.revision is None
    assert sorted(done.changed) == ["README.md", "config.json", "model.safetensors"]
    assert f'zoo.create("hf-hub:{REPO}")' in done.card
    assert {request.method for request in loopback_hub.requests} == {"GET"}
    assert loopback_hub.repos == {}


MINE = (
    "---\nlicense: mit\nlanguage: de\ntags:\n- roads\nlibrary_name: other\n---\n\n"
    "# My words\n\nKeep *these*.\n"
)


def test_a_persons_words_and_fields_are_kept(loopback_hub: LoopbackHub, folder: Path) -> None:
    loopback_hub.add_repo(REPO, {"README.md": MINE.encode(), "notes.txt": b"hello"})
    zoo.push(folder, REPO)
    text = remote(loopback_hub)["README.md"].decode()
    fields = fields_of(text)
    assert (fields["license"], fields["language"]) == ("mit", "de")
    assert fields["library_name"] == "other"
    assert fields["tags"] == ["roads", "semantic-segmentation", "unet", "test_resnet"]
    assert fields["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert text.index("Keep *these*.") < text.index(BEGIN) < text.index(END)
    assert remote(loopback_hub)["notes.txt"] == b"hello"
    loopback_hub.commit(REPO, {"README.md": text.replace(END, f"{END}\n\nAfterwards.").encode()})
    zoo.push(folder, REPO, picture=None, data_license="cc-by-4.0")
    again = remote(loopback_hub)["README.md"].decode()
    assert again.count(BEGIN) == again.count("Keep *these*.") == again.count("Afterwards.") == 1
    assert "cc-by-4.0" in again


def test_the_words_in_the_folders_own_card_are_kept(
    loopback_hub: LoopbackHub, folder: Path
) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nA word of mine.\n")
    zoo.push(folder, REPO)
    assert "A word of mine." in remote(loopback_hub)["README.md"].decode()


def test_words_that_cannot_be_read_are_not_written_over(
    loopback_hub: LoopbackHub, folder: Path
) -> None:
    head = loopback_hub.add_repo(REPO, {"README.md": b"\xff\xfe# Mine"})
    with pytest.raises(InputError, match=r"README\.md of org/tiny is not UTF-8 text.* Save it"):
        zoo.push(folder, REPO)
    loopback_hub.commit(REPO, {"README.md": b"x" * 1_000_001})
    with pytest.raises(InputError, match=r"README\.md of org/tiny is larger than 1000000 bytes"):
        zoo.push(folder, REPO)
    (folder / "README.md").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"README\.md of .*made is not UTF-8 text"):
        zoo.push(folder, "org/new")
    assert [len(repo.commits) for repo in loopback_hub.repos.values()] == [2]
    assert head in loopback_hub.repos[REPO].commits


def test_texts_on_the_card_do_nothing(loopback_hub: LoopbackHub) -> None:
    name = "</td><script>alert(1)</script>|[x](javascript:1)\x1b[2J"
    text = zoo.push(tiny(classes=[name, "![a](b)\n# Top"]), REPO, dry_run=True).card
    body = text[text.index(BEGIN) :]
    assert r"\</td\>\<script\>alert\(1\)\</script\>\|\[x\]\(javascript:1\)?\[2J" in body
    assert r"\!\[a\]\(b\) \# Top" in body
    assert "\x1b" not in text


def test_large_files_go_through_xet_only_where_that_is_asked_for(
    loopback_hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    done = zoo.push(folder, REPO)
    assert remote(loopback_hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not any("xet" in line for line in loopback_hub.lines)
    assert constants.HF_HUB_DISABLE_XET is False
    loopback_hub.requests.clear()
    assert same_output(zoo.create(f"hf-hub:{REPO}@{done.revision}"), tiny())
    assert not any("xet" in line for line in loopback_hub.lines)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    with bounded(Task("look", Address(REPO)), 1.0):
        assert constants.HF_HUB_DISABLE_XET is False


def test_offline_nothing_is_sent(
    loopback_hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        zoo.push(folder, REPO)
    assert loopback_hub.lines == []


def test_no_license_unless_given(loopback_hub: LoopbackHub, folder: Path) -> None:
    assert "license" not in fields_of(zoo.push(folder, REPO, dry_run=True).card)
    given = zoo.push(folder, REPO, dry_run=True, license="apache-2.0").card
    assert fields_of(given)["license"] == "apache-2.0"
    other = fields_of(zoo.push(folder, REPO, dry_run=True, license="my-own-1.0").card)
    assert (other["license"], other["license_name"]) == ("other", "my-own-1.0")
    with pytest.raises(InputError, match="is not a license identifier"):
        zoo.push(folder, REPO, license="my license")


def test_non_commercial_encoders(
    loopback_hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny()
    model.spec = model.spec.model_copy(update={"license": "cc-by-nc-4.0"})
    folder = write_tiny(tmp_path / "nc", model)
    assert "license: cc-by-nc-4.0" in (folder / "README.md").read_text()
    card = zoo.push(folder, REPO, dry_run=True).card
    assert fields_of(card)["license"] == "cc-by-nc-4.0"
    assert "forbid commercial use" in card
    assert "non-commercial terms" in capsys.readouterr().err
    with pytest.raises(InputError, match="allows commercial use"):
        zoo.push(folder, REPO, license="mit")
    loopback_hub.add_repo(REPO, {"README.md": MINE.encode()})
    with pytest.raises(InputError, match="states the license mit"):
        zoo.push(folder, REPO)
    zoo.push(folder, REPO, license="cc-by-nc-sa-4.0")
    assert fields_of(remote(loopback_hub)["README.md"].decode())["license"] == "cc-by-nc-sa-4.0"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(loopback_hub: LoopbackHub, value: float) -> None:
    model = tiny()
    with torch.no_grad():
        model.net.segmentation_head[0].bias[0] = value
    with pytest.raises(InputError, match=r"NaN or infinite: segmentation_head\.0\.bias"):
        zoo.push(model, REPO)
    assert loopback_hub.lines == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repo": "alone"}, "is not a repository id"),
        ({"repo": "a/b/c"}, "is not a repository id"),
        ({"branch": "../x"}, "is not a commit, branch or tag"),
        ({"tag": "a b"}, "is not a commit, branch or tag"),
        ({"message": " "}, "the commit message is empty"),
        ({"pull_request": True, "tag": "v1"}, "cannot have a tag"),
        ({"model": "nowhere"}, "There is no folder nowhere"),
        ({"picture": "none.png"}, "Cannot read the image"),
        ({"eval_results": "org/bench"}, "need a record"),
        ({"eval_results": "bench", "records": ["result.json"]}, "Cannot read result.json"),
    ],
)
def test_wrong_arguments(
    loopback_hub: LoopbackHub, folder: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        zoo.push(**{"model": folder, "repo": REPO, **arguments})
    assert loopback_hub.lines == []


def test_a_picture(loopback_hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "seen.png")
    (tmp_path / "text.png").write_text("no picture")
    zoo.push(folder, REPO, picture=tmp_path / "seen.png")
    assert remote(loopback_hub)["picture.png"] == (tmp_path / "seen.png").read_bytes()
    assert b"](picture.png)" in remote(loopback_hub)["README.md"]
    with pytest.raises(InputError, match="is not a PNG or JPEG"):
        zoo.push(folder, REPO, picture=tmp_path / "text.png")


def test_without_a_token_or_the_right_to_write(
    loopback_hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback_hub.writers = frozenset()
    with pytest.raises(InputError, match=r"access was refused \(status 403\)"):
        zoo.push(folder, REPO)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(InputError, match="there is no token that may write"):
        zoo.push(folder, REPO)


def test_two_pushes_at_once(loopback_hub: LoopbackHub, folder: Path) -> None:
    head = loopback_hub.add_repo(REPO, {"README.md": b"# Mine\n"})
    theirs: list[str] = []
    loopback_hub.fault(
        f"{BRANCHES}/preupload/*", times=1, body=None,
        call=lambda: theirs.append(loopback_hub.commit(REPO, {"theirs.txt": b"theirs"})),
    )  # fmt: skip
    with pytest.raises(RunError, match="somebody else changed the repository"):
        zoo.push(folder, REPO)
    assert loopback_hub.repos[REPO].refs["main"] == theirs[0] != head
    assert "model.safetensors" not in remote(loopback_hub)
    zoo.push(folder, REPO)
    assert {"theirs.txt", "model.safetensors"} <= set(remote(loopback_hub))


@pytest.mark.parametrize("there", [True, False])
def test_somebody_else_writes_to_the_branch(
    loopback_hub: LoopbackHub, folder: Path, there: bool
) -> None:
    loopback_hub.add_repo(REPO, {"README.md": b"# Mine\n"})
    if there:
        loopback_hub.commit(REPO, {"README.md": b"# On the branch\n"}, branch="next")
    loopback_hub.fault(
        f"{BRANCHES}/branch/next", times=1,
        call=lambda: loopback_hub.commit(
            REPO, {"README.md": b"# Their words\n"}, branch="next" if there else "main"
        ),
    )  # fmt: skip
    with pytest.raises(RunError, match="somebody else changed the repository"):
        zoo.push(folder, REPO, branch="next")
    assert remote(loopback_hub, "next")["README.md"] == b"# Their words\n"
    zoo.push(folder, REPO, branch="next")
    assert b"# Their words" in remote(loopback_hub, "next")["README.md"]


@pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}, {"silent": True}])
def test_a_commit_whose_answer_was_lost_is_found(
    loopback_hub: LoopbackHub, folder: Path, fault: dict[str, Any], silences: list[float]
) -> None:
    loopback_hub.add_repo(REPO, {"README.md": b"# Mine\n"})
    loopback_hub.fault(f"{BRANCHES}/commit/*", after=True, times=1, **fault)
    done = zoo.push(folder, REPO)
    assert done.revision == loopback_hub.repos[REPO].refs["main"]
    assert len(loopback_hub.repos[REPO].commits) == 2


def test_a_token_goes_to_the_hub_alone(loopback_hub: LoopbackHub, folder: Path) -> None:
    loopback_hub.add_repo(REPO, {"README.md": b"# Mine\n"})
    objects = [{
        "oid": "0" * 64, "size": 1,
        "actions": {"upload": {"href": f"{loopback_hub.cdn}/upload/{REPO}/{'0' * 64}"},
                    "verify": {"href": f"{loopback_hub.cdn}/stolen"}},
    }]  # fmt: skip
    import hashlib

    weights = (folder / "model.safetensors").read_bytes()
    objects[0] |= {"oid": hashlib.sha256(weights).hexdigest(), "size": len(weights)}
    body = json.dumps({"transfer": "basic", "objects": objects}).encode()
    loopback_hub.fault("*/info/lfs/objects/batch", body=body)
    with pytest.raises((RunError, InputError)):
        zoo.push(folder, REPO)
    asked = [request for request in loopback_hub.requests if request.path == "/stolen"]
    assert asked
    assert {request.token for request in asked} == {None}


def test_the_row_and_the_overlay_file(
    loopback_hub: LoopbackHub, folder: Path, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("version: 1\n# my comment\nrenamed: {}\n")
    done = zoo.push(folder, REPO, register_in=overlay)
    assert done.row is not None
    row = yaml.safe_load(done.row.text())["models"]["unet-test_resnet"]
    assert row == {
        "encoder": "test_resnet.r160_in1k",
        "weights": {
            "scenes": {
                "hub": REPO,
                "revision": done.revision,
                "metrics": {"miou": 0.5, "pixel_accuracy": 0.75},
                "data": "scenes",
                "split": "val",
                "protocol": 1,
            }
        },
    }
    assert "# my comment" in overlay.read_text()
    model = zoo.create("unet-test_resnet", weights="scenes", registry=overlay)
    assert same_output(model, tiny())


def test_the_snippet_of_the_card_runs(
    loopback_hub: LoopbackHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    from PIL import Image

    zoo.push(folder, REPO)
    code = re.search(r"```python\n(.*?)```", remote(loopback_hub)["README.md"].decode(), re.DOTALL)
    assert code is not None
    Image.new("RGB", (70, 64), (10, 20, 30)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    assert list((tmp_path / "predictions").rglob("*.png"))
    assert files_of(folder).keys() == {"README.md", "config.json", "model.safetensors"}


def test_a_record_on_the_card(loopback_hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    from helpers.record_examples import fields

    stated = {"model": "unet-test_resnet", "classes": ["road", "a | b"], "steps": 7}
    stated |= {"confusion": [[6, 2], [2, 10]], "dataset": "streets", "split": "test"}
    path = tmp_path / "result.json"
    path.write_text(json.dumps(fields(**stated)))
    done = zoo.push(folder, REPO, records=[path], eval_results="org/benchmark")
    first = fields_of(done.card)["model-index"][0]["results"][0]
    assert first["dataset"] == {"name": "streets", "type": "streets", "split": "test"}
    # IoU 6 / 10 and 10 / 14
    assert first["metrics"][0]["value"] == pytest.approx((0.6 + 10 / 14) / 2, abs=1e-6)
    assert first["metrics"][0]["args"] == {"protocol": 1, "precision": "bf16"}
    assert done.row is not None
    assert (done.row.key, done.row.split) == ("streets", "test")
    results = remote(loopback_hub)[".eval_results/mean_iou.yaml"].decode()
    assert yaml.safe_load(results)[0]["dataset"]["id"] == "org/benchmark"
    with pytest.raises(InputError, match="'benchmark' is not a data set on the Hub; write ORG/NA"):
        zoo.push(folder, REPO, records=[path], eval_results="benchmark")
    path.write_text(json.dumps(fields(**stated | {"steps": 8})))
    with pytest.raises(InputError, match="steps is 8 there, 7 here"):
        zoo.push(folder, REPO, records=[path])
