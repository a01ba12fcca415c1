"""Counts per image: bound to their record, checked on reading, and the bootstrap over them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.record_examples import counted, record

from zoo.common.errors import InputError, RunError
from zoo.leaderboard.bootstrap import RESAMPLES, half_width, miou_samples
from zoo.leaderboard.build import build
from zoo.records import image_counts
from zoo.records.image_counts import counts_file, counts_hash, read_counts, write_with_counts
from zoo.records.record import read_record

FIRST = [[4, 1, 0], [0, 5, 0], [0, 0, 0]]
SECOND = [[4, 1, 0], [1, 4, 0], [0, 0, 0]]


def test_counts_come_back_and_add_up(tmp_path: Path) -> None:
    found, counts = counted(FIRST, SECOND)
    assert counts[0].tolist() == [[4, 0, 1], [5, 1, 0], [0, 0, 0]]
    path = write_with_counts(found, tmp_path, counts)
    again = read_record(path)
    assert again.image_counts == counts_hash(counts)
    read = read_counts(path, again)
    assert read is not None
    assert read.dtype == np.int64
    assert read.tolist() == counts.tolist()
    assert sorted(tmp_path.iterdir()) == sorted([path, counts_file(path)])


def test_the_same_counts_give_the_same_bytes(tmp_path: Path) -> None:
    found, counts = counted(FIRST, SECOND)
    files = [counts_file(write_with_counts(found, tmp_path / name, counts)) for name in "ab"]
    os.utime(files[0], (1, 1))
    assert files[0].read_bytes() == files[1].read_bytes()
    assert write_with_counts(found, tmp_path / "a", counts).is_file()


def test_a_record_without_counts_has_none(tmp_path: Path) -> None:
    path = write_with_counts(record(), tmp_path, None)
    assert read_counts(path, read_record(path)) is None
    assert list(tmp_path.iterdir()) == [path]


def test_counts_of_another_record_are_not_written(tmp_path: Path) -> None:
    found, counts = counted(FIRST, SECOND)
    with pytest.raises(ValueError, match="the record is bound to"):
        write_with_counts(found, tmp_path, counts + 1)
    assert list(tmp_path.iterdir()) == []


def _damaged(tmp_path: Path, change: object) -> str:
    found, counts = counted(FIRST, SECOND)
    path = write_with_counts(found, tmp_path, counts)
    file = counts_file(path)
    if isinstance(change, bytes):
        file.write_bytes(change)
    elif isinstance(change, dict):
        np.savez_compressed(file, **change)
    else:
        file.unlink()
    with pytest.raises(InputError) as caught:
        read_counts(path, read_record(path))
    assert str(file) in str(caught.value)
    with pytest.raises(InputError, match="Counts per image that cannot be used") as all_faults:
        build(tmp_path, tmp_path / "out")
    assert str(caught.value) in str(all_faults.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is missing: the record"),
        (b"", "cannot be read as counts of 2 images and 3 classes"),
        (b"PK\x03\x04 cut", "cannot be read as counts"),
        ({"other": np.zeros(3)}, "cannot be read as counts"),
        ({"counts": np.zeros((2, 3, 3))}, "it holds float64 of the shape (2, 3, 3)"),
        ({"counts": np.zeros((2, 2, 3), int)}, "it holds int64 of the shape (2, 2, 3)"),
        ({"counts": np.zeros(10**6, int)}, "it holds more"),
        ({"counts": np.array([{}])}, "cannot be read as counts"),
        ({"counts": np.ones((2, 3, 3), int)}, "was changed after the record"),
    ],
)
def test_damaged_counts_are_named(tmp_path: Path, change: object, message: str) -> None:
    assert message in _damaged(tmp_path, change)


def test_counts_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    _, counts = counted(FIRST, SECOND)
    other, _ = counted(FIRST, FIRST)
    bound = other.model_copy(update={"image_counts": counts_hash(counts)})
    path = write_with_counts(bound, tmp_path, counts)
    with pytest.raises(InputError, match="does not add up to the confusion matrix of"):
        read_counts(path, read_record(path))


def test_a_full_disk_leaves_no_record_without_its_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, counts = counted(FIRST, SECOND)

    def full(path: Path, content: bytes) -> None:
        raise RunError(f"Cannot write {path}: No space left on device.")

    monkeypatch.setattr(image_counts, "write_once", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_with_counts(found, tmp_path, counts)
    assert list(tmp_path.iterdir()) == []


def test_equal_images_leave_nothing_to_chance() -> None:
    _, counts = counted(FIRST, FIRST, FIRST)
    # class 0: 4 / 5, class 1: 5 / 6, class 2 is nowhere.
    assert miou_samples(counts) == pytest.approx(np.full(RESAMPLES, (4 / 5 + 5 / 6) / 2))
    assert half_width(miou_samples(counts)) == pytest.approx(0, abs=1e-12)


def test_the_spread_is_that_of_drawing_images() -> None:
    # Two images of one class, wholly right and wholly wrong: the mIoU of a draw is 0, 1/2 or 1
    # with 1/4, 1/2, 1/4, so its standard deviation is sqrt(1/8).
    counts = np.array([[[10, 0, 0]], [[0, 0, 10]]])
    samples = miou_samples(counts)
    values, times = np.unique(samples, return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    assert times.sum() == 200
    assert np.abs(times - [50, 100, 50]).max() < 20
    assert half_width(samples) == pytest.approx(1.959964 * np.sqrt(1 / 8), rel=0.1)


def test_the_bootstrap_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    counts = np.random.default_rng(0).integers(1, 100, (40, 4, 3))

    def miou(*, places: np.ndarray, axis: int) -> np.ndarray:
        sums = counts[places.astype(int)].sum(axis=-3)
        return (sums[..., 0] / sums.sum(axis=-1)).mean(axis=-1)

    found = stats.bootstrap(
        (np.arange(40),), lambda places, axis: miou(places=places, axis=axis),
        n_resamples=4000, rng=1, method="basic",
    )  # fmt: skip
    assert half_width(miou_samples(counts)) / 1.959964 == pytest.approx(
        found.standard_error, rel=0.12
    )


def test_models_meet_the_same_draws() -> None:
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 50, (30, 2, 3))
    better = counts + np.array([1, 0, 0])  # one more hit on every image
    assert (miou_samples(better) > miou_samples(counts)).all()
