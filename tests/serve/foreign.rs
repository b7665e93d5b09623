//! The clients that people use, against a real image.

use crate::bench::{Bench, is_clean, tool};

const MIB: u64 = 1 << 20;

#[test]
fn bytes_go_in_and_out_by_every_client() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let dir = bench.path("");
    let mut bytes: Vec<u8> = (0..64 << 20).map(|at: usize| (at / 3 + at / 4096) as u8).collect();
    bytes[20 << 20..40 << 20].fill(0);
    std::fs::write(bench.path("in"), &bytes).unwrap();

    let daemon = bench.serve(["vm.cow", "--queues", "2"]);
    let uri = daemon.uri.as_str();
    let info = tool("nbdinfo", "libnbd-bin", &[uri], &dir);
    for fact in ["export-size: 67108864 ", "can_fua: true", "can_multi_conn: true", "is_read_only: false"] {
        assert!(info.contains(fact), "{fact} is not in {info}");
    }
    tool("nbdcopy", "libnbd-bin", &["--flush", "in", uri], &dir);
    tool("qemu-img", "qemu-utils", &["compare", "-f", "raw", "-F", "raw", "in", uri], &dir);
    let commands =
        ["write -P 0x11 0 1M", "write -f -P 0x22 512 512", "discard 2M 1M", "write -z -u 3M 64k", "flush"];
    let mut args = vec!["-f", "raw"];
    args.extend(commands.iter().flat_map(|command| ["-c", command]));
    args.push(uri);
    tool("qemu-io", "qemu-utils", &args, &dir);
    daemon.terminate();
    assert!(is_clean(&image));

    bytes[..1 << 20].fill(0x11);
    bytes[512..1024].fill(0x22);
    bytes[2 << 20..3 << 20].fill(0);
    bytes[3 << 20..(3 << 20) + 65536].fill(0);
    let daemon = bench.serve(["vm.cow", "--read-only"]);
    tool("nbdcopy", "libnbd-bin", &[&daemon.uri, "out"], &dir);
    assert!(std::fs::read(bench.path("out")).unwrap() == bytes, "other bytes came out");
    daemon.terminate();
}

#[test]
fn fio_verifies_what_it_wrote() {
    let bench = Bench::new();
    bench.image("vm.cow", 64 * MIB);
    let daemon = bench.serve(["vm.cow", "--queues", "2"]);
    let uri = format!("--uri={}", daemon.uri);
    let common =
        ["--name=t", "--ioengine=nbd", &uri, "--rw=randwrite", "--iodepth=32", "--size=64m", "--fsync=64"];
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--serialize_overlap=1"];
    for sizes in [&["--bs=4k"][..], &["--bssplit=512/10:4k/40:64k/30:300k/20", "--blockalign=512"]] {
        tool("fio", "fio", &[&common[..], &verify, sizes].concat(), &bench.path(""));
    }
    let status = bench.status("vm.cow");
    assert_eq!((&status["failed"]["write"], &status["failed"]["read"]), (&0.into(), &0.into()));
    daemon.terminate();
}
