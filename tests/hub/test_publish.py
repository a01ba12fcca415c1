"""zoo push --space and --handler: what is written, kept and refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers.hub_models import REPO, same_output, tiny, write_tiny
from helpers.hub_server import LoopbackHub

import zoo
from zoo.cli.main import run
from zoo.common.errors import InputError, RunError
from zoo.hub.card import fields_of
from zoo.hub.publish import handler_files

SPACE = f"spaces/{REPO}"


@pytest.fixture
def folder(loopback_hub: LoopbackHub, tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "made")


def held(hub: LoopbackHub, repo: str) -> dict[str, str]:
    found = hub.repos[repo]
    files = found.commits[found.refs["main"]]
    return {name: text.decode() for name, text in files.items() if name != "model.safetensors"}


def test_a_space_shows_the_commit_that_was_pushed(
    loopback_hub: LoopbackHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["push", str(folder), REPO, "--space", "--private"]) == 0
    head = loopback_hub.repos[REPO].refs["main"]
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"hf-hub:{REPO}@{head}", f"{loopback_hub.endpoint}/spaces/{REPO}",
    ]  # fmt: skip
    files = held(loopback_hub, SPACE)
    assert set(files) == {".gitattributes", "README.md", "app.py", "requirements.txt"}
    stamp, *app = files["app.py"].splitlines()
    assert stamp.startswith("# Written by zoo, ")
    assert app == ["from zoo.demo.page import serve", "", f'serve("hf-hub:{REPO}@{head}")']
    assert files["requirements.txt"].splitlines()[1].startswith("segmentation-zoo[demo]==")
    fields = fields_of(files["README.md"])
    assert (fields["sdk"], fields["app_file"]) == ("gradio", "app.py")
    assert fields["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert fields["models"] == [REPO]
    assert (fields["title"], fields["emoji"]) == ("tiny", "x")  # the Hub's own file is kept
    assert "See the docs." in files["README.md"]
    assert loopback_hub.repos[SPACE].private
    commits = len(loopback_hub.repos[SPACE].commits)
    done = zoo.push(folder, REPO, space=True)
    assert (done.changed, len(loopback_hub.repos[SPACE].commits)) == ([], commits)


@pytest.mark.long
def test_the_next_model_is_shown_and_words_stay(loopback_hub: LoopbackHub, folder: Path) -> None:
    zoo.push(folder, REPO, space=True, space_repo="org/try")
    card = held(loopback_hub, "spaces/org/try")["README.md"]
    mine = card.replace("title: try", "title: My roads") + "\nMy words.\n"
    loopback_hub.commit("spaces/org/try", {"README.md": mine.encode(), "x.png": b"1"})
    done = zoo.push(tiny(classes=["a", "b", "c"]), REPO, space=True, space_repo="org/try")
    files = held(loopback_hub, "spaces/org/try")
    assert f"{REPO}@{done.revision}" in files["app.py"]
    assert "spaces/org/try/app.py" in done.changed
    assert "spaces/org/try/requirements.txt" not in done.changed
    assert fields_of(files["README.md"])["title"] == "My roads"
    assert files["README.md"].endswith("My words.\n")
    assert files["x.png"] == "1"
    assert SPACE not in loopback_hub.repos


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"app.py": b"print()\n"}, "zoo did not write the app"),
        ({"requirements.txt": b"numpy\n"}, "zoo did not write the requirements"),
        ({"README.md": b"---\nsdk: docker\n---\n"}, "says `sdk: docker`"),
        ({"README.md": b"---\napp_file: run.py\n---\n"}, "says `app_file: run"),
    ],
)
def test_a_foreign_space_is_refused_before_anything_is_sent(
    loopback_hub: LoopbackHub, folder: Path, files: dict[str, bytes], said: str
) -> None:
    head = loopback_hub.add_repo(SPACE, files)
    with pytest.raises(InputError, match=said):
        zoo.push(folder, REPO, space=True)
    assert REPO not in loopback_hub.repos
    assert loopback_hub.repos[SPACE].refs["main"] == head
    assert {request.method for request in loopback_hub.requests} <= {"GET", "HEAD"}


def test_a_page_that_a_person_changed_is_refused(loopback_hub: LoopbackHub, folder: Path) -> None:
    zoo.push(folder, REPO, space=True)
    changed = held(loopback_hub, SPACE)["app.py"] + "# mine\n"
    loopback_hub.commit(SPACE, {"app.py": changed.encode()})
    with pytest.raises(InputError, match="or it was changed since"):
        zoo.push(folder, REPO, space=True)
    assert held(loopback_hub, SPACE)["app.py"] == changed


@pytest.mark.long
def test_a_space_that_fails_leaves_the_model(loopback_hub: LoopbackHub, folder: Path) -> None:
    loopback_hub.fault(f"/api/spaces/{REPO}/commit/*", status=500)
    with pytest.raises(RunError, match=f"Cannot push the page to the Space {REPO}"):
        zoo.push(folder, REPO, space=True)
    loopback_hub.faults.clear()
    assert set(held(loopback_hub, SPACE)) == {".gitattributes", "README.md"}
    zoo.push(folder, REPO, space=True)
    assert "app.py" in held(loopback_hub, SPACE)


@pytest.mark.long
def test_wrong_bytes_in_a_space_are_noticed(loopback_hub: LoopbackHub, folder: Path) -> None:
    zoo.push(folder, REPO)
    loopback_hub.add_repo(SPACE, {"README.md": b"# A\n"})
    before = loopback_hub.repos[SPACE].refs["main"]
    url = f"{loopback_hub.endpoint}/{SPACE}/commit/{before}"
    told = json.dumps({"commitOid": before, "commitUrl": url}).encode()
    loopback_hub.fault(f"/api/spaces/{REPO}/commit/*", body=told)
    with pytest.raises(RunError, match="holds other bytes than were sent"):
        zoo.push(folder, REPO, space=True)


def test_a_dry_run_shows_the_files_of_both(
    loopback_hub: LoopbackHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["push", str(folder), REPO, "--space", "--handler", "--dry-run"]) == 0
    names = [
        line.split("\t")[0] for line in capsys.readouterr().out.partition("\n\n")[0].split("\n")
    ]
    assert names == [
        "README.md", "config.json", "handler.py", "model.safetensors", "requirements.txt",
        f"spaces/{REPO}/README.md", f"spaces/{REPO}/app.py", f"spaces/{REPO}/requirements.txt",
    ]  # fmt: skip
    assert loopback_hub.repos == {}


def test_a_handler_goes_with_the_model_and_is_never_run(
    loopback_hub: LoopbackHub, folder: Path, tmp_path: Path
) -> None:
    done = zoo.push(folder, REPO, handler=True)
    assert {"handler.py", "requirements.txt"} <= set(done.changed)
    text = held(loopback_hub, REPO)["handler.py"]
    assert "from zoo.demo.endpoint import EndpointHandler\n" in text
    assert zoo.push(folder, REPO).changed == []
    harm = tmp_path / "harm"
    loopback_hub.commit(REPO, {"handler.py": f"open({str(harm)!r}, 'w')\n".encode()})
    loopback_hub.requests.clear()
    assert same_output(zoo.create(f"hf-hub:{REPO}"), tiny())
    assert run(["pull", f"hf-hub:{REPO}", "--out", str(tmp_path / "pulled")]) == 0
    assert sorted(path.name for path in (tmp_path / "pulled").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert not any("handler.py" in line for line in loopback_hub.lines)
    assert not harm.exists()
    with pytest.raises(InputError, match="did not write the handler"):
        zoo.push(folder, REPO, handler=True)
    assert zoo.push(folder, REPO).revision is not None  # it is left alone


def test_options_that_exclude_each_other(loopback_hub: LoopbackHub, folder: Path) -> None:
    with pytest.raises(InputError, match="--space and --pull-request exclude each other"):
        zoo.push(folder, REPO, space=True, pull_request=True)
    with pytest.raises(InputError, match=r"--space-repo\) goes with space=True"):
        zoo.push(folder, REPO, space_repo="org/x")
    with pytest.raises(InputError, match="'org' is not a repository id"):
        zoo.push(folder, REPO, space=True, space_repo="org")
    assert loopback_hub.requests == []


def test_the_handler_names_this_version() -> None:
    from zoo.runtime.environment import versions

    text = handler_files()["requirements.txt"].decode()
    assert text.splitlines()[1:] == [f"segmentation-zoo=={versions()['zoo']}"]
