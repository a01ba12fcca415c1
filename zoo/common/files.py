"""Reading and writing files safely: atomic writes, strict YAML, hashes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from zoo.common.errors import InputError, RunError, join_problems

MAX_YAML_BYTES = 1_000_000
NO_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
"""What a path may be other than a file."""


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that `path` holds either the old or the whole new content.

    Raises RunError where the folder cannot be written or the disk is full.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, sync it and rename it over `path`."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON with a final newline; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def check_file(path: Path) -> None:
    """Raise InputError unless `path` is a file or a link to one: reading a pipe may never end.

    Raises OSError where nothing is there.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        raise InputError(f"{path} is {NO_FILES.get(kind, 'something else')}, not a file.")


def read_json(path: Path, max_bytes: int | None = None) -> Any:
    """Read a JSON file. Raises InputError where it is missing, no JSON or above `max_bytes`."""
    try:
        check_file(path)
        large = max_bytes is not None and path.stat().st_size > max_bytes
        value = None if large else json.loads(path.read_text(encoding="utf-8"))
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"Cannot read {path} as JSON: {error}.") from error
    if large:
        raise InputError(f"{path} is larger than {max_bytes} bytes; refused.")
    return value


def natural_key(text: str) -> tuple[list[str | int], str]:
    """A sorting key that puts `frame_2` before `frame_10`."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], text


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in `parent`, whose name begins with `prefix`; it is deleted at the end.

    Those that killed processes left are deleted first. A process locks its folder, so a lock that
    is free tells that the process is gone. Raises OSError where no folder can be created.
    """
    with contextlib.suppress(OSError):
        for left in parent.iterdir():
            ours = re.fullmatch(re.escape(prefix) + "[a-z0-9_]{8}", left.name)
            if ours and left.is_dir() and not left.is_symlink():
                with locked(left) as free:
                    if free:
                        shutil.rmtree(left, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        with locked(folder, wait=True):
            if not folder.is_dir():
                continue  # another process took it for one that was left
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the operating system's lock of a file or folder, which ends with the process.

    False where another process holds it (unless `wait`), and where there is nothing to lock.
    """
    held, handle = False, None
    try:
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        yield held
    finally:
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` when the block ends without an error.

    A reader sees the old folder or the new one, never a mixture of both; between the two renames
    a kill can leave the old one under the name `.NAME.old`, which `recover_folder` puts back.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = scratch_folder(path.parent, f".{path.name}.zoo-")
            temporary = stack.enter_context(scratch)
        except OSError as error:
            raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for file in temporary.rglob("*"):
                if file.is_file():
                    sync(file)
            old = path.with_name(f".{path.name}.old")
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.replace(old)
            temporary.replace(path)
            sync(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error


def recover_folder(path: Path) -> None:
    """Undo a replacement that was killed half-way: put `.NAME.old` back where `path` is gone."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.replace(path)


def sha256(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_of(value: object) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def read_yaml(path: Path) -> Any:
    """Read one YAML document strictly. Raises InputError naming the file and the place.

    Refused: aliases, duplicate keys, tags that name types, files above 1 MB. Unlike plain PyYAML,
    `1e-3` is a number and only `true` and `false` are booleans.
    """
    try:
        check_file(path)
        if path.stat().st_size > MAX_YAML_BYTES:
            raise InputError(f"{path} is larger than {MAX_YAML_BYTES} bytes; refused.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"Cannot read {path}: {getattr(error, 'strerror', None) or error}."
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text with the rules of `read_yaml`; `source` names it in messages."""
    try:
        loader = _StrictLoader(text)
        value = loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{source} is not valid YAML: {error}") from error
    if loader.problems:
        raise InputError(join_problems(f"{source} has problems:", loader.problems))
    return value


class _StrictLoader(yaml.SafeLoader):
    def __init__(self, stream: str):
        super().__init__(stream)
        self.problems: list[str] = []

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"aliases are not allowed (line {mark.line + 1})")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise yaml.YAMLError(
                    f"keys must be plain values (line {key_node.start_mark.line + 1})"
                )
            if key in seen:
                line = key_node.start_mark.line + 1
                self.problems.append(f"line {line}: the key {key!r} appears twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """YAML 1.2's booleans and floats in place of PyYAML's 1.1 rules."""
    drop = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
    kept = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in drop]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    boolean = ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"))
    number = (
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"),
    )
    for first in "tTfF":
        kept.setdefault(first, []).insert(0, boolean)
    for first in "-+.0123456789":
        kept.setdefault(first, []).insert(0, number)
    return kept


_StrictLoader.yaml_implicit_resolvers = _resolvers()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
