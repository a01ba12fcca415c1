"""Mutated files: valid YAML and JSON with other values, keys and structure, and damaged bytes."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import strategies as st

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**30, 0.5, 1e308, float("nan"), float("inf")]),
    st.text(max_size=12),
    st.sampled_from(
        ["null", "../../etc", "/", "a\nb", "\x1b[2J", "\ud800", "x" * 5000, "~", "${A}"]
    ),
    st.lists(st.integers(-1, 3), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(-1, 3), max_size=2),
)
"""Values of every type that JSON knows, small and absurd."""


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value below `value`, the outer ones first."""
    if not isinstance(value, dict | list):
        return []
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in inner:
        found += [(*above, key), *places(item, (*above, key))]
    return found


@st.composite
def changed_values(draw: st.DrawFn, value: Any) -> Any:
    """`value` with one to three changes: replaced, removed, renamed, wrapped or doubled."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        if not (found := places(value)):
            return draw(JUNK)
        *path, last = draw(st.sampled_from(found))
        parent = value
        for key in path:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "replace", "remove", "rename", "wrap", "double"]))
        if change == "remove":
            del parent[last]
        elif change == "wrap":
            parent[last] = [parent[last]]
        elif change == "rename" and isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = parent.pop(last)
        elif change == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        else:
            parent[last] = draw(JUNK)
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` cut, with bytes changed, inserted or removed, or random bytes in its place."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.sampled_from([0, 1, 1, 2, 4, 16, len(content)]))
        new = draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"\x00", b"\xff" * 4, b"\n"])))
        content = content[:start] + new + content[start + length :]
    return content


def mutations(content: bytes, suffix: str) -> st.SearchStrategy[bytes]:
    """Strategy of mutated versions of a file's content, by structure where it has one."""
    if suffix == ".json":
        values = changed_values(json.loads(content))
        by_value = values.map(lambda value: json.dumps(value).encode())
    elif suffix == ".yaml":
        values = changed_values(yaml.safe_load(content))
        by_value = values.map(lambda value: yaml.dump(value).encode())
    elif suffix == ".jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        values = changed_values(lines).filter(lambda value: isinstance(value, list))
        by_value = values.map(
            lambda value: b"".join(json.dumps(line).encode() + b"\n" for line in value)
        )
    else:
        return damaged(content)
    return st.one_of(by_value, by_value, by_value, damaged(content))
