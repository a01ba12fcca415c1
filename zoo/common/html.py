"""One self-contained HTML page: nothing from the network, no script but the one given."""

from __future__ import annotations

import base64
import hashlib
import html
import json

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}{script}
</body>
</html>
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, style: str, body: str, script: str = "") -> str:
    """The page as text; `title` is escaped here, `body` must be safe HTML already.

    The browser runs `script` and, by the hash of it in the page's policy, no other.
    """
    policy, element = _POLICY, ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
        policy = f"{policy}; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        element = f"\n<script>{script}</script>"
    return _PAGE.format(
        policy=policy, title=html.escape(title), style=style, body=body, script=element
    )


def data_block(name: str, value: object) -> str:
    """`value` as JSON that the page's script reads from the element with the id `name`."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'
