"""The page and its REST interface, served by a process of its own."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.demo_server import Server
from PIL import Image

import zoo
from zoo.data.pixels.overlay import overlay
from zoo.inference.predictor import Predictor

pytestmark = pytest.mark.long
gradio_client = pytest.importorskip("gradio_client")


def picture(height: int = 90, width: int = 130, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (9, 13, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "street.png"
    picture().save(path)
    return path


@pytest.fixture(scope="module")
def expected(model: Path, photo: Path) -> np.ndarray[Any, Any]:
    mask: np.ndarray[Any, Any] = Predictor(model, precision="fp32")(photo).mask
    assert len(np.unique(mask)) > 1
    return mask


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return gradio_client.Client(server.url, verbose=False, analytics_enabled=False)


def ask(client: Any, path: Path) -> Any:
    return client.predict(gradio_client.handle_file(str(path)), api_name="/predict")


@pytest.fixture
def browser(chromium: Any, server: Server) -> Iterator[Any]:
    with chromium.Chromium(1200, 1400) as found:
        found.open(server.url)
        found.wait("document.querySelector('#image input[type=file]') !== null")
        yield found
        assert [text for text in found.problems if '"error"' in text] == []
        foreign = [a for a in found.addresses if not a.startswith((server.url, "data:"))]
        assert foreign == []


PIXELS = """(async (selector) => {
  const images = [...document.querySelectorAll(selector)];
  await Promise.all(images.map(image => image.decode()));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [images[0].naturalWidth, images[0].naturalHeight];
  const context = canvas.getContext("2d");
  for (const image of images) {
    context.globalAlpha = Number(getComputedStyle(image).opacity);
    context.drawImage(image, 0, 0);
  }
  return canvas.toDataURL("image/png");
})"""


def pixels(browser: Any, selector: str) -> np.ndarray[Any, Any]:
    url = browser.run(f"{PIXELS}({json.dumps(selector)})")
    content = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_an_image_dropped_in_the_browser(
    browser: Any, model: Path, photo: Path, expected: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    browser.drop("#image", photo)
    browser.wait("document.querySelector('#result .stage') !== null")
    spec = zoo.create(model).spec
    image = np.asarray(picture())
    for opacity in (0.5, 0.0, 0.9):
        if opacity != 0.5:
            asked = len(browser.addresses)
            browser.run(
                "(() => { const field = document.querySelector('#opacity input[type=range]');"
                f" field.value = {opacity};"
                " field.dispatchEvent(new Event('input', {bubbles: true}));"
                " })()"
            )
            browser.wait(
                f"getComputedStyle(document.querySelector('#result .above')).opacity == {opacity}"
            )
            assert len(browser.addresses) == asked  # the network does not run again
        difference = pixels(browser, "#result .stage img") - overlay(
            image, expected, spec.id_palette, opacity
        )
        assert abs(difference).max() <= 2
    legend = "[...document.querySelectorAll('#result .legend li')].map(item => item.textContent)"
    counts = np.bincount(expected.ravel(), minlength=3)
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    assert browser.run(legend) == [spec.classes[index] for index in order]
    rows = browser.run(
        "[...document.querySelectorAll('#result tr')].slice(1).map(r => r.cells[1].textContent)"
    )
    assert rows == [str(counts[index]) for index in order]
    sure = Predictor(model, precision="fp32")(photo, confidence=True).confidence
    assert abs(pixels(browser, "#result .confidence")[..., 0] - 255 * sure).max() <= 1.01
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.run("document.querySelector('#mask').click()")
    end = time.monotonic() + 20
    while not (tmp_path / "street.png").is_file() and time.monotonic() < end:
        browser.run("new Promise(done => setTimeout(done, 50))")
    mask = Image.open(tmp_path / "street.png")
    assert mask.mode == "P"
    assert (np.asarray(mask) == expected).all()


def test_another_image_and_a_wrong_one_in_the_browser(browser: Any, tmp_path: Path) -> None:
    wrong, right = tmp_path / "a<img src=x onerror=alert(1)>.png", tmp_path / "small.png"
    wrong.write_bytes(b"<html>no image</html>")
    picture(20, 30).save(right)
    browser.choose("#image input[type=file]", wrong)
    said = browser.wait("document.querySelector('#result .wrong')?.textContent || null")
    assert said.endswith("is not an image in a known format: " + said.rpartition(": ")[2])
    assert "/" not in said.partition(" is not")[0]
    assert browser.run("document.querySelectorAll('#result img').length") == 0
    assert browser.run("document.querySelector('#mask') === null")
    browser.run("document.querySelector('#image button[aria-label=Clear]').click()")
    browser.wait("document.querySelector('#image input[type=file]') !== null")
    browser.choose("#image input[type=file]", right)
    browser.wait("document.querySelector('#result .stage') !== null")
    assert "20 x 30 pixels" in browser.run("document.querySelector('#result').textContent")


def test_programs(client: Any, photo: Path, expected: np.ndarray[Any, Any], model: Path) -> None:
    mask, confidence, statistics = ask(client, photo)
    assert (np.asarray(Image.open(mask)) == expected).all()
    sure = Predictor(model, precision="fp32")(photo, confidence=True).confidence
    assert sure is not None
    assert (np.asarray(Image.open(confidence)) == (sure * 255).round()).all()
    assert (statistics["height"], statistics["width"]) == (90, 130)
    assert {found["id"]: found["pixels"] for found in statistics["classes"]} == {
        int(i): int(count) for i, count in enumerate(np.bincount(expected.ravel())) if count
    }
    assert statistics["mean_confidence"] == pytest.approx(float(sure.mean()), abs=1e-6)


def saved(kind: str, folder: Path) -> Path:
    """A file of a kind that people upload."""
    image, path = picture(24, 40), folder / f"{kind}.png"
    makers: dict[str, Callable[[], object]] = {
        "corrupt": lambda: path.write_bytes(content(image)[:-200]),
        "empty": lambda: path.write_bytes(b""),
        "lying": lambda: path.write_bytes(b"%PDF-1.7 not an image"),
        "animated": lambda: image.save(
            path, format="GIF", save_all=True, append_images=[picture(24, 40, 1)]
        ),
        "huge": lambda: Image.new("RGB", (500, 500)).save(path),
        "float": lambda: Image.fromarray(np.ones((24, 40), np.float32)).save(path, format="TIFF"),
        "cmyk": lambda: image.convert("CMYK").save(path, format="JPEG"),
        "alpha": lambda: image.convert("RGBA").save(path),
        "deep": lambda: Image.fromarray(
            (np.arange(24 * 40).reshape(24, 40) * 60).astype(np.uint16)
        ).save(path),
        "turned": lambda: image.save(path, format="JPEG", exif=turned()),
        "one": lambda: Image.new("RGB", (1, 1)).save(path),
        "jpeg": lambda: image.save(path, format="JPEG"),
    }
    makers[kind]()
    return path


def content(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("corrupt", "corrupt.png cannot be decoded"),
        ("empty", "empty.png is not an image in a known format"),
        ("lying", "lying.png is not an image in a known format"),
        ("animated", "animated.png holds 2 frames (GIF)"),
        ("huge", "huge.png has 0.2 megapixels; at most 0.2 are taken here. Make it smaller."),
        ("float", "float.png has floating-point pixels"),
    ],
)
def test_what_is_no_image_gets_a_message(client: Any, tmp_path: Path, kind: str, said: str) -> None:
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        ask(client, saved(kind, tmp_path))
    assert said in str(caught.value)
    assert "/" not in str(caught.value).partition(".png")[0]


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("cmyk", (24, 40)), ("alpha", (24, 40)), ("deep", (24, 40)), ("jpeg", (24, 40)),
        ("turned", (40, 24)), ("one", (1, 1)),
    ],
)  # fmt: skip
def test_unusual_images_are_predicted(
    client: Any, tmp_path: Path, model: Path, kind: str, size: tuple[int, int]
) -> None:
    path = saved(kind, tmp_path)
    mask = np.asarray(Image.open(ask(client, path)[0]))
    assert mask.shape == size
    assert (mask == Predictor(model, precision="fp32")(path).mask).all()


def post(url: str, body: object) -> tuple[int, str]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_addresses_are_not_fetched(server: Server) -> None:
    for path in ("call/predict", "queue/join", "run/predict"):
        file = {"path": "http://192.0.2.1/a.png", "meta": {"_type": "gradio.FileData"}}
        body = {"data": [file], "fn_index": 0, "session_hash": "x"}
        status, said = post(f"{server.url}/gradio_api/{path}", body)
        assert (status, json.loads(said)) == (
            400, {"detail": "Addresses are not fetched. Upload the image itself."},
        )  # fmt: skip
    status, said = post(f"{server.url}/gradio_api/call/predict", {"data": ["x" * 1_000_001]})
    assert (status, "1000000 bytes" in said) == (400, True)


def test_files_of_the_server_are_not_served(server: Server, model: Path) -> None:
    for path in (model / "config.json", Path("/etc/passwd"), Path("server.log")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.url}/gradio_api/file={path}")
        assert caught.value.code in (403, 404)
        for meta in ({"meta": {"_type": "gradio.FileData"}}, {}):
            file = {"path": str(path)} | meta
            status, said = post(f"{server.url}/gradio_api/call/predict", {"data": [file]})
            assert (status, json.loads(said)["detail"][:24]) == (400, "There is no such upload.")


def test_a_file_that_is_too_large(server: Server, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(1_000_001))
    command = ["curl", "-s", "-w", " %{http_code}", "-F", f"files=@{tmp_path / 'large.png'}"]
    done = subprocess.run([*command, f"{server.url}/gradio_api/upload"], capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout == "File size exceeded maximum allowed size of 1000000 bytes. 413"


def test_curl(server: Server, photo: Path, expected: np.ndarray[Any, Any]) -> None:
    """The lines of docs/demo.md, here with this server's address and image."""
    page = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()
    block = re.search(r"```sh\n(# with curl.*?)```", page, re.DOTALL)
    assert block is not None
    script = block[1].replace("http://127.0.0.1:7860", server.url).replace("photo.jpg", str(photo))
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True,
                          cwd=photo.parent)  # fmt: skip
    assert "event: complete" in done.stdout
    data = json.loads(done.stdout.partition("data: ")[2])
    with urllib.request.urlopen(data[0]["url"]) as answer:
        assert (np.asarray(Image.open(io.BytesIO(answer.read()))) == expected).all()
