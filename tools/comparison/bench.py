"""Where and with what is measured: programs, files, and what a program took."""

import json
import os
import pathlib
import re
import subprocess
import time
from dataclasses import dataclass

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BLOCK = 4096
# `qemu-img bench` has no random mode: a large odd stride visits every block once, and no neighbours.
STRIDE = BLOCK * 97 * 1031
# Another one, for images that are read later in the order of the first.
FILL = BLOCK * 89 * 1033


class CannotRun(Exception):
    """Why something cannot be measured here."""


@dataclass
class Spent:
    """What a program took: seconds by the clock, of the processor, bytes written to the host."""

    seconds: float
    cpu: float
    written: int
    out: str


class Bench:
    """The programs, the directory, and the sizes of this run."""

    def __init__(self, cowdisk, where, quick):
        if not cowdisk.is_file():
            raise SystemExit(f"no cowdisk at {cowdisk}: cargo build --release, or COWDISK_BIN")
        self.cowdisk, self.where, self.quick = cowdisk.resolve(), where, quick
        self.size = 512 * MIB if quick else 2 * GIB
        self.made = set()

    def count(self, full):
        """Requests of a measurement."""
        return full // 5 if self.quick else full

    def path(self, name):
        """A file of this run."""
        return self.where / name

    def run(self, *command, env=None):
        """Runs a program to its end; `CannotRun` if it fails."""
        command = [str(part) for part in command]
        start = time.monotonic()
        out, err = self.path("stdout"), self.path("stderr")
        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            try:
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=self.where, env=env
                )
            except FileNotFoundError as e:
                raise CannotRun(f"{command[0]} is not installed") from e
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        if child.returncode != 0:
            said = err.read_text(errors="replace").strip().splitlines() or ["no word"]
            raise CannotRun(f"`{' '.join(command)}` exits with {child.returncode}: {said[0]}")
        spent = usage.ru_utime + usage.ru_stime
        return Spent(seconds, spent, usage.ru_oublock * 512, out.read_text(errors="replace"))

    def cow(self, *args):
        """Runs cowdisk."""
        return self.run(self.cowdisk, *args)

    def written_file(self, name, size=None):
        """A raw file of which every byte was written once."""
        path = self.path(name)
        if name not in self.made:
            block = os.urandom(MIB)
            with open(path, "wb", buffering=0) as file:
                for _ in range((size or self.size) // MIB):
                    file.write(block)
                os.fsync(file.fileno())
            self.made.add(name)
        return path

    def drop_caches(self):
        """Empties the host's page cache."""
        os.sync()
        try:
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        except OSError as e:
            raise CannotRun(f"the page cache cannot be dropped: {e.strerror}") from e

    # --- Fresh images on the same base ---------------------------------------------------------------------------

    def fresh(self, kind):
        """A new image of `kind`, on the raw base where it has one; the file."""
        base = self.written_file("base.raw")
        if kind == "raw":
            return self.written_file("raw.img")
        path = self.path(f"fresh.{kind}")
        path.unlink(missing_ok=True)
        if kind == "sparse":
            with open(path, "wb") as file:
                file.truncate(self.size)
        elif kind == "cow":
            self.cow("create", path, "--base", base, "--base-format", "raw")
        elif kind.startswith("qcow2"):
            options = {"qcow2": "cluster_size=64k", "qcow2x": "cluster_size=128k,extended_l2=on"}[kind]
            self.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", base, "-F", "raw", path)
        else:
            raise ValueError(kind)
        return path

    def requests(self, kind, path, count, depth, write=False, size=BLOCK, step=STRIDE, flush=0, more=()):
        """Sends `count` requests in process to an image of `kind`: requests per second, and what it took."""
        common = ["-c", count, "-d", depth, "-s", size, "-S", step] + (["-w"] if write else [])
        common += ["--flush-interval", flush] if flush else []
        if kind == "cow":
            spent = self.cow("bench", path, "--json", *common, *more)
            return json.loads(spent.out)["iops"], spent
        form = "raw" if kind in ("raw", "sparse") else "qcow2"
        spent = self.run("qemu-img", "bench", "-t", "none", "-i", "io_uring", "-f", form, *common, *more, path)
        return count / float(re.search(r"completed in ([0-9.]+) seconds", spent.out)[1]), spent

    def fio(self, *args):
        """Runs fio: requests per second of reads and writes together, and its own report."""
        spent = self.run("fio", "--name=x", "--output-format=json", "--group_reporting", *args)
        job = json.loads(spent.out[spent.out.index("{"):])["jobs"][0]
        return job["read"]["iops"] + job["write"]["iops"], job

    def replay(self, path, count, depth, write, flush=False):
        """The requests of `requests`, sent by fio with io_uring and O_DIRECT."""
        log, action = self.path("requests.log"), "write" if write else "read"
        at = 0
        with open(log, "w", encoding="ascii") as file:
            file.write(f"fio version 2 iolog\n{path} add\n{path} open\n")
            for _ in range(count):
                file.write(f"{path} {action} {at} {BLOCK}\n")
                if flush:
                    file.write(f"{path} datasync 0 0\n")
                at = (at + STRIDE) % self.size
            file.write(f"{path} close\n")
        return self.fio("--ioengine=io_uring", "--direct=1", f"--iodepth={depth}", f"--read_iolog={log}")[0]
