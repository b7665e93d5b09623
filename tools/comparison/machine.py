"""ublk: a virtual machine with the newest kernel, beside rublk."""

import os
import pathlib
import re
import subprocess

from .bench import CannotRun
from .table import Row

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
# From crates.io; building it needs libclang.
RUBLK = "0.2.15"
TITLES = {
    "randread": "4 KiB random read, depth 32",
    "randwrite": "4 KiB random write, depth 32",
    "mixed-fsync": "4 KiB random reads and writes, depth 8, fsync after 8 writes",
}


def rublk():
    """The directory of the program, built once."""
    root = REPOSITORY / "target/rublk"
    if not (root / "bin/rublk").exists():
        command = ["cargo", "install", "rublk", "--version", RUBLK, "--locked", "--no-default-features", "--root", root]
        with open(REPOSITORY / "target/rublk.log", "wb") as log:
            built = subprocess.run(
                command, stdout=log, stderr=log, check=False, env=os.environ | {"CARGO_TARGET_DIR": str(root / "target")}
            )
        if built.returncode != 0:
            raise CannotRun("rublk cannot be built: see target/rublk.log (it needs libclang-dev)")
    return root / "bin"


def machine(bench):
    """The figures of one machine, measured once in a run: (work, name) to samples."""
    if "machine" not in bench.made:
        env = os.environ | {
            "PATH": f"{rublk()}:{os.environ['PATH']}", "COWDISK_BIN": str(bench.cowdisk),
        }  # fmt: skip
        command = [REPOSITORY / "tests/vm/run", "new", "peers"]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        if done.returncode != 0:
            raise CannotRun("the virtual machine failed: see target/vm-logs/new-peers.out")
        found = {}
        for work, name, rate in re.findall(r"^# peer (\S+) (\S+) ([0-9.]+)", done.stdout, re.MULTILINE):
            found.setdefault((work, name), []).append(float(rate))
        bench.machine = found
        bench.made.add("machine")
    return bench.machine


def figure(work, name):
    """A round of a machine that did them all."""

    def sample(bench, turn):
        rates = machine(bench).get((work, name))
        if not rates:
            raise CannotRun("the machine printed no figure")
        return rates[turn % len(rates)]

    return sample


def row(work, over_loop, over_qcow2):
    """The row of a work, beside rublk's loop and qcow2."""
    names = {"cow": "cowdisk", "rublk loop": "rublk-loop", "rublk qcow2": "rublk-qcow2"}
    contestants = {key: figure(work, name) for key, name in names.items()}
    if work == "randread":
        contestants["rublk null"] = figure(work, "null")
    targets = [(">=", over_loop, "rublk loop"), (">=", over_qcow2, "rublk qcow2")]
    return Row(f"ublk-{work}", f"ublk in an emulated machine: {TITLES[work]}", "/s", contestants, targets)


ROWS = [row("randread", 0.9, 2), row("randwrite", 1.2, 2), row("mixed-fsync", 1.5, 2)]
