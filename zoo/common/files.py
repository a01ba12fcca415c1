"""Reading and writing files safely: atomic writes, strict YAML, hashes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from zoo.common.errors import InputError, RunError, join_problems, printable

MAX_YAML_BYTES = 1_000_000
NO_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
"""What a path may be other than a file."""
MANIFEST = ".zoo-files.jsonl"
"""The file in a folder that lists what zoo wrote there: one JSON object for each file, with its
`file` (a path relative to the folder) and its `sha256`."""
NAMED = 10
"""How many files a refusal names."""


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that `path` holds either the old or the whole new content.

    Raises RunError where the folder cannot be written or the disk is full.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, sync it and rename it over `path`.

    Raises InputError where a folder, a device or the like is there.
    """
    temporary: Path | None = None
    try:
        beside = _temporary(path)
        with beside.open("xb") as stream:
            temporary = beside
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def _temporary(path: Path) -> Path:
    """A hidden name beside `path`, whose folder is made. Raises as `write_bytes` does."""
    with contextlib.suppress(FileNotFoundError):
        check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary name is 10 bytes longer than the name, of which 255 are allowed.
    prefix = f".{path.name}." if len(os.fsencode(path.name)) < 240 else ".zoo."
    return path.with_name(f"{prefix}{secrets.token_hex(4)}")


def json_text(value: object) -> str:
    """`value` as indented JSON with a final newline; NaN is refused."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write `value` as `json_text`."""
    write_text(path, json_text(value))


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


class OutputFolder:
    """A folder that a command writes files into without ever replacing a file of somebody else.

    `names` are the paths, relative to `folder`, of the files that `write` will be called for. A
    manifest in the folder (see `MANIFEST`) lists what was written there and its digests, so that
    the same command can be run again.

    Raises InputError, before anything is written, that names the files which zoo did not write
    there or which were changed since: all in the folder, or with `shared` only those of `names`.
    Hidden files do not count, except with `replaced`, where the whole folder is to be replaced.
    `overwrite` allows everything but this: a file of `names` that is one of `inputs`, also by a
    link or by another spelling of its name, is refused in any case.
    """

    def __init__(
        self,
        folder: Path,
        names: Iterable[str | Path],
        *,
        inputs: Iterable[Path] = (),
        overwrite: bool = False,
        shared: bool = False,
        replaced: bool = False,
    ):
        self.folder, self._written = folder, _read_manifest(folder)
        self._manifest = threading.Lock()
        wanted = list(dict.fromkeys(Path(name).as_posix() for name in names))
        self._replaced = wanted if replaced else None
        try:
            if outside := [name for name in wanted if _leaves(name)]:
                raise InputError(f"{printable(outside[0])} would be written outside of {folder}.")
            there = [name for name in wanted if _is_there(folder / name)]
            read = {_identity(path) for path in inputs} if there else set()
            problems = [
                f"{name} is an input of this command"
                for name in there
                if read and _identity(folder / name) in read
            ]
            if problems:
                advice = "Give another place for the output; an input is never overwritten."
            elif not overwrite:
                present = there if shared else dict.fromkeys([*self._files(replaced), *there])
                problems = [text for name in present if (text := self._foreign(name))]
                advice = (
                    "Give another place for the output, or allow what is there to be overwritten: "
                    "--overwrite, in Python overwrite=True."
                )
            places = dict.fromkeys([folder, *((folder / name).parent for name in wanted)])
            if not problems:
                for place in places:
                    _check_folder(next(p for p in (place, *place.parents) if p.exists()))
        except OSError as error:
            raise _cannot_write(folder, error) from error
        if problems:
            header = f"{folder} holds files that would be lost or mixed up; nothing was written:"
            named = join_problems(header, map(printable, problems), NAMED)
            raise InputError(f"{named}\n{advice}")

    def write(self, name: str | Path, content: bytes) -> Path:
        """Write one of the files and return its path; several threads may write at once.

        The digest is in the manifest first: a kill in between leaves an entry without its file,
        which allows nothing, and never a file without its entry.
        """
        name = Path(name).as_posix()
        self._add_entry(name, hashlib.sha256(content).hexdigest())
        path = self.folder / name
        write_bytes(path, content)
        return path

    @contextlib.contextmanager
    def streamed(self, name: str | Path) -> Iterator[Path]:
        """Yield the path of a temporary file, for one that is not to be held in memory.

        It becomes the file when the block ends, by the rules of `write`, and is deleted where the
        block raises.
        """
        name = Path(name).as_posix()
        path, temporary = self.folder / name, None
        try:
            temporary = _temporary(path)
            yield temporary
            sync(temporary)
            self._add_entry(name, sha256(temporary))
            temporary.replace(path)
        except OSError as error:
            raise _cannot_write(path, error) from error
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def _add_entry(self, name: str, digest: str) -> None:
        """List a file in the manifest, unless it is listed already."""
        with self._manifest:
            if digest in self._written.setdefault(name, set()):
                return
            self._written[name].add(digest)
            entry = json.dumps({"file": name, "sha256": digest})
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with (self.folder / MANIFEST).open("ab") as stream:
                    torn = stream.tell() and not _ends_line(self.folder / MANIFEST)
                    stream.write(f"{chr(10) if torn else ''}{entry}\n".encode())
            except OSError as error:
                raise _cannot_write(self.folder / name, error) from error

    def _files(self, hidden: bool) -> Iterator[str]:
        """Everything below the folder that is no folder; a link to a folder is not followed."""
        for place, folders, files in os.walk(self.folder):
            links = [name for name in folders if os.path.islink(os.path.join(place, name))]
            folders[:] = sorted(name for name in folders if hidden or not name.startswith("."))
            for name in sorted([*links, *files]):
                if name in (MANIFEST, ".DS_Store") or (name.startswith(".") and not hidden):
                    continue
                yield (Path(place) / name).relative_to(self.folder).as_posix()

    def _foreign(self, name: str) -> str | None:
        """What is wrong with a file that is there; None for what zoo wrote."""
        if self._replaced is not None and name not in self._replaced:
            return f"{name} would be removed"
        path = self.folder / name
        if path.is_dir():
            return f"{name} is a folder" + (" elsewhere, by a link" if path.is_symlink() else "")
        if name not in self._written or not path.is_file():
            return f"{name} was not written by zoo"
        return None if sha256(path) in self._written[name] else f"{name} was changed since"


def list_written(folder: Path) -> None:
    """Write the manifest of a folder whose files were all just made, for `OutputFolder`."""
    entries = [
        json.dumps({"file": file.relative_to(folder).as_posix(), "sha256": sha256(file)})
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    ]
    write_text(folder / MANIFEST, "".join(f"{entry}\n" for entry in entries))


def written_files(folder: Path) -> set[Path]:
    """What zoo wrote into `folder`, by the manifest there; the files need not exist any more."""
    return {folder / name for name in _read_manifest(folder)}


def _read_manifest(folder: Path) -> dict[str, set[str]]:
    """The digests of each file in the manifest; lines that cannot be read allow nothing."""
    written: dict[str, set[str]] = {}
    with contextlib.suppress(OSError, InputError):
        check_file(folder / MANIFEST)
        for line in (folder / MANIFEST).read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                entry = json.loads(line)
                written.setdefault(str(entry["file"]), set()).add(str(entry["sha256"]))
    return written


def _ends_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"


def _leaves(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts


def _is_there(path: Path) -> bool:
    """As `os.path.lexists`, but raises OSError for a name that is too long."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _identity(path: Path) -> tuple[int, int] | str:
    """What two paths of one file share; of a file that is not there, its own path."""
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; give another place for the output.")


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    Raises InputError where `path` is no folder, or holds anything, unless `replace` says that all
    of it may go. Where it is a link, the folder that it leads to is replaced. A reader sees the old
    folder or the new one, never a mixture of both; between the two renames a kill can leave the old
    one under the name `.NAME.old`, which `recover_folder` puts back.
    """
    if os.path.lexists(path):
        _check_folder(path)  # a file or a device stays, whatever is asked
    if not replace and path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path} is not an empty folder; give a new one.")
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = scratch_folder(path.parent, f".{path.name}.zoo-")
            temporary = stack.enter_context(scratch)
        except OSError as error:
            raise _cannot_write(path, error) from error
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
            raise _cannot_write(path, error) from error


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


def read_yaml(path: Path, *, as_text: bool = False) -> Any:
    """Read one YAML document strictly. Raises InputError naming the file and the place.

    Refused: aliases, duplicate keys, tags that name types, files above 1 MB. Unlike plain PyYAML,
    `1e-3` is a number, `010` and `1:30` are none, and only `true` and `false` are booleans.
    With `as_text` every plain value is text as it is written.
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
    return parse_yaml(text, str(path), as_text=as_text)


def parse_yaml(text: str, source: str, *, as_text: bool = False) -> Any:
    """Parse YAML text with the rules of `read_yaml`; `source` names it in messages."""
    try:
        loader = (_TextLoader if as_text else _StrictLoader)(text)
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
    """YAML 1.2's booleans and numbers in place of PyYAML's 1.1 rules.

    A number is decimal: 010, 1_000 and 1:30, which 1.1 takes for 8, 1000 and 90, stay text.
    """
    drop = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")}
    kept = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in drop]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    boolean = ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"))
    number = (
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"),
    )
    whole = ("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9]\d*)$"))
    for first in "tTfF":
        kept.setdefault(first, []).insert(0, boolean)
    for first in "-+0123456789":
        kept.setdefault(first, []).insert(0, whole)
    for first in "-+.0123456789":
        kept.setdefault(first, []).insert(0, number)
    return kept


_StrictLoader.yaml_implicit_resolvers = _resolvers()


class _TextLoader(_StrictLoader):
    pass


_TextLoader.yaml_implicit_resolvers = {}


def _cannot_write(path: Path, error: OSError) -> InputError | RunError:
    kind = InputError if error.errno == errno.ENAMETOOLONG else RunError
    return kind(f"Cannot write {path}: {error.strerror or error}.")


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
