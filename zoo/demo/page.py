"""The page of a model in the browser, and its REST interface, both by gradio.

Everything that the page needs comes from this process: no fonts, scripts or statistics of others.
gradio takes seconds to import, so this module does it when a page is built.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.common.console import info
from zoo.common.errors import InputError, RunError, extra
from zoo.common.files import scratch_folder
from zoo.common.html import asset, data_url, render
from zoo.data.pixels.masks import png
from zoo.data.pixels.overlay import as_rgb, background_id, checked_index_png, overlay
from zoo.demo.segment import Segmented, segment, shares
from zoo.inference.predictor import Predictor
from zoo.models.spec import ModelSpec

HOST, PORT = "127.0.0.1", 7860
LONGEST = 1600
"""The page shows larger images smaller: at most this many pixels a side."""
SMALLEST = 320
"""Images of fewer pixels a side are shown by a whole factor larger."""
KEPT_S = 600
"""How long uploads and results are kept, in seconds; they are looked through every minute."""
MAX_REQUEST_BYTES = 1_000_000
OPACITY = 0.5
FONTS = ["system-ui", "sans-serif"]
"""The system's own: the fonts of gradio's themes come from Google."""
FAST = 1
"""zlib's level for what is only shown."""


@dataclass(frozen=True)
class Limits:
    """What the page takes: of one image, and of all who use it at a time.

    `queue` requests wait at most, `concurrency` are predicted at the same time.
    """

    megapixels: float = 40.0
    upload_mb: float = 50.0
    queue: int = 64
    concurrency: int = 1

    def __post_init__(self) -> None:
        wrong = [name for name, value in vars(self).items() if not 0 < value < float("inf")]
        if wrong:
            option = {"megapixels": "max-megapixels", "upload_mb": "max-upload-mb"}
            name = wrong[0]
            raise InputError(
                f"--{option.get(name, name)} must be a number above 0, not {getattr(self, name)}."
            )


def result_html(done: Segmented, spec: ModelSpec, seconds: float) -> str:
    """What the page shows of a result.

    Two pictures lie over each other, the image with the borders of the classes below and the mask
    above. The opacity of the mask is that of the browser, so that nothing is asked again; at each
    opacity the two are what `overlay` paints.
    """
    height, width = done.mask.shape
    reduced = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(width * reduced)), max(1, round(height * reduced)))
    image, mask = as_rgb(done.pixels), done.mask
    sure = (done.confidence * 255).round().astype(np.uint8)
    if reduced < 1:
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        sure = np.asarray(Image.fromarray(sure).resize(size, Image.Resampling.BOX))
    unpainted = background_id(spec.id_names)
    below = overlay(image, mask, spec.id_palette, 0.0, background=unpainted)
    above = overlay(image, mask, spec.id_palette, 1.0, background=unpainted)
    factor = max(1, min(-(-SMALLEST // size[0]), LONGEST // max(size)))
    return render(
        "demo/result.html",
        width=size[0] * factor,
        height=size[1] * factor,
        size=(height, width),
        shown=None if reduced == 1 else size[::-1],
        below=_data_url(below),
        above=_data_url(above),
        confidence=_data_url(sure),
        mean_confidence=float(done.confidence.mean()),
        shares=shares(done, spec),
        seconds=seconds,
    )


def _data_url(pixels: NDArray[np.uint8]) -> str:
    return data_url(png(pixels, FAST), "png")


def page(predictor: Predictor, limits: Limits | None = None) -> Any:
    """The page of a model as `gradio.Blocks`.

    The endpoint `predict` of its REST interface takes an image and returns the mask (a palette PNG
    with class ids), the confidence (a gray PNG) and statistics. Raises InputError where gradio is
    not installed.
    """
    gr = extra("gradio", "demo", "zoo demo")
    limits, spec, title = limits or Limits(), predictor.spec, predictor.spec.name

    def show(file: str | None) -> tuple[str, Any]:
        if file is None:
            return empty, gr.DownloadButton(visible=False)
        began = time.monotonic()
        try:
            done = segment(predictor, Path(file), limits.megapixels)
        except InputError as error:
            shown = render("demo/error.html", message=str(error))
            return shown, gr.DownloadButton(visible=False)
        shown = result_html(done, spec, time.monotonic() - began)
        folder = Path(tempfile.mkdtemp(dir=download.GRADIO_CACHE))
        made = folder / f"{Path(file).stem}.png"
        made.write_bytes(checked_index_png(done.mask, spec.id_palette))
        return shown, gr.DownloadButton(value=str(made), visible=True)

    def predict(image: str | None) -> tuple[Any, Any, dict[str, Any]]:
        if image is None:
            raise gr.Error("There is no image. Upload one.", print_exception=False)
        try:
            done = segment(predictor, Path(image), limits.megapixels)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error
        mask = Image.fromarray(done.mask)
        palette = [*spec.id_palette, *[(0, 0, 0)] * (256 - len(spec.id_palette))]
        mask.putpalette([channel for colour in palette for channel in colour])
        sure = Image.fromarray((done.confidence * 255).round().astype(np.uint8))
        height, width = done.mask.shape
        statistics = {
            "model": title,
            "height": height,
            "width": width,
            "mean_confidence": float(done.confidence.mean()),
            "classes": [vars(found) for found in shares(done, spec)],
        }
        return mask, sure, statistics

    empty = render(
        "demo/empty.html", classes=list(zip(spec.id_names, spec.id_palette, strict=True))
    )
    shared = {"concurrency_limit": limits.concurrency, "concurrency_id": "predict"}
    with gr.Blocks(
        title=title, analytics_enabled=False, delete_cache=(60, KEPT_S), fill_width=True
    ) as blocks:
        gr.HTML(
            render("demo/head.html", title=title, spec=spec, limits=limits,
                   settings=predictor.settings)
        )  # fmt: skip
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                upload = gr.File(label="Image", height=140, elem_id="image")
                opacity = gr.Slider(
                    0, 1, OPACITY, step=0.05, label="Opacity of the mask", elem_id="opacity"
                )
                download = gr.DownloadButton(
                    "Download the mask (PNG)", visible=False, elem_id="mask"
                )
            with gr.Column(scale=3, min_width=320):
                result = gr.HTML(empty, elem_id="result")
        upload.change(
            show, upload, [result, download], api_visibility="private", show_progress="full",
            show_progress_on=result, trigger_mode="always_last", **shared,
        )  # fmt: skip
        opacity.input(
            None, opacity, js="(value) => document.body.style.setProperty('--opacity', value)",
            api_visibility="private",
        )  # fmt: skip
        image = gr.File(label="image", visible=False)
        program = gr.Button(visible=False)
        program.click(
            predict,
            image,
            [
                gr.Image(label="mask", type="pil", format="png", visible=False),
                gr.Image(label="confidence", type="pil", format="png", visible=False),
                gr.JSON(label="statistics", visible=False),
            ],
            api_name="predict",
            api_description=f"Segment an image by {title}: mask, confidence, statistics.",
            **shared,
        )
    blocks.queue(max_size=limits.queue)
    return blocks


def serve(
    model: str | Path,
    *,
    host: str | None = None,
    port: int | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> None:
    """Serve the page of a trained model until the process is interrupted.

    `model` and `options` are those of `Predictor`. `host` and `port` are by default what
    GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say, else 127.0.0.1 and 7860. Uploads and results lie
    in a temporary folder that is deleted at the end.

    Raises InputError where gradio is not installed, for what is not a model, and where the port is
    taken.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME") or HOST
    if port is None:
        port = int(os.environ.get("GRADIO_SERVER_PORT") or PORT)
    _check_free(host, port)
    limits = limits or Limits()
    with _temporary_files() as uploads:  # before gradio is imported, which asks for the folder
        gr, starlette = (
            extra(name, "demo", "zoo demo") for name in ("gradio", "starlette.middleware")
        )
        predictor = Predictor(model, **options)
        blank = np.zeros((64, 64, predictor.spec.in_chans), np.uint8)
        predictor(blank, confidence=True)  # what fails, fails now
        blocks = page(predictor, limits)
        try:
            _, url, _ = blocks.launch(
                server_name=host,
                server_port=port,
                max_file_size=round(limits.upload_mb * 1e6),
                allowed_paths=[],
                app_kwargs={"middleware": [starlette.Middleware(OnlyUploads, uploads)]},
                theme=gr.themes.Base(font=FONTS, font_mono=["ui-monospace", "monospace"]),
                css=asset("demo/page.css"),
                footer_links=["api"],
                share=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                enable_monitoring=False,
                max_threads=limits.concurrency + 4,  # torch has a pool for each thread that asks it
                state_session_capacity=64,  # the page keeps nothing between requests
                run_history=False,
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:
            raise _not_free(host, port, error.strerror or str(error)) from error
        info(f"{predictor.spec.name} is at {url} until Ctrl-C.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            info("Stopped.")
        finally:
            blocks.close(verbose=False)


class OnlyUploads:
    """The app behind it gets no request that names another file than one below `folder`.

    gradio would fetch an address, of any size, and read a file of this machine where the request
    does not say that it is one (`meta`).
    """

    def __init__(self, app: Any, folder: Path):
        self._app, self._folder = app, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        upload = headers.get(b"content-type", b"").startswith(b"multipart/form-data")
        if scope["type"] != "http" or scope["method"] != "POST" or upload:
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more and len(body) <= MAX_REQUEST_BYTES:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > MAX_REQUEST_BYTES:
            wrong = f"A request may have {MAX_REQUEST_BYTES} bytes; upload images as files."
        else:
            wrong = wrong_file(body, self._folder)
        if wrong:
            head = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 400, "headers": head})
            told = json.dumps({"detail": wrong}).encode()
            await send({"type": "http.response.body", "body": told})
            return
        read = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again() -> Any:
            return next(read, None) or await receive()

        await self._app(scope, again, send)


def wrong_file(body: bytes, folder: Path) -> str:
    """What is wrong with a file in a request, unless it lies below `folder`; else empty.

    What is no JSON is refused later.
    """
    try:
        found = [json.loads(body)]
    except (ValueError, RecursionError):
        return ""
    while found:
        value = found.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if str(path).startswith(("http://", "https://")):
                return "Addresses are not fetched. Upload the image itself."
            if path is not None and not _is_upload(str(path), folder):
                return "There is no such upload. Upload the image first; uploads are kept a while."
            found += value.values()
        elif isinstance(value, list):
            found += value
    return ""


def _is_upload(path: str, folder: Path) -> bool:
    try:
        real = Path(path).resolve()
        return real.is_relative_to(folder.resolve()) and real.is_file()
    except (OSError, ValueError):
        return False


def _check_free(host: str, port: int) -> None:
    """Raise InputError where nobody can listen on that port."""
    if not 0 < port < 65536:
        raise InputError(f"--port must be between 1 and 65535, not {port}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise _not_free(host, port, error.strerror or str(error)) from error


def _not_free(host: str, port: int, reason: str) -> InputError:
    return InputError(
        f"Cannot serve on {host}:{port}: {reason}. Choose another --port, or another --host."
    )


@contextlib.contextmanager
def _temporary_files() -> Iterator[Path]:
    """Yield the folder where gradio keeps its files within the block; it is deleted at the end."""
    known = os.environ.get("GRADIO_TEMP_DIR")
    try:
        with scratch_folder(Path(known or tempfile.gettempdir()), "zoo-demo-") as folder:
            os.environ["GRADIO_TEMP_DIR"] = str(folder)
            try:
                yield folder
            finally:
                if known is None:
                    del os.environ["GRADIO_TEMP_DIR"]
                else:
                    os.environ["GRADIO_TEMP_DIR"] = known
    except OSError as error:
        text = f"Cannot write a temporary folder: {error.strerror or error}."
        raise RunError(text) from error
