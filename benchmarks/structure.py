"""How deep the package is: files, function lengths, imports, and the files a call walks through.

python benchmarks/structure.py [--against CHECKOUT] [--details] [--json]

A report, not a limit. What is counted:
- entered: files under zoo/ that a call runs code of, with all modules imported and no cached value;
- moves: how often two calls in a row enter different files;
- imports in functions: `light` ones load another library, or a module that loads torch or the
  Hub's client, or belong to the command line; `optional` ones load a package of an extra; `other`
  ones only hide an order.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

HEAVY = {
    "accelerate", "altair", "huggingface_hub", "segmentation_models_pytorch", "timm", "torch",
    "torchvision",
}  # fmt: skip
"""Libraries that are slow to load; accelerate only in older checkouts, for --against."""
OPTIONAL = {
    "datasets", "imagecodecs", "optuna", "pycocotools", "ray", "tensorboard", "trackio", "wandb",
}  # fmt: skip
LINES = (
    "cli", "checks", "bench", "demo", "exporting", "training", "evaluation", "inference",
    "creation", "hub", "leaderboard", "models", "data", "registry", "records", "remote", "runtime",
    "common",
)  # fmt: skip
"""The packages under zoo/; each may import itself and those after it."""
STRANGERS = {"models", "data"}
"""Two packages that know nothing of each other."""


class Import(NamedTuple):
    """One import: what imports what, in which line, and where it stands."""

    module: str
    line: int
    imported: str
    in_function: bool = False
    typing_only: bool = False


@dataclass(frozen=True)
class Package:
    """The modules of a package by their dotted names, with their syntax trees and imports."""

    root: Path
    trees: dict[str, ast.Module]
    imports: tuple[Import, ...]

    def of(self, module: str) -> list[Import]:
        """The imports of one module."""
        return [found for found in self.imports if found.module == module]


def read_package(root: Path) -> Package:
    """The package in the folder `root`, read without running it."""
    paths = {_name(path, root): path for path in sorted(root.rglob("*.py"))}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    found = tuple(found for name, tree in trees.items() for found in _imports(name, tree, trees))
    return Package(root, trees, found)


def _name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(module: str, tree: ast.Module, modules: dict[str, ast.Module]) -> Iterator[Import]:
    def visit(node: ast.AST, in_function: bool, typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in whole]
        else:
            names = []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                in_function = True
            for child in ast.iter_child_nodes(node):
                guarded = (
                    isinstance(node, ast.If)
                    and getattr(node.test, "id", "") == "TYPE_CHECKING"
                    and child in node.body
                )
                yield from visit(child, in_function, typing_only or guarded)
        for name in dict.fromkeys(names):
            yield Import(module, node.lineno, name, in_function, typing_only)  # type: ignore[attr-defined]

    yield from visit(tree, False, False)


def upward(package: Package) -> list[str]:
    """Every import of a package above its own, those in functions and for types included."""
    top = package.root.name
    return [
        f"{found.module}:{found.line} imports {found.imported}"
        for found in package.imports
        if found.module != top
        and found.imported.split(".")[0] == top
        and 0 <= _line(found.imported) < _line(found.module)
    ]


def strangers(package: Package) -> list[str]:
    """Every import between two packages that must not know each other."""
    return [
        f"{found.module}:{found.line} imports {found.imported}"
        for found in package.imports
        if {*found.module.split(".")[1:2], *found.imported.split(".")[1:2]} == STRANGERS
        and found.imported.split(".")[0] == package.root.name
    ]


def unplaced(package: Package) -> list[str]:
    """The packages that LINES does not list, and modules at the root."""
    known = {*LINES, "__main__"}
    return sorted({name.split(".")[1] for name in package.trees if "." in name} - known)


def _line(module: str) -> int:
    part = [*module.split("."), ""][1]
    return LINES.index(part) if part in LINES else -1


def circles(package: Package) -> list[list[str]]:
    """The groups of modules that import each other, imports in functions and for types included."""
    top = package.root.name
    edges = {
        module: {
            found.imported
            for found in package.of(module)
            if found.imported in package.trees and found.imported not in {module, top}
        }
        for module in package.trees
        if module != top
    }
    reached: dict[str, set[str]] = {}
    for module in edges:
        seen: set[str] = set()
        waiting = [module]
        while waiting:
            new = edges[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[module] = seen
    groups = {
        tuple(sorted(n for n in reached[module] if module in reached[n]))
        for module in edges
        if module in reached[module]
    }
    return [list(group) for group in sorted(groups)]


def imports_in_functions(package: Package) -> dict[str, list[Import]]:
    """The imports inside functions by their kind; see the top of this file."""
    top = package.root.name
    loaded: dict[str, set[str]] = {}
    for module in package.trees:
        seen: set[str] = set()
        waiting = [module]
        while waiting:
            name = waiting.pop()
            parts = name.split(".")
            parents = {".".join(parts[:i]) for i in range(1, len(parts))} & package.trees.keys()
            wanted = {
                found.imported
                for found in package.of(name)
                if not found.in_function and not found.typing_only
            }
            new = (wanted | parents) - seen
            seen |= new
            waiting += [found for found in new if found in package.trees]
        loaded[module] = {name.split(".")[0] for name in seen} & HEAVY
    kinds: dict[str, list[Import]] = {"light": [], "optional": [], "other": []}
    for found in package.imports:
        if not found.in_function:
            continue
        first = found.imported.split(".")[0]
        heavy = loaded.get(found.imported, set()) if first == top else {first} & HEAVY
        if first in OPTIONAL:
            kind = "optional"
        elif first != top or heavy - loaded[found.module] or f"{top}.cli." in found.module:
            kind = "light"
        else:
            kind = "other"
        kinds[kind].append(found)
    return kinds


def function_lengths(package: Package) -> list[int]:
    """The lines of every function and method, from its name to its end."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for tree in package.trees.values()
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    )


def names_twice(package: Package) -> dict[str, list[str]]:
    """Names of modules, and of public classes, that are used more than once."""
    modules = Counter(n.split(".")[-1] for n in package.trees if not _is_package(n, package))
    classes = Counter(
        node.name
        for tree in package.trees.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    return {
        kind: sorted(name for name, count in counts.items() if count > 1)
        for kind, counts in (("modules", modules), ("classes", classes))
    }


def _is_package(module: str, package: Package) -> bool:
    return package.root.parent.joinpath(*module.split(".")).is_dir()


class Walk(NamedTuple):
    """The files that a call entered, in order, each call one."""

    calls: tuple[str, ...]

    @property
    def files(self) -> int:
        """How many files were entered."""
        return len(set(self.calls))

    @property
    def moves(self) -> int:
        """How often two calls in a row entered different files."""
        return sum(a != b for a, b in zip(self.calls, self.calls[1:], strict=False))


def walk(
    root: Path, action: Callable[[], object], until: Callable[[FrameType], bool] | None = None
) -> Walk:
    """Call `action` and note each call into a file under `root`, up to the call that `until` sees.

    Code at the top of a module and in the body of a class does not count.
    """
    calls: list[str] = []
    folder = f"{root}{os.sep}"

    def note(frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        if until is not None and until(frame):
            sys.setprofile(None)
            return
        code = frame.f_code
        if code.co_filename.startswith(folder) and code.co_name != "<module>":
            calls.append(code.co_filename)

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return Walk(tuple(calls))


def _forget() -> None:
    """Empty the caches of zoo's functions."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "zoo":
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _walks(folder: Path) -> dict[str, Walk]:
    """What `create` and `finetune` walk through; everything is written below `folder`."""
    import zoo
    from zoo import create, finetune

    root = Path(zoo.__file__).parent
    os.environ["ZOO_CACHE"] = str(folder / "cache")
    os.environ["HF_HUB_OFFLINE"] = "1"

    def new_model() -> object:
        return create("unet-resnet18", classes=2, encoder_weights=None)

    def run(name: str) -> Callable[[], object]:
        _write_data(folder / name)
        values = ["stages.all.epochs=1", "batch_size=2", "crop=32"]
        return lambda: finetune(
            "unet-resnet18", folder / name, recipe="scratch", out=folder / f"{name}-run",
            overrides=values, encoder_weights=None,
        )  # fmt: skip

    found = {}
    for name, first, second, until in (
        ("create", new_model, new_model, None),
        ("finetune to the first backward", run("a"), run("b"), _backward),
    ):
        first()
        _forget()
        found[name] = walk(root, second, until)
    return found


def _backward(frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_name == "backward" and Path(code.co_filename).parts[-2:] == (
        "torch",
        "_tensor.py",
    )


def _write_data(folder: Path) -> None:
    """Four images for training and two for validation, of 40 x 40 pixels and two classes."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            labels = (pixels[..., 0] > 127).astype(np.uint8)
            Image.fromarray(pixels).save(folder / split / "images" / f"{number}.png")
            Image.fromarray(labels).save(folder / split / "masks" / f"{number}.png")
    text = "version: 1\nclasses: [background, thing]\nignore: 255\n"
    (folder / "dataset.yaml").write_text(text)


def report(root: Path, *, walks: bool = True) -> dict[str, object]:
    """All figures of the package in `root`, which is the one that is imported."""
    package = read_package(root)
    lengths = function_lengths(package)
    deciles = statistics.quantiles(lengths, n=10, method="inclusive")
    kinds = imports_in_functions(package)
    twice = names_twice(package)
    files = list(root.rglob("*.py"))
    figures: dict[str, object] = {
        "Python files": len(files),
        "lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files),
        "functions": len(lengths),
        "lines of a function, median": round(statistics.median(lengths)),
        "lines of a function, 90th percentile": round(deciles[8]),
        "modules at the root": len([p for p in root.glob("*.py") if not p.stem.startswith("__")]),
        "import circles": len(circles(package)),
        "modules in circles": sum(map(len, circles(package))),
        "upward imports": len(upward(package)),
        "imports in functions": sum(map(len, kinds.values())),
        **{f"imports in functions, {kind}": len(found) for kind, found in kinds.items()},
        "module names used twice": len(twice["modules"]),
        "class names used twice": len(twice["classes"]),
    }
    if walks:
        with tempfile.TemporaryDirectory() as folder:
            for name, found in _walks(Path(folder)).items():
                figures |= {f"{name}: files entered": found.files, f"{name}: moves": found.moves}
    return figures


def details(root: Path) -> Iterator[str]:
    """What to look at: circles, upward imports, imports that hide an order, names used twice."""
    package = read_package(root)
    yield from (f"circle: {', '.join(group)}" for group in circles(package))
    yield from (f"upward: {text}" for text in [*upward(package), *strangers(package)])
    for found in imports_in_functions(package)["other"]:
        yield f"in a function: {found.module}:{found.line} imports {found.imported}"
    for kind, names in names_twice(package).items():
        yield f"{kind} used twice: {', '.join(names)}"


def _of_checkout(checkout: Path) -> dict[str, object]:
    """The figures of another checkout, from a process that imports that one."""
    done = subprocess.run(
        [sys.executable, __file__, "--json"],
        env=os.environ | {"PYTHONPATH": str(checkout)},
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"No figures of {checkout}:\n{done.stderr}")
    figures: dict[str, object] = json.loads(re.findall(r"^{.*}$", done.stdout, re.M)[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--against", type=Path, help="Another checkout, shown beside this one.")
    parser.add_argument("--details", action="store_true", help="List what was counted.")
    parser.add_argument("--json", action="store_true", help="Print the figures as JSON.")
    options = parser.parse_args()
    import zoo

    root = Path(zoo.__file__).parent
    figures = report(root)
    if options.json:
        print(json.dumps(figures))
        return
    others = _of_checkout(options.against.resolve()) if options.against else {}
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:{width}s} {value:>8} {others.get(name, ''):>8}".rstrip())
    if options.details:
        print("", *details(root), sep="\n")


if __name__ == "__main__":
    main()
