"""Rows, their rounds, and the table."""

import os
import platform
import statistics
import sys
from dataclasses import dataclass, field

from .bench import CannotRun

NAMES = {
    "cow": "cowdisk",
    "raw": "raw file",
    "sparse": "fresh sparse file",
    "rawfio": "raw file (fio)",
    "qcow2": "qcow2 64k",
    "qcow2x": "qcow2 extended_l2",
    "nbdraw": "qemu-nbd raw",
    "nbdqcow2": "qemu-nbd qcow2",
}


@dataclass
class Row:
    """A kind of work.

    `contestants`: name to function of (bench, round) that gives one sample. `targets`: what cowdisk is to reach, as
    (`>=` or `<=`, factor, contestant), or with None instead of a contestant for a figure by itself.
    """

    key: str
    title: str
    unit: str
    contestants: dict
    targets: list = field(default_factory=list)


@dataclass
class Result:
    """Samples of a row, and what could not be run."""

    row: Row
    samples: dict = field(default_factory=dict)
    failed: dict = field(default_factory=dict)

    @property
    def complete(self):
        """Everything was measured."""
        return not self.failed

    def median(self, name):
        """The figure of a contestant; None if there is none."""
        return statistics.median(self.samples[name]) if self.samples.get(name) else None

    def against(self, name):
        """The figure that the contestants of this name give, the better one of two ways to measure a raw file."""
        figures = [self.median(n) for n in (name, name + "fio") if self.median(n) is not None]
        return max(figures, default=None)

    def verdicts(self):
        """Each target with what was reached."""
        own = self.median("cow")
        for way, factor, name in self.row.targets:
            other = 1.0 if name is None else self.against(name)
            if own is None or not other:
                continue
            reached = own / other
            met = reached >= factor if way == ">=" else reached <= factor
            unit = f" {self.row.unit}" if name is None else f" x {NAMES.get(name, name)}"
            yield f"{number(reached)}{unit} ({'' if met else 'missed: '}{way} {factor:g})"

    def as_json(self):
        """All samples."""
        row = self.row
        return {"key": row.key, "title": row.title, "unit": row.unit, "samples": self.samples, "failed": self.failed}


def measure(row, bench, rounds):
    """All rounds of a row, in turns."""
    result = Result(row)
    names = list(row.contestants)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            if name in result.failed:
                continue
            try:
                result.samples.setdefault(name, []).append(row.contestants[name](bench, turn))
            except CannotRun as e:
                result.failed[name] = str(e)
                print(f"{row.key}: {NAMES.get(name, name)}: {e}", file=sys.stderr, flush=True)
    figures = ", ".join(f"{NAMES.get(n, n)} {number(result.median(n))}" for n in names if result.samples.get(n))
    print(f"{row.key}: {figures} {row.unit}", file=sys.stderr, flush=True)
    return result


def number(value):
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(results):
    """The table of the README."""
    lines = ["| work | cowdisk | beside it | reached (target) |", "|---|---|---|---|"]
    for result in results:
        row = result.row
        others = [n for n in row.contestants if n != "cow"]
        beside = [f"{NAMES.get(n, n)} {number(result.median(n))}" for n in others if result.median(n) is not None]
        beside += [f"{NAMES.get(n, n)}: could not run" for n in others if n in result.failed]
        own = "could not run" if "cow" in result.failed else f"{number(result.median('cow'))} {row.unit}"
        lines.append(f"| {row.title} | {own} | {', '.join(beside)} | {', '.join(result.verdicts())} |")
    return "\n".join(lines)


def facts(bench):
    """What the figures depend on."""
    where = os.stat(bench.where)
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        device = f"{os.major(where.st_dev)}:{os.minor(where.st_dev)}"
        kind = next((line.split(" - ")[1].split()[0] for line in mounts if line.split()[2] == device), "?")
    return {
        "cowdisk": bench.cow("--version").out.strip(),
        "qemu": bench.run("qemu-img", "--version").out.splitlines()[0],
        "fio": bench.run("fio", "--version").out.strip(),
        "kernel": platform.release(),
        "processors": len(os.sched_getaffinity(0)),
        "filesystem": kind,
        "load": " ".join(f"{part:.1f}" for part in os.getloadavg()),
        "disk": f"{bench.size >> 20} MiB",
    }
