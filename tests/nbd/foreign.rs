//! The clients that people use: libnbd, qemu, fio.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use cowdisk::device::Geometry;
use cowdisk::nbd::Export;

use crate::ram::RamDisk;
use crate::{PATIENCE, Served, wait_until};

/// Runs a client to its end and gives its output; fails with what is to be installed if it is missing.
fn run(program: &str, package: &str, args: &[&str], dir: &Path) -> String {
    let output = match Command::new(program).args(args).current_dir(dir).output() {
        Ok(output) => output,
        Err(e) => panic!("this test needs `{program}` ({e}); try: apt-get install {package}"),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{text}{errors}", output.status);
    text
}

fn libnbd(program: &str, args: &[&str], served: &Served) -> String {
    run(program, "libnbd-bin", args, served._dir.path())
}

fn qemu(program: &str, args: &[&str], served: &Served) -> String {
    run(program, "qemu-utils", args, served._dir.path())
}

/// A file with data, zeros and data, next to the socket; its bytes.
fn source(served: &Served, name: &str, size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..size).map(|at| (at / 3 + at / 4096) as u8).collect();
    bytes[size / 4..size / 2].fill(0);
    std::fs::write(served._dir.path().join(name), &bytes).unwrap();
    bytes
}

#[test]
fn nbdinfo_shows_the_export() {
    let read_only = Geometry { size: 8 << 20, sector_size: 4096, read_only: true, block_size: 65536 };
    let exports = vec![
        Export { name: String::new(), description: "the head".into(), disk: RamDisk::new(16 << 20) },
        Export { name: "@s1".into(), description: String::new(), disk: RamDisk::of(read_only) },
    ];
    let served = Served::exports(exports, |_| {});
    let text = libnbd("nbdinfo", &["--list", &served.server.uri()], &served);
    for fact in ["export=\"\"", "export=\"@s1\"", "the head", "newstyle-fixed", "can_fua: true"] {
        assert!(text.contains(fact), "{fact} is not in:\n{text}");
    }
    for fact in ["block_size_minimum: 4096", "block_size_preferred: 65536", "block_size_maximum: 33554432"] {
        assert!(text.contains(fact), "{fact} is not in:\n{text}");
    }
    assert_eq!(libnbd("nbdinfo", &["--size", &served.server.uri()], &served).trim(), "16777216");
    served.wait_idle();
    assert_eq!(served.server.stats().violations, 0);
}

#[test]
fn nbdcopy_brings_the_same_bytes_in_and_out() {
    let disk = RamDisk::new(64 << 20);
    let served = Served::with(&disk, |options| options.queues = 2);
    let bytes = source(&served, "in", 64 << 20);
    let uri = served.server.uri();
    libnbd("nbdcopy", &["--flush", "in", &uri], &served);
    assert!(disk.bytes(0..64 << 20) == bytes);
    libnbd("nbdcopy", &["--request-size=2097152", &uri, "out"], &served);
    assert!(std::fs::read(served._dir.path().join("out")).unwrap() == bytes);
    let stats = served.server.stats();
    assert!(stats.connections > 2, "nbdcopy used one connection only: CAN_MULTI_CONN is not seen");
    assert!(stats.flush.requests > 0);
}

#[test]
fn qemu_img_converts_compares_and_measures() {
    let disk = RamDisk::new(32 << 20);
    let served = Served::new(&disk);
    let bytes = source(&served, "in", 32 << 20);
    let uri = served.server.uri();
    let text = qemu("qemu-img", &["info", &uri], &served);
    assert!(text.contains("virtual size: 32 MiB"), "{text}");
    qemu("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", "in", &uri], &served);
    assert!(disk.bytes(0..32 << 20) == bytes);
    qemu("qemu-img", &["compare", "-f", "raw", "-F", "raw", "in", &uri], &served);
    qemu("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, "out.qcow2"], &served);
    qemu("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", "in", "out.qcow2"], &served);
    let bench = ["bench", "-f", "raw", "-w", "-c", "5000", "-d", "32", "-s", "4096", "--flush-interval=512"];
    qemu("qemu-img", &[&bench[..], &[uri.as_str()]].concat(), &served);
    assert!(served.server.stats().write.requests >= 5000);
}

#[test]
fn qemu_io_writes_discards_and_verifies() {
    let disk = RamDisk::new(16 << 20);
    let served = Served::new(&disk);
    let commands = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 512 512",
        "write -P 0x33 1M 5M",
        "flush",
        "read -P 0x22 512 512",
        "read -P 0x33 1M 5M",
        "discard 2M 1M",
        "write -z 3M 64k",
        "write -z -u 4M 64k",
        "read -P 0 2M 1M",
        "read -P 0 3M 64k",
        "aio_write -P 0x44 0 64k",
        "aio_write -P 0x55 64k 64k",
        "aio_flush",
        "read -P 0x44 0 64k",
    ];
    let mut args = vec!["-f", "raw"];
    args.extend(commands.iter().flat_map(|command| ["-c", command]));
    let uri = served.server.uri();
    args.push(&uri);
    let text = qemu("qemu-io", &args, &served);
    assert!(!text.contains("failed") && !text.contains("error"), "{text}");
    let stats = served.server.stats();
    assert!(stats.trim.requests > 0 && stats.write_zeroes.requests >= 2 && stats.flush.requests > 0);
    assert_eq!(disk.bytes(512..514), [0x44; 2]);
}

#[test]
fn fio_verifies_what_it_wrote() {
    let disk = RamDisk::new(32 << 20);
    let served = Served::with(&disk, |options| options.queues = 2);
    let uri = format!("--uri={}", served.server.uri());
    let common =
        ["--name=t", "--ioengine=nbd", &uri, "--rw=randwrite", "--iodepth=32", "--size=32m", "--fsync=64"];
    // Without serialize_overlap fio itself gives up the order of writes to one place.
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--serialize_overlap=1"];
    for sizes in [&["--bs=4k"][..], &["--bssplit=512/10:4k/40:64k/30:300k/20", "--blockalign=512"]] {
        run("fio", "fio", &[&common[..], &verify, sizes].concat(), served._dir.path());
    }
    let stats = served.server.stats();
    assert!(stats.write.requests > 0 && stats.read.requests > 0 && stats.flush.requests > 0);
    assert_eq!((stats.write.errors, stats.read.errors), (0, 0));
}

/// A running nbdfuse; it ends with the test.
struct Mounted(Child);

impl Drop for Mounted {
    fn drop(&mut self) {
        // On SIGTERM it unmounts by itself.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let start = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) {
            if start.elapsed() > PATIENCE {
                let _ = self.0.kill();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn nbdfuse_shows_the_disk_as_a_file() {
    let disk = RamDisk::new(8 << 20);
    let served = Served::new(&disk);
    let dir = served._dir.path().join("mnt");
    let file = dir.join("disk");
    std::fs::create_dir(&dir).unwrap();
    let child = match Command::new("nbdfuse").arg(&file).arg(served.server.uri()).spawn() {
        Ok(child) => child,
        Err(e) => panic!("this test needs `nbdfuse` ({e}); try: apt-get install libnbd-bin fuse3"),
    };
    let mounted = Mounted(child);
    wait_until("nbdfuse has mounted (it needs /dev/fuse and fuse3)", || file.exists());
    let bytes: Vec<u8> = (0..3 << 20).map(|at: usize| (at / 5) as u8).collect();
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(&file).unwrap();
    opened.write_all_at(&bytes, 1 << 20).unwrap();
    opened.sync_all().unwrap();
    assert!(served.server.stats().flush.requests > 0);
    assert!(disk.bytes(1 << 20..4 << 20) == bytes);
    assert!(std::fs::read(&file).unwrap() == disk.bytes(0..8 << 20));
    drop(opened);
    drop(mounted);
    served.wait_idle();
}
