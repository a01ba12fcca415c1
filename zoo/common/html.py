"""Pages and cards from templates. A page is one self-contained file: nothing from the network.

Templates are jinja2 files beside the code that fills them, named from the package's root:
`render("leaderboard/site.html", ...)`. Every value is escaped in `.html` templates unless it is
`Markup`. A page extends `common/page.html`, which has the blocks `style`, `body` and `script`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

ROOT = Path(__file__).parent.parent


@functools.cache
def environment() -> Environment:
    """The environment of all templates; an undefined name in one raises."""
    made = Environment(
        loader=FileSystemLoader(ROOT),
        autoescape=select_autoescape(["html"], default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals |= {"asset": asset, "data_block": data_block, "script_hash": script_hash}
    return made


def render(template: str, **values: object) -> str:
    """The text of a template, such as `training/report.html`, filled with `values`."""
    return environment().get_template(template).render(**values)


def asset(name: str) -> Markup:
    """A file beside the code, such as `leaderboard/site.css`, as it is."""
    return Markup((ROOT / name).read_text(encoding="utf-8"))


def data_block(name: str, value: object) -> Markup:
    """`value` as JSON that the page's script reads from the element with the id `name`."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Markup(f'<script type="application/json" id="{name}">{text}</script>')


def data_url(content: bytes, kind: str) -> str:
    """An image as the `src` of an element; `kind` is png or webp."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def script_hash(script: str) -> str:
    """What the page's policy says of the only script that the browser may run."""
    digest = hashlib.sha256(str(script).encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
