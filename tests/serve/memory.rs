//! What the kernel knows of the daemon under memory pressure.

use std::fs;

use cowdisk::runtime::thread;

use crate::bench::Bench;

const MIB: u64 = 1 << 20;
/// `PF_MEMALLOC_NOIO` of the kernel's `linux/sched.h`: what PR_SET_IO_FLUSHER sets, in field 9 of `/proc/PID/stat`.
const FLUSHER: u64 = 0x0008_0000;

/// True if the text of a `stat` file is that of a thread that reclaim does not wait in.
fn is_flusher(stat: &str) -> bool {
    let flags = stat.rsplit_once(") ").unwrap().1.split(' ').nth(6).unwrap();
    flags.parse::<u64>().unwrap() & FLUSHER != 0
}

#[test]
fn every_thread_of_a_daemon_is_known_to_reclaim_and_its_command_is_not() {
    let bench = Bench::new();
    bench.image("vm.cow", 64 * MIB);
    // Without CAP_SYS_RESOURCE nobody is.
    let allowed = std::thread::spawn(|| thread::set_io_flusher().is_ok()).join().unwrap();
    let daemon = bench.serve(["vm.cow", "--queues", "3"]);
    drop(daemon.connect());
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let stats: Vec<String> =
        threads.filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")).ok()).collect();
    assert!(stats.len() >= 6, "{stats:?}");
    for stat in &stats {
        assert_eq!(is_flusher(stat), allowed, "{stat}");
    }
    daemon.terminate();
    let command = ["serve", "vm.cow", "--frontend", "nbd", "--", "sh", "-c", "cat /proc/$$/stat"];
    let stat = bench.run(command).expect(0).stdout;
    assert!(!is_flusher(&stat), "{stat}");
}
