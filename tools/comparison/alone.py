"""What has no peer to stand beside: how long things take, how much memory they need."""

import contextlib
import os
import pathlib
import subprocess
import time

from .bench import MIB
from .inprocess import kept
from .served import environment, first_line, serving
from .table import Row

HUGE = "1T"


def memory(pid, what="VmRSS"):
    """MiB of a process."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) / 1024


def huge(bench):
    """An empty disk of 1 TiB."""
    return kept(bench, "huge.cow", lambda path: bench.cow("create", path, "--size", HUGE))


def milliseconds(make):
    """How long a command takes, the start of the program included; `make` gives its arguments."""
    return lambda bench, turn: bench.cow(*make(bench, turn)).seconds * 1000


def create(bench, turn):
    """A disk of its own each time."""
    return ["create", bench.path(f"new{turn}.cow"), "--size", HUGE]


def golden(bench):
    """A snapshot of a disk of 1 TiB that holds something."""

    def make(path):
        bench.cow("create", path, "--size", HUGE)
        bench.cow("bench", path, "-w", "-c", 20_000, "-d", 32, "--random", 5)
        bench.cow("snapshot", f"{path}@golden")

    return kept(bench, "golden.cow", make)


def fork(bench, turn):
    """A fork of the snapshot."""
    path = bench.path(f"fork{turn}.cow")
    path.unlink(missing_ok=True)
    return ["fork", f"{golden(bench)}@golden", path]


def open_and_close(bench, _):
    """Opens a disk of 1 TiB for writing, and closes it."""
    return ["bench", huge(bench), "-w", "-c", 1, "-d", 1]


def open_after_kill(bench, turn):
    """Kills a writer with its journal full of records, and opens the disk."""
    path = bench.path(f"killed{turn}.cow")
    bench.cow("create", path, "--size", HUGE)
    command = [str(part) for part in (bench.cowdisk, "bench", path, "-w", "-c", 1 << 40, "-d", 32, "--random", turn)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # The journal is 64 MiB, and a checkpoint begins at its half: some 30 bytes for each block written.
    deadline = time.monotonic() + 30
    while path.stat().st_blocks * 512 < 1024 * MIB and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.wait()
    seconds = bench.cow("bench", path, "-w", "-c", 1, "-d", 1).seconds
    path.unlink()
    return seconds


def idle_memory(bench, _):
    """MiB of a daemon of a disk of 1 TiB that has nothing to do."""
    with serving(bench, huge(bench)) as (child, _):
        return memory(child.pid)


def loaded_memory(bench, turn):
    """The most that a writer of random blocks over 1 TiB ever had."""
    path = bench.path(f"random{turn}.cow")
    bench.cow("create", path, "--size", HUGE)
    command = [bench.cowdisk, "bench", path, "-w", "-c", bench.count(1_000_000), "-d", 32, "--random", 3]
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0
    path.unlink()
    return usage.ru_maxrss / 1024


def fork_and_serve(copies):
    """Seconds from the first fork until the last daemon is ready."""

    def sample(bench, turn):
        snapshot = f"{golden(bench)}@golden"
        paths = [bench.path(f"many{turn}-{n}.cow") for n in range(copies)]
        start = time.monotonic()
        bench.cow("fork", snapshot, *paths)
        with contextlib.ExitStack() as daemons:
            children = []
            for path in paths:
                command = [str(part) for part in (bench.cowdisk, "serve", path, "--frontend", "nbd")]
                child = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(bench)
                )
                daemons.callback(child.stdout.close)
                daemons.callback(child.wait)
                daemons.callback(child.terminate)
                children.append(child)
            for child in children:
                first_line(child)
            seconds = time.monotonic() - start
        for path in paths:
            path.unlink()
        return seconds

    return sample


def single(key, title, unit, sample, most):
    """A row without others."""
    return Row(key, title, unit, {"cow": sample}, [("<=", most, None)])


ROWS = [
    single("create", "`create` of a disk of 1 TiB", "ms", milliseconds(create), 5),
    single("fork", "`fork` of it", "ms", milliseconds(fork), 5),
    single("open", "open it, write a block, close it", "ms", milliseconds(open_and_close), 5),
    single("open-killed", "open after `kill -9` with a full journal", "s", open_after_kill, 1),
    single("memory-idle", "memory of an idle daemon, 1 TiB, NBD", "MiB", idle_memory, 16),
    single("memory-random", "most memory under random writes over 1 TiB", "MiB", loaded_memory, 128),
    single("fork-serve", "fork and serve until ready", "ms", lambda b, t: fork_and_serve(1)(b, t) * 1000, 30),
    single("fork-serve-100", "the same, 100 at once", "s", fork_and_serve(100), 1),
]
