"""What the doctor hands on: findings, and the diagnosis that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from zoo.data.doctor.codes import CODES, SEVERITIES, Code, Severity
from zoo.data.doctor.look import Pair
from zoo.data.doctor.source import Source


@dataclass(frozen=True)
class Finding:
    """One code with the files it concerns: path below the root -> remark (may be empty)."""

    code: str
    files: dict[str, str] = field(default_factory=dict)
    detail: str = ""

    @property
    def about(self) -> Code:
        """Title, severity, meaning and remedy."""
        return CODES[self.code]


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found, in order of the codes, with what it was found in."""

    source: Source
    pairs: list[Pair]
    findings: list[Finding]
    facts: dict[str, Any]

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.about.severity == severity]

    @property
    def counts(self) -> dict[str, int]:
        """The number of findings of each severity."""
        return {severity: len(self.of(severity)) for severity in SEVERITIES}

    @property
    def exit_code(self) -> int:
        """2 where there is an error, else 0."""
        return 2 if self.of("error") else 0

    def as_json(self) -> dict[str, Any]:
        """Plain values for a machine; files are relative to `root`."""
        return {
            "data": self.source.name,
            "root": str(self.source.root),
            "splits": count_splits(self.pairs),
            "counts": self.counts,
            "findings": [_plain(finding) for finding in self.findings],
            "facts": self.facts,
        }


def count_splits(pairs: Sequence[Pair]) -> dict[str, int]:
    """The number of images in each split."""
    counts: dict[str, int] = {}
    for pair in pairs:
        counts[pair.split] = counts.get(pair.split, 0) + 1
    return counts


def _plain(finding: Finding) -> dict[str, Any]:
    about = finding.about
    return {
        "code": about.code,
        "severity": about.severity,
        "title": about.title,
        "detail": finding.detail,
        "files": [{"path": path, "remark": text} for path, text in finding.files.items()],
        "meaning": about.meaning,
        "remedy": about.remedy,
        "fixable": about.fixable,
    }
