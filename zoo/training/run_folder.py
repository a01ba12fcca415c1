"""The run folder: what the run was started with, its log and its trackers, its result."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from zoo.common.console import info, warn
from zoo.common.errors import InputError, RunError, extra, join_problems, unknown
from zoo.common.files import read_json, recover_folder, sync, write_bytes, write_json
from zoo.data.split import RUN
from zoo.records.metrics import METRICS
from zoo.registry.recipe import Recipe, recipe_dict
from zoo.training.charts import CURVES, parse_event
from zoo.training.plan import CHECKPOINT

if TYPE_CHECKING:
    from zoo.evaluation.counts import Confusion
    from zoo.training.engine.checkpoint import Progress

LOG = "log.jsonl"
RESULT = "result.json"
BEST = "best"
GIVEN = "given"
"""The model folder with the weights of the model object that a run was given."""
LOCK = "run.lock"
FREE = ("workers", "checkpoint_minutes", "micro_batch", "activation_checkpointing", "evidence")
"""Keys of a recipe that may change when a run is resumed."""
TRACKERS = ("tensorboard", "trackio", "wandb")
TRACKER_FOLDER = "trackers"
"""The folder in a run folder for trackers that write files."""
PROJECT = "zoo"
"""The project under which trackers list a run."""


def check_out(out: Path, resume: bool) -> None:
    """Raise InputError unless a run can start in `out`, or resume there with `resume`.

    A new run needs a folder that does not exist or is empty, a resumed one a run that is not
    finished, or is but for its curves.
    """
    taken = out.exists() and (
        not out.is_dir()
        # but for what a run leaves that was killed before run.json was there
        or any(
            at.name not in (LOCK, GIVEN) and not at.name.startswith((f".{RUN}.", f".{GIVEN}."))
            for at in out.iterdir()
        )
    )
    if resume and not (out / RUN).is_file():
        raise InputError(f"{out} has no run to resume: {RUN} is missing. Start without --resume.")
    if resume and all((out / name).is_file() for name in (RESULT, *CURVES)):
        raise InputError(f"{out} is finished; start another run with another --out.")
    if not resume and taken:
        what = "already holds a run" if (out / RUN).exists() else "is not an empty folder"
        raise InputError(
            f"{out} {what}. Give another --out, or continue the run there with --resume."
        )


@contextlib.contextmanager
def only_run(out: Path, resume: bool) -> Iterator[None]:
    """Keep all other runs out of `out` during the block, which then is as `check_out` wants it.

    Makes the folder. The system drops the lock when the process ends, however that happens; reading
    needs none. Raises InputError where another run holds it, RunError where nothing can be written.
    """
    lock = FileLock(out / LOCK, timeout=0, fallback_to_soft=False)  # a soft lock survives a kill
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"Another run is still writing to {out}. Wait until it has ended or stop it, or give "
            "another --out."
        ) from None
    except (OSError, NotImplementedError) as error:
        if not os.access(out, os.W_OK):
            raise RunError(f"Cannot write {out}: {getattr(error, 'strerror', error)}.") from error
        warn(f"{out} cannot be locked ({error}); start no second run there.")
    try:
        check_out(out, resume)
        yield
    finally:
        lock.release()


def open_run(out: Path, description: dict[str, Any], resume: bool) -> None:
    """Write `description` to run.json in `out`, which `check_out` has checked.

    Raises InputError naming every field in which a resumed run differs from it; other versions of
    the packages are a warning.
    """
    if not resume:
        remove_unfinished(out)
        write_json(out / RUN, description)
        return
    before, now = read_json(out / RUN), json.loads(json.dumps(description))
    before["recipe"] = _with_defaults(before.get("recipe"))
    if before.get("encoder_init") == "pretrained" and before.get("encoder_weights") is None:
        before["encoder_init"] = now["encoder_init"]  # older versions had no digest of the weights
    problems = [
        f"{key}: the run has {_short(old)}, now it is {_short(new)}"
        for key, old, new in _differences(before, now)
        if not key.startswith(("env.", "overrides", "data.source"))
        and key.removeprefix("recipe.") not in FREE
    ]
    if problems:
        header = (
            f"{out} cannot be resumed with other settings than it was started with; only "
            f"{', '.join(FREE)} may change. Restore these values, or give another --out:"
        )
        raise InputError(join_problems(header, problems))
    env = before.get("env")
    env = env if isinstance(env, dict) else {}
    changed = [
        f"{name} {_short(env.get(name))}, now {version}"
        for name, version in now["env"].items()
        if env.get(name) != version
    ]
    if changed:
        warn(
            f"The run began with {'; '.join(changed)}. It continues, but not necessarily with "
            "the same bits as a run that was never stopped."
        )
    recover_folder(out / BEST)
    remove_unfinished(out)


def remove_unfinished(out: Path) -> None:
    """Remove what a killed run was writing when it died."""
    for name in (RUN, LOG, RESULT, BEST, GIVEN, CHECKPOINT, *CURVES):
        for left in out.glob(f".{name}.*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _with_defaults(recipe: object) -> object:
    """The recipe of a run that an older version started, with the keys that it did not know yet."""
    try:
        return recipe_dict(Recipe.model_validate(recipe))
    except ValidationError:
        return recipe


def _differences(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted place, old and new value of everything that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            inner = f"{place}.{key}" if place else key
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield place, before, now


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + " ..."


class RunLog:
    """The numbers of a run: log.jsonl, one JSON object per line, and the trackers `track`.

    The log is cut to where `progress` stands and to whole lines. With `write` false, as in all
    processes but the first, nothing is written. Raises RunError where the file cannot be written.
    """

    def __init__(
        self, run: Path, progress: Progress, recipe: Recipe, track: Sequence[str], write: bool
    ):
        self._path, self._writes = run / LOG, write
        self._trackers: list[Any] = []
        if not write:
            return
        try:
            self._path.touch()
            self._cut(progress)
            self._stream = self._path.open("a", encoding="utf-8")
            sync(run)  # run.json and the log are on the disk before any checkpoint
        except OSError as error:
            raise RunError(f"Cannot write {self._path}: {error.strerror}.") from error
        settings = flat(recipe_dict(recipe))
        for name in dict.fromkeys(track):
            if name == "tensorboard":
                self._trackers.append(_TensorBoard(run, settings, progress.step))
            else:  # trackio and wandb have the same interface
                module = extra(name, name, f"--track {name}")
                more = {"dir": str(run)} if name == "wandb" else {}
                self._trackers.append(
                    module.init(project=PROJECT, name=run.name, config=settings, **more)
                )

    def _cut(self, progress: Progress) -> None:
        """Drop what the checkpoint does not count, and lines that a power cut has spoiled."""
        content = self._path.read_bytes()[: progress.log_bytes]
        events = [(line, parse_event(line)) for line in content.split(b"\n")]
        counted = [(line, e) for line, e in events if e and e["step"] <= progress.step]
        kept = b"".join(line + b"\n" for line, _ in counted)
        if kept == content and len(kept) == progress.log_bytes:
            os.truncate(self._path, progress.log_bytes)
            return
        write_bytes(self._path, kept)
        steps = {event["step"] for _, event in counted if event["event"] == "step"}
        lost = progress.step - len(steps)
        warn(
            f"{self._path} is damaged, as after a power cut. Its whole lines are kept; {lost} of "
            f"{progress.step} steps are lost to the log and the curves, nothing to the training."
        )

    def step(self, progress: Progress, stage: str, loss: float, lr: float, speed: float) -> None:
        """One optimizer step; `speed` in images per second."""
        self._write(
            {
                "event": "step",
                "step": progress.step,
                "epoch": progress.epoch + 1,
                "stage": stage,
                "loss": loss,
                "lr": lr,
                "images_per_second": round(speed, 2),
            }
        )

    def epoch(
        self,
        progress: Progress,
        stage: str,
        loss: float,
        val_loss: float,
        found: Confusion,
        seconds: float,
        precision: str,
    ) -> None:
        """One validation, after `progress.epoch` epochs; `loss` is the mean of the last one."""
        metrics = found.metrics()
        best = progress.best_epoch == progress.epoch
        self._write(
            {
                "event": "epoch",
                "epoch": progress.epoch,
                "step": progress.step,
                "stage": stage,
                "train_loss": loss,
                "val_loss": val_loss if math.isfinite(val_loss) else None,
                **{metric.key: metrics[metric.key] for metric in METRICS if metric.logged},
                "best": best,
                "precision": precision,
                "seconds": seconds,
            }
        )
        info(
            f"epoch {progress.epoch:3d}  {stage:8s} loss {loss:.4f}  val loss {val_loss:.4f}  "
            f"val mIoU {100 * found.miou:5.2f} %{'  best' if best else ''}"
        )

    def _write(self, entry: dict[str, Any]) -> None:
        if not self._writes:
            return
        try:
            self._stream.write(json.dumps(entry, allow_nan=False) + "\n")
            self._stream.flush()
        except OSError as error:
            raise RunError(f"Cannot write {self._path}: {error.strerror}.") from error
        group = "train" if entry["event"] == "step" else "val"
        values = {
            f"{group}/{name}": value
            for name, value in flat(entry).items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "step"
        }
        for tracker in self._trackers:
            tracker.log(values, step=entry["step"])

    def sync(self) -> int:
        """Wait until the log so far is on the disk; returns its length in bytes.

        A checkpoint that counts these bytes is written after that, never before.
        """
        if not self._writes:
            return 0
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise RunError(f"Cannot write {self._path}: {error.strerror}.") from error
        return self._path.stat().st_size

    def close(self) -> None:
        """Close the log and the trackers."""
        if self._writes:
            self._stream.close()
        for tracker in self._trackers:
            tracker.finish()


class _TensorBoard:
    """TensorBoard's event files, with the interface that the other trackers have."""

    def __init__(self, run: Path, settings: dict[str, Any], step: int):
        from torch.utils.tensorboard import SummaryWriter

        folder = run / TRACKER_FOLDER / PROJECT
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self._writer.add_hparams(settings, {}, run_name="settings")

    def log(self, values: dict[str, float], step: int) -> None:
        """The numbers of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        """Close the files."""
        self._writer.close()


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for trackers that are unknown or not installed, all of them at once."""
    problems = []
    for name in dict.fromkeys(names):
        if name not in TRACKERS:
            problems.append(unknown("tracker", name, TRACKERS))
            continue
        try:
            extra(name, name, f"--track {name}")
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(join_problems("The trackers cannot start:", problems))


def flat(values: dict[str, Any], place: str = "") -> dict[str, Any]:
    """Nested values under names such as `optimizer.lr`; lists as JSON text, None left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{place}{key}"
        if isinstance(value, dict):
            found |= flat(value, f"{name}.")
        elif value is not None:
            found[name] = json.dumps(value) if isinstance(value, list) else value
    return found
