//! `cp`, `tar`, `rsync`: of images that are closed, and of sealed layers while the disk runs.

use std::collections::BTreeMap;
use std::fs;

use crate::bench::Bench;
use crate::{assert_disk, assert_goes_on, disk, fill, sh, shown};

/// Each way to copy a disk with all its files, as a script with the files of `info --files` on its input.
const WAYS: [(&str, &str); 6] = [
    ("cp", "mkdir copy && cp vm.cow vm@*.cow copy/"),
    ("cp --sparse", "mkdir copy && cp --sparse=always vm.cow vm@*.cow copy/"),
    ("cp -a", "mkdir copy && cp -a vm.cow vm@*.cow copy/"),
    ("tar", "mkdir copy && tar -cf - vm.cow vm@*.cow | tar -xf - -C copy"),
    ("tar -S", "mkdir copy && tar -cSf - vm.cow vm@*.cow | tar -xSf - -C copy"),
    ("rsync", "mkdir copy && rsync -aS vm.cow vm@*.cow copy/"),
];

#[test]
fn a_copy_of_all_files_is_the_disk_and_both_go_their_own_ways() {
    for (way, script) in WAYS {
        let bench = Bench::new();
        disk(&bench, "vm.cow");
        sh(&bench.path(""), script);
        // The original is not what is found: it is gone for a while.
        sh(&bench.path(""), "mkdir away && mv vm.cow vm@*.cow away/");
        assert_disk(&bench, "copy/vm.cow");
        assert_goes_on(&bench, "copy/vm.cow");
        sh(&bench.path(""), "mv away/* .");
        assert_disk(&bench, "vm.cow");
        assert_goes_on(&bench, "vm.cow");
        println!("copied by {way}");
    }
}

/// A copy of the head alone stands on the same snapshots, and is a disk of its own.
#[test]
fn a_copy_of_the_head_alone() {
    let bench = Bench::new();
    disk(&bench, "vm.cow");
    sh(&bench.path(""), "cp vm.cow twin.cow");
    let daemons = [bench.serve(["vm.cow"]), bench.serve(["twin.cow"])];
    fill(&daemons[0], 4);
    fill(&daemons[1], 5);
    daemons.into_iter().for_each(|daemon| drop(daemon.terminate()));
    assert_eq!((shown(&bench, "vm.cow"), shown(&bench, "twin.cow")), (4, 5));
    let id = |image: &str| bench.run(["info", "--json", image]).expect(0).json()["layer_id"].clone();
    assert_ne!(id("vm.cow"), id("twin.cow"));
    for image in ["vm.cow", "twin.cow"] {
        bench.run(["check", image, "--data", "--chain"]).expect(0);
    }
}

/// What `info --files` names is what a disk needs, also for a list that ends in zeros and names with blanks.
#[test]
fn the_files_that_a_disk_needs() {
    let bench = Bench::new();
    disk(&bench, "with blanks/vm.cow");
    let script = "\"$COWDISK\" info --files -0 'with blanks/vm.cow' | tar -cf - --null -T - -P --transform 's,.*/,,' \
                  | { mkdir copy; tar -xf - -C copy; }";
    let script = script.replace("$COWDISK", env!("CARGO_BIN_EXE_cowdisk"));
    sh(&bench.path(""), &script);
    sh(&bench.path(""), "mv 'with blanks' away");
    assert_disk(&bench, "copy/vm.cow");
}

/// Sealed layers never change, so they are backed up while the disk runs: by copy, and again and again by rsync.
#[test]
fn sealed_layers_are_backed_up_while_the_disk_runs() {
    let bench = Bench::new();
    disk(&bench, "vm.cow");
    let daemon = bench.serve(["vm.cow"]);
    sh(&bench.path(""), "mkdir backup");
    let mut seen: BTreeMap<String, (u32, std::time::SystemTime)> = BTreeMap::new();
    for round in 3..8u8 {
        fill(&daemon, round);
        bench.run(["snapshot", &format!("vm.cow@s{round}")]).expect(0);
        // The snapshot is sealed behind the answer: who copies it waits for that, which its mode tells.
        let name = format!("vm@s{round}.cow");
        crate::wait_until("the snapshot is sealed", || {
            fs::metadata(bench.path(&name)).unwrap().permissions().readonly()
        });
        sh(&bench.path(""), "rsync -aS vm@*.cow backup/");
        for name in bench.names("backup") {
            let path = bench.path(&name);
            let facts = (
                crc32fast::hash(&fs::read(&path).unwrap()),
                fs::metadata(&path).unwrap().modified().unwrap(),
            );
            assert_eq!(*seen.entry(name.clone()).or_insert(facts), facts, "{name} has changed");
        }
    }
    daemon.kill();
    // The machine is lost; the last snapshot is not.
    sh(&bench.path(""), "mkdir lost && mv vm.cow vm@*.cow lost/");
    bench.run(["check", "backup/vm@s7.cow", "--data", "--chain"]).expect(0);
    bench.run(["fork", "backup/vm@s7.cow", "restored.cow"]).expect(0);
    assert_eq!(shown(&bench, "restored.cow"), 7);
    assert_goes_on(&bench, "restored.cow");
}
