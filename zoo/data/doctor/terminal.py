"""The findings as tables for a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from zoo.data.doctor.codes import SEVERITIES
from zoo.data.doctor.findings import Diagnosis, Finding, count_splits

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 3
COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def show(diagnosis: Diagnosis) -> None:
    """Print one table for each severity to stdout, then a line that sums up."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    splits = ", ".join(f"{name} {count}" for name, count in count_splits(diagnosis.pairs).items())
    console.print(Text(plain(f"{diagnosis.source.name}: {splits or 'no pairs'}"), style="bold"))
    for severity in SEVERITIES:
        found = [finding for finding in diagnosis.of(severity) if finding.code != "D603"]
        if found:
            console.print()
            console.print(_table(severity, found))
    if diagnosis.facts["dataset_yaml"]:
        console.print(Text("\nA dataset.yaml that fits the masks (D603):\n", style="bold"))
        console.print(Text(diagnosis.facts["dataset_yaml"]))
    console.print(Text(f"\n{summary(diagnosis)}", style="bold"))


def summary(diagnosis: Diagnosis) -> str:
    """The counts of errors, warnings and notes in words."""
    counts = diagnosis.counts
    words = [f"{counts[name]} {name}{'' if counts[name] == 1 else 's'}" for name in SEVERITIES]
    return ", ".join(words)


def plain(text: str) -> str:
    """`text` without characters that a terminal would obey; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _table(severity: str, found: list[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    heading = Text(f"{severity.capitalize()}s", style=COLOURS[severity])
    table = Table("code", "what", "where", "remedy", title=heading, title_justify="left", box=None)
    for finding in found:
        fixable = " (--fix)" if finding.about.fixable else ""
        cells = [finding.code, finding.about.title, _where(finding), finding.about.remedy + fixable]
        table.add_row(*(Text(plain(cell)) for cell in cells))
    return table


def _where(finding: Finding) -> str:
    """The detail and the first files, one a line."""
    lines = [finding.detail] if finding.detail else []
    for path, text in list(finding.files.items())[:SHOWN]:
        lines.append(f"{path}: {text}" if text else path)
    if len(finding.files) > SHOWN:
        lines.append(f"... and {len(finding.files) - SHOWN} more")
    return "\n".join(lines)
