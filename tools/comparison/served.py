"""Requests through a server: NBD, driven by fio."""

import contextlib
import os
import select
import signal
import subprocess

from .bench import CannotRun
from .inprocess import full_image
from .table import Row

READY_SECONDS = 30


@contextlib.contextmanager
def serving(bench, path, *options):
    """`cowdisk serve` over NBD while the block runs; gives its process and its URI."""
    command = [bench.cowdisk, "serve", path, "--frontend", "nbd", *options]
    command = [str(part) for part in command]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(bench))
    try:
        yield child, first_line(child).removeprefix("ready ")
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait()
        child.stdout.close()


def environment(bench):
    """With a runtime directory of our own."""
    runtime = bench.path("run")
    runtime.mkdir(mode=0o700, exist_ok=True)
    return os.environ | {"XDG_RUNTIME_DIR": str(runtime)}


def first_line(child):
    """What a program says first."""
    if not select.select([child.stdout], [], [], READY_SECONDS)[0]:
        raise CannotRun(f"nothing was ready within {READY_SECONDS} s")
    line = child.stdout.readline().decode().strip()
    if not line.startswith("ready "):
        raise CannotRun("the daemon ended early")
    return line


@contextlib.contextmanager
def qemu_nbd(bench, path, form):
    """qemu-nbd while the block runs; gives its URI."""
    socket, pid = bench.path("qemu.sock"), bench.path("qemu.pid")
    for file in (socket, pid):
        file.unlink(missing_ok=True)
    how = ["-t", "-e", "8", "--cache=none", "--aio=io_uring", "--discard=unmap", "-f", form]
    bench.run("qemu-nbd", "--fork", "-k", socket, "--pid-file", pid, *how, path)
    number = int(pid.read_text())
    try:
        yield f"nbd+unix:///?socket={socket}"
    finally:
        handle = os.pidfd_open(number)
        os.kill(number, signal.SIGTERM)
        select.select([handle], [], [], READY_SECONDS)
        os.close(handle)


def over_nbd(kind, seconds, *work):
    """fio's `work` through a server of a full image."""

    def sample(bench, turn):
        given = bench.quick and max(2, seconds // 3) or seconds
        load = ["--ioengine=nbd", "--time_based", f"--runtime={given}", f"--size={bench.size}", f"--randseed={turn}"]
        image = full_image({"cow": "cow", "nbdraw": "raw", "nbdqcow2": "qcow2"}[kind])(bench)
        if kind == "cow":
            with serving(bench, image) as (_, uri):
                return bench.fio(f"--uri={uri}", *load, *work)[0]
        with qemu_nbd(bench, image, "raw" if kind == "nbdraw" else "qcow2") as uri:
            return bench.fio(f"--uri={uri}", *load, *work)[0]

    return sample


def nbd_row(key, title, factor, *work):
    """The row of one kind of work over NBD."""
    kinds = ["cow", "nbdraw", "nbdqcow2"]
    contestants = {kind: over_nbd(kind, 6, "--bs=4k", *work) for kind in kinds}
    return Row(f"nbd-{key}", f"NBD: {title}", "/s", contestants, [(">=", factor, "nbdraw"), (">=", 1.0, "nbdqcow2")])


ROWS = [
    nbd_row("randread", "4 KiB random read, depth 32", 1.1, "--rw=randread", "--iodepth=32"),
    nbd_row("randwrite", "4 KiB random write, depth 32", 2.0, "--rw=randwrite", "--iodepth=32"),
    nbd_row("write-fsync", "4 KiB write + fsync, depth 1", 1.0, "--rw=randwrite", "--iodepth=1", "--fsync=1"),
]
