"""Requests in the process of the engine: `cowdisk bench` beside `qemu-img bench`, and fio on the raw file."""

from .bench import BLOCK, FILL, KIB, MIB
from .table import Row

# qcow2 allocates slowly: fewer requests tell as much.
SLOW = {"qcow2": 10, "qcow2x": 5}


def requests(kind, bench, path, full, **options):
    """Requests per second of `full` requests, or fewer where they are slow."""
    count = bench.count(full)
    if kind == "rawfio":
        return bench.replay(path, count, options["depth"], options.get("write", False), bool(options.get("flush")))
    return bench.requests(kind, path, count, **options)[0]


def fresh_writes(kind, full, again=False, **options):
    """Random writes to a fresh image; with `again`, the same ones once more."""

    def sample(bench, _):
        path = bench.fresh("raw" if kind == "rawfio" else kind)
        count = full // SLOW.get(kind, 1)
        rate = requests(kind, bench, path, count, write=True, **options)
        return requests(kind, bench, path, count, write=True, **options) if again else rate

    return sample


def each(kinds, make):
    """A contestant for each kind."""
    return {kind: make(kind) for kind in kinds}


def writes_at(depth, full, factor):
    """The row of random writes at a small depth."""
    return Row(
        f"write-{depth}",
        f"4 KiB random write, depth {depth}, fresh overlay",
        "/s",
        each(["cow", "raw", "rawfio"], lambda kind: fresh_writes(kind, full, depth=depth)),
        [(">=", factor, "raw")],
    )


# --- Images that live longer than a round ---------------------------------------------------------------------------


def kept(bench, name, make):
    """The file `name`, made once in a run."""
    path = bench.path(name)
    if name not in bench.made:
        make(path)
        bench.made.add(name)
    return path


def aged(bench):
    """An image that has been overwritten at random three times over."""

    def make(path):
        bench.cow("create", path, "--size", bench.size)
        blocks = bench.size // BLOCK
        bench.cow("bench", path, "-w", "-c", 3 * blocks, "-d", 32, "--random", 7)

    return kept(bench, "aged.cow", make)


def full_image(kind):
    """A function that makes an image of `kind` with every block written at random."""

    def make(bench):
        if kind.startswith("raw"):
            return bench.written_file("raw.img")

        def fill(path):
            if kind == "cow":
                bench.cow("create", path, "--size", bench.size)
            else:
                bench.run("qemu-img", "create", "-q", "-f", "qcow2", path, bench.size)
            bench.requests(kind, path, bench.size // BLOCK, 32, write=True, step=FILL)

        return kept(bench, f"full.{kind}", fill)

    return make


def on_image(kind, image, full, **options):
    """Requests to an image that is kept."""
    return lambda bench, _: requests(kind, bench, image(bench), full, **options)


def warm_flushes(bench, _):
    """Writes with a flush each, on an image that has had thousands of them."""
    path = bench.fresh("cow")
    requests("cow", bench, path, 5000, depth=1, write=True, flush=1)
    return requests("cow", bench, path, 5000, depth=1, write=True, flush=1)


def eight_clients(bench, _):
    """Eight that write and flush, each for itself."""
    count = bench.count(40000)
    return bench.requests("cow", bench.fresh("cow"), count, 8, write=True, flush=1, more=["--no-drain"])[0]


def eight_clients_of_fio(bench, _):
    """The same on the raw file."""
    return bench.fio(
        "--ioengine=io_uring", "--direct=1", f"--filename={bench.fresh('raw')}", "--rw=randwrite", "--bs=4k",
        "--iodepth=1", "--numjobs=8", "--fdatasync=1", f"--number_ios={bench.count(40000) // 8}",
    )[0]  # fmt: skip


# --- Depth ----------------------------------------------------------------------------------------------------------


def chain(depth, kind="cow"):
    """A disk of 256 MiB whose content lies in `depth` layers, evenly."""

    def make_cow(bench, path):
        size = 256 * MIB
        bench.cow("create", path, "--size", size)
        blocks = size // BLOCK
        for layer in range(depth):
            if layer > 0:
                bench.cow("snapshot", f"{path}@s{layer}")
            first, last = blocks * layer // depth, blocks * (layer + 1) // depth
            offset = first * FILL % size
            bench.cow("bench", path, "-w", "-c", last - first, "-d", 32, "-S", FILL, "-o", offset)

    def make_qcow2(bench, path):
        size, below = 256 * MIB, None
        for layer in range(depth):
            top = path if layer == depth - 1 else path.with_suffix(f".{layer}")
            backing = ["-b", below, "-F", "qcow2"] if below else []
            bench.run("qemu-img", "create", "-q", "-f", "qcow2", *backing, top, size)
            blocks = size // BLOCK
            first, last = blocks * layer // depth, blocks * (layer + 1) // depth
            bench.requests("qcow2", top, last - first, 32, write=True, step=FILL, more=["-o", first * FILL % size])
            below = top

    def make(bench):
        work = make_cow if kind == "cow" else make_qcow2
        return kept(bench, f"chain{depth}.{kind}", lambda path: work(bench, path))

    return make


def warm_chain(depth, kind="cow"):
    """Random reads through a chain, everything in the page cache and ours."""

    def sample(bench, _):
        return requests(kind, bench, chain(depth, kind)(bench), 200_000, depth=32)

    return sample


def cold_chain(depth):
    """Seconds of the first 5,000 reads, with an empty page cache."""

    def sample(bench, _):
        path = chain(depth)(bench)
        bench.drop_caches()
        return 5000 / requests("cow", bench, path, 5000 * (5 if bench.quick else 1), depth=1)

    return sample


def depth_row(depth):
    """Reads through `depth` layers, beside one."""
    return Row(
        f"chain-{depth}",
        f"4 KiB random read, depth 32, {depth:,} layers, beside the same in one layer",
        "/s",
        {"cow": warm_chain(depth), "one layer": warm_chain(1)}
        | ({"qcow2": warm_chain(depth, "qcow2")} if depth <= 100 else {}),
        [(">=", 0.95, "one layer")],
    )


# --- What a write costs ---------------------------------------------------------------------------------------------


def cost(kind, depth, what):
    """`what` of a run of fresh random writes, for each of them."""

    def sample(bench, _):
        count = bench.count(200_000 if depth > 1 else 40_000)
        _, spent = bench.requests(kind, bench.fresh(kind), count, depth, write=True)
        return what(spent) / count

    return sample


def bytes_written(depth, most):
    """Bytes that reach the host for a byte of the guest, checkpoints and close included."""
    return Row(
        f"amplification-{depth}",
        f"bytes written to the host for a byte written, 4 KiB random, depth {depth}",
        "",
        each(["cow", "raw"], lambda kind: cost(kind, depth, lambda spent: spent.written / BLOCK)),
        [("<=", most, None)],
    )


def two_queues(queues):
    """Random writes through so many queues."""

    def sample(bench, _):
        more = ["--queues", queues]
        return bench.requests("cow", bench.fresh("cow"), bench.count(400_000), 32, write=True, more=more)[0]

    return sample


ALL = ["cow", "raw", "rawfio", "qcow2", "qcow2x"]

ROWS = [
    Row(
        "write-32",
        "4 KiB random write, depth 32, fresh overlay on a raw base",
        "/s",
        each(ALL, lambda kind: fresh_writes(kind, 200_000, depth=32)),
        [(">=", 1.5, "raw"), (">=", 20, "qcow2"), (">=", 8, "qcow2x")],
    ),
    Row(
        "rewrite-32",
        "the same, second pass",
        "/s",
        each(ALL, lambda kind: fresh_writes(kind, 200_000, again=True, depth=32)),
        [(">=", 1.5, "raw"), (">=", 1.5, "qcow2")],
    ),
    writes_at(1, 40_000, 0.8),
    writes_at(4, 100_000, 0.95),
    writes_at(8, 100_000, 1.0),
    Row(
        "aged-32",
        "4 KiB random write, depth 32, after three times the disk in random overwrites",
        "/s",
        {"cow": on_image("cow", aged, 200_000, depth=32, write=True)}
        | each(["raw", "rawfio"], lambda kind: on_image(kind, full_image("raw"), 200_000, depth=32, write=True)),
        [(">=", 1.0, "raw")],
    ),
    Row(
        "flush-1",
        "4 KiB write + flush each, depth 1, fresh overlay",
        "/s",
        each(["cow", "raw", "sparse", "qcow2"], lambda kind: fresh_writes(kind, 5000, depth=1, flush=1)),
        [(">=", 0.85, "sparse"), (">=", 2.5, "qcow2")],
    ),
    Row(
        "flush-1-warm",
        "the same, once space is warm",
        "/s",
        {"cow": warm_flushes}
        | each(["raw", "rawfio"], lambda kind: fresh_writes(kind, 5000, depth=1, flush=1)),
        [(">=", 0.75, "raw")],
    ),
    Row(
        "flush-8",
        "8 clients, each with 4 KiB write + flush",
        "/s",
        {"cow": eight_clients, "rawfio": eight_clients_of_fio},
        [(">=", 1.0, "raw")],
    ),
    Row(
        "read-32",
        "4 KiB random read, depth 32, image written at random",
        "/s",
        each(["cow", "raw", "rawfio", "qcow2"], lambda kind: on_image(kind, full_image(kind), 200_000, depth=32)),
        [(">=", 0.95, "raw")],
    ),
    Row(
        "write-seq",
        "128 KiB sequential write, depth 8, fresh overlay",
        "/s",
        each(
            ["cow", "raw", "qcow2"],
            lambda kind: fresh_writes(kind, 15_000, depth=8, size=128 * KIB, step=128 * KIB),
        ),
        [(">=", 0.95, "raw")],
    ),
    Row(
        "read-seq",
        "128 KiB sequential read, depth 8, image written at random",
        "/s",
        each(
            ["cow", "raw", "qcow2"],
            lambda kind: on_image(kind, full_image(kind), 15_000, depth=8, size=128 * KIB, step=128 * KIB),
        ),
    ),
    depth_row(10),
    depth_row(100),
    depth_row(1000),
    Row(
        "chain-cold-1000",
        "first 5,000 random reads, cold, 1,000 layers, beside one",
        "s",
        {"cow": cold_chain(1000), "one layer": cold_chain(1)},
        [("<=", 3.0, "one layer")],
    ),
    bytes_written(32, 1.1),
    bytes_written(1, 2.1),
    Row(
        "cpu-32",
        "processor time per 4 KiB write, depth 32",
        "us",
        each(["cow", "raw"], lambda kind: cost(kind, 32, lambda spent: spent.cpu * 1e6)),
        [("<=", 0.6, "raw")],
    ),
    Row(
        "queues-2",
        "4 KiB random write, 2 queues of depth 32, beside one queue",
        "/s",
        {"cow": two_queues(2), "one queue": two_queues(1)},
        [(">=", 1.6, "one queue")],
    ),
]
