"""Counts per image, beside a record: what a bootstrap over images needs."""

from __future__ import annotations

import functools
import hashlib
import io
import math
import zipfile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.common.errors import InputError
from zoo.records.hashed import write_once
from zoo.records.metrics import PixelCounts
from zoo.records.record import Record, record_name, write_record

ImageCounts: TypeAlias = NDArray[np.int64]
"""Images x classes x 3: pixels that are true positives, false positives, false negatives.

The images are ordered by name, as in the hash of the data.
"""

_MEMBER, _HEADER = "counts.npy", 1000


def counts_file(record: Path) -> Path:
    """The file of the counts that belong to the record at this path."""
    return record.with_suffix(".images.npz")


def counts_hash(counts: ImageCounts) -> str:
    """16 hexadecimal digits over the shape and the numbers."""
    digest = hashlib.sha256(repr(counts.shape).encode())
    digest.update(np.ascontiguousarray(counts, dtype="<i8").tobytes())
    return digest.hexdigest()[:16]


def write_with_counts(record: Record, folder: Path, counts: ImageCounts | None) -> Path:
    """Write the record into `folder` as `write_record` does, after the counts it is bound to.

    So a record never exists without its counts. Raises as `write_record`, and ValueError where
    the record was made with other counts.
    """
    found = None if counts is None else counts_hash(counts)
    if found != record.image_counts:
        raise ValueError(f"the record is bound to {record.image_counts}, the counts give {found}")
    if counts is not None:
        stream = io.BytesIO()
        smallest = np.min_scalar_type(int(counts.max(initial=0)))
        np.savez_compressed(stream, counts=counts.astype(smallest))
        write_once(counts_file(folder / record_name(record)), stream.getvalue())
    return write_record(record, folder)


def read_counts(path: Path, record: Record) -> ImageCounts | None:
    """The counts of the record at `path`; None for a record that was written without.

    Raises InputError where the file is missing, damaged, was changed since the record was written,
    or does not add up to the record's confusion matrix.
    """
    if record.image_counts is None:
        return None
    file, shape = counts_file(path), (record.images, len(record.classes), 3)
    try:
        counts = _unpacked(file, shape)
    except FileNotFoundError as error:
        raise InputError(
            f"{file} is missing: the record {path.name} was written with counts per image. Put the "
            "file beside the record again."
        ) from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file} cannot be read as counts of {shape[0]} images and {shape[1]} classes "
            f"({error}). Restore it, or measure again."
        ) from error
    if counts_hash(counts) != record.image_counts:
        raise InputError(
            f"{file} was changed after the record {path.name} was written, or belongs to another. "
            "Restore it, or measure again."
        )
    whole = PixelCounts.from_confusion(np.array(record.confusion, dtype=np.int64))
    if not np.array_equal(counts.sum(axis=0), np.stack(whole[:3], axis=1)):
        raise InputError(
            f"{file} does not add up to the confusion matrix of {path.name}. Measure again."
        )
    return counts


def _unpacked(file: Path, shape: tuple[int, int, int]) -> ImageCounts:
    """The counts in int64; a file that would unpack to more than they need is refused."""
    with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive:
        if archive.getinfo(_MEMBER).file_size > 8 * math.prod(shape) + _HEADER:
            raise ValueError("it holds more")
        content = archive.read(_MEMBER)
    start = 10 + int.from_bytes(content[8:10], "little")
    found, by_column, dtype = _layout(content[:start])
    if found != shape or by_column or dtype.kind not in "iu":
        raise ValueError(f"it holds {dtype} of the shape {found}")
    counts: NDArray[np.integer] = np.frombuffer(content, dtype, offset=start)
    return counts.reshape(shape).astype(np.int64)


@functools.lru_cache(maxsize=64)
def _layout(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The header of a .npy file of version 1.0; it is the same in most files of a folder."""
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("it is of another version of .npy than 1.0")
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = np.lib.format.read_array_header_1_0(stream)
    return found
