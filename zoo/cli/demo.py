"""The verb that shows a trained model in the browser: `zoo demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from zoo.cli import (
    BackendOption,
    BlendOption,
    CompileOption,
    FoldOption,
    OverlapOption,
    PrecisionOption,
    TtaOption,
    WindowOption,
)
from zoo.cli.use import TrainedArgument
from zoo.creation.locate import check_trained
from zoo.runtime.precision import check_precision


def demo_command(
    model: TrainedArgument,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is all.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 7860,
    max_megapixels: Annotated[float, typer.Option(help="The largest image.")] = 40.0,
    max_upload_mb: Annotated[float, typer.Option(help="The largest file, in MB.")] = 50.0,
    queue: Annotated[int, typer.Option(help="How many requests may wait.")] = 64,
    concurrency: Annotated[int, typer.Option(help="How many images at the same time.")] = 1,
    precision: PrecisionOption = "auto",
    backend: BackendOption = "auto",
    fold: FoldOption = True,
    compile: CompileOption = False,
    window: WindowOption = "auto",
    overlap: OverlapOption = None,
    blend: BlendOption = "auto",
    tta: TtaOption = "none",
) -> None:
    """Show MODEL in the browser, for people and programs (REST)."""
    check_precision(precision)
    check_trained(model, exported=True)
    from zoo.demo.page import Limits, serve

    limits = Limits(max_megapixels, max_upload_mb, queue, concurrency)
    serve(
        model, host=host, port=port, limits=limits, precision=precision, backend=backend,
        fold=fold, compile=compile, window=window, overlap=overlap, blend=blend, tta=tta,
    )  # fmt: skip
