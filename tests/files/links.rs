//! Hard links, symbolic links and bind mounts.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::bench::Bench;
use crate::{assert_disk, assert_goes_on, disk, fill, need_root, sh, shown};

/// Backup programs that keep many generations link what has not changed.
#[test]
fn hard_linked_backups_stay_what_they_were() {
    let bench = Bench::new();
    disk(&bench, "vm.cow");
    sh(&bench.path(""), "mkdir monday && cp -al vm@s1.cow vm@s2.cow monday/");
    let sum = || {
        let bytes = ["vm@s1.cow", "vm@s2.cow"].map(|name| fs::read(bench.path("monday").join(name)).unwrap());
        bytes.map(|bytes| crc32fast::hash(&bytes))
    };
    let before = sum();
    assert_goes_on(&bench, "vm.cow");
    bench.run(["rollback", "vm.cow@s1"]).expect(0);
    bench.run(["rollback", "vm.cow@s2", "--discard"]).expect(0);
    assert_eq!(sum(), before);
    assert_eq!(fs::metadata(bench.path("vm@s1.cow")).unwrap().nlink(), 2);
    assert_eq!(shown(&bench, "monday/vm@s2.cow"), 2);
    assert_eq!(shown(&bench, "vm.cow"), 2);
}

/// A second name of the head goes on being that file: after a snapshot it is the sealed layer, which nobody writes to.
#[test]
fn a_hard_link_of_a_head_becomes_the_snapshot() {
    let bench = Bench::new();
    disk(&bench, "vm.cow");
    sh(&bench.path(""), "mkdir backup && ln vm.cow backup/vm.cow");
    let daemon = bench.serve(["vm.cow"]);
    // Two names are one file, and it is in use.
    bench.run(["serve", "backup/vm.cow", "--frontend", "nbd"]).expect(75);
    bench.run(["snapshot", "vm.cow@s3"]).expect(0);
    fill(&daemon, 4);
    daemon.terminate();
    assert_eq!(shown(&bench, "backup/vm.cow"), 3);
    bench.run(["bench", "-w", "backup/vm.cow", "-c", "1"]).expect(1);
    assert_eq!((shown(&bench, "vm.cow"), shown(&bench, "vm.cow@s3")), (4, 3));
    bench.run(["check", "vm.cow", "--data", "--chain"]).expect(0);
}

#[test]
fn symbolic_links_to_files_and_directories() {
    let bench = Bench::new();
    disk(&bench, "real/vm.cow");
    sh(&bench.path(""), "ln -s real dir && mkdir links && ln -s ../real/vm.cow links/disk.cow");
    for image in ["dir/vm.cow", "links/disk.cow"] {
        assert_disk(&bench, image);
    }
    let daemon = bench.serve(["links/disk.cow"]);
    fill(&daemon, 4);
    // Named in another way, it is the same image, and its daemon is found.
    bench.run(["snapshot", "dir/vm.cow@s3"]).expect(0);
    fill(&daemon, 5);
    bench.run(["rollback", "links/disk.cow@s3"]).expect(0);
    assert_eq!(
        bench.status("real/vm.cow")["path"],
        bench.path("real/vm.cow").canonicalize().unwrap().to_str().unwrap()
    );
    daemon.terminate();
    assert_eq!(bench.names("links"), ["disk.cow"]);
    assert!(bench.path("links/disk.cow").symlink_metadata().unwrap().is_symlink());
    assert_eq!((shown(&bench, "dir/vm.cow"), shown(&bench, "dir/vm.cow@rollback-1")), (4, 5));
}

#[test]
fn bind_mounts_of_directories() {
    need_root();
    let bench = Bench::new();
    disk(&bench, "real/vm.cow");
    sh(&bench.path(""), "mkdir bound && mount --bind real bound");
    let _mounted = Mounted(&bench);
    assert_disk(&bench, "bound/vm.cow");
    let daemon = bench.serve(["bound/vm.cow"]);
    bench.run(["serve", "real/vm.cow", "--frontend", "nbd"]).expect(75);
    fill(&daemon, 4);
    bench.run(["snapshot", "bound/vm.cow@s3"]).expect(0);
    daemon.terminate();
    assert_eq!((shown(&bench, "real/vm.cow"), shown(&bench, "real/vm.cow@s3")), (4, 4));
    assert_goes_on(&bench, "real/vm.cow");
}

/// Unmounts also if the test fails.
struct Mounted<'a>(&'a Bench);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path("bound")).status();
    }
}
