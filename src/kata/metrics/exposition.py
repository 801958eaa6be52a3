"""Prometheus' text exposition format 0.0.4: written, and read from whoever may be hostile.

prometheus-client writes it, too. Agent and shim do without: it takes 6.5 MB of every shim, imports `ssl`, which a shim
has not, and the guest's image has no room for it. Its parser takes what Prometheus refuses, and one sample that
Prometheus refuses costs it the whole answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Of a family's samples besides its own name.
_SUFFIXES = ("_bucket", "_sum", "_count")
#: Labels that say whose a sample is, which no text may claim for itself.
OWNER_LABELS = frozenset({"sandbox_id", "cri_uid", "cri_name", "cri_namespace", "instance", "job"})

#: Characters of a label's value that are written: a pod's name may have 253.
_MAX_LABEL = 256
#: Characters of a line and of a label's value, and the number of labels that are read. Names of interfaces, disks and
#: entries of /proc are shorter.
_MAX_LINE = 1024
_MAX_READ_LABEL = 64
_MAX_READ_LABELS = 8

# A label's value without what a terminal or a page could be deceived with: control characters, and those that end a
# line or change the direction of writing.
_PLAIN = r"[^\"\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
_LABEL = rf'([a-zA-Z_][a-zA-Z0-9_]*)="((?:{_PLAIN}|\\[\\"n]){{0,{_MAX_READ_LABEL}}})"'
_SAMPLE = re.compile(
    r"([a-z][a-z0-9_]{0,127})"
    rf"(?:\{{({_LABEL}(?:,{_LABEL}){{0,{_MAX_READ_LABELS - 1}}})?\}})?"
    r" (-?\d{1,24}(?:\.\d{1,24})?(?:e[-+]?\d{1,3})?|NaN|[-+]Inf)"
)
_NAMES = re.compile(_LABEL)


@dataclass
class Family:
    """A metric and its samples.

    Attributes:
        name: of the metric.
        kind: "counter", "gauge" or "histogram".
        text: what it is, on one line.
        samples: suffix of the name, labels as they are written between the braces, and value of each.
    """

    name: str
    kind: str
    text: str
    samples: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, value: float, labels: Mapping[str, str] | None = None, suffix: str = "") -> None:
        """Add a sample."""
        self.samples.append((suffix, label_text(labels or {}), number(value)))


def label_text(labels: Mapping[str, str]) -> str:
    """Labels as they are written between the braces."""
    return ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())


def number(value: float) -> str:
    """A finite value as it is written: a whole number without a fraction."""
    return str(int(value)) if value == int(value) and abs(value) < 1 << 53 else repr(float(value))


def _escape(text: str) -> str:
    """A label's value, of one line and of bounded length."""
    shown = "".join(one if one.isprintable() or one == "\n" else " " for one in text[:_MAX_LABEL])
    return shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def write(families: Iterable[Family], owner: str = "") -> str:
    """The text of families; those without samples are left out.

    Args:
        families: each name once.
        owner: labels that every sample gets first, as `label_text` returns them.
    """
    return "".join(_written(families, owner))


def _written(families: Iterable[Family], owner: str) -> Iterator[str]:
    for family in families:
        if family.samples:
            yield f"# HELP {family.name} {family.text}\n# TYPE {family.name} {family.kind}\n"
        for suffix, labels, value in family.samples:
            shown = f"{owner},{labels}" if owner and labels else owner or labels
            yield f"{family.name}{suffix}{{{shown}}} {value}\n" if shown else f"{family.name}{suffix} {value}\n"


def read(text: str, known: Mapping[str, tuple[str, str]], most: int) -> tuple[dict[str, Family], int]:
    """Read a text, whoever has written it: what comes back is safe to show and to hand on to Prometheus.

    Args:
        text: of any length and content.
        known: kind and text of each family that is taken. What the text itself says of them is not.
        most: how many samples are taken.

    Returns:
        Families by name, and how many lines were dropped: unknown names, what Prometheus would refuse, labels of
        `OWNER_LABELS`, values of labels that are long or deceive, timestamps, repetitions, and what was too much.
    """
    found: dict[str, Family] = {}
    seen: set[tuple[str, str]] = set()
    dropped = 0
    for line in _lines(text):
        if line.startswith("#") or not line:
            continue
        # What is too much is not looked at: a guest may send megabytes of it.
        sample = _sample(line, known) if len(line) <= _MAX_LINE and len(seen) < most else None
        if sample is None or sample[:2] in seen:
            dropped += 1
            continue
        full, labels, value, name = sample
        seen.add((full, labels))
        if name not in found:
            found[name] = Family(name, *known[name])
        found[name].samples.append((full[len(name) :], labels, value))
    return found, dropped


def _lines(text: str) -> Iterator[str]:
    """The lines, one after the other: a list of them would take many times the memory of the text."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin)
        end = len(text) if end < 0 else end
        # What is too long shall not be copied.
        yield text[begin : min(end, begin + _MAX_LINE + 1)]
        begin = end + 1


def _sample(line: str, known: Mapping[str, tuple[str, str]]) -> tuple[str, str, str, str] | None:
    """Name with suffix, labels, value and family of a line, if it is one that is taken."""
    match = _SAMPLE.fullmatch(line)
    if match is None:
        return None
    full, labels, value = match[1], match[2] or "", match[match.lastindex or 0]
    name = full
    if name not in known:
        name = next((full.removesuffix(suffix) for suffix in _SUFFIXES if full.endswith(suffix)), "")
        if name not in known or known[name][0] != "histogram":
            return None
    elif known[name][0] == "histogram":
        return None
    if labels:
        names = [label for label, _ in _NAMES.findall(labels)]
        if len(set(names)) != len(names) or not OWNER_LABELS.isdisjoint(names):
            return None
        # Prometheus keeps names with two underscores at their beginning to itself.
        if any(one.startswith("__") for one in names) or (full.endswith("_bucket") and "le" not in names):
            return None
    elif full.endswith("_bucket"):
        return None
    return full, labels, value, name
