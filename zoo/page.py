"""One self-contained HTML page: no script, nothing from the network."""

from __future__ import annotations

import html

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def page(title: str, style: str, body: str) -> str:
    """The page as text; `title` is escaped here, `body` must be safe HTML already."""
    return _PAGE.format(title=html.escape(title), style=style, body=body)
