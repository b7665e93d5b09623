//! `info`

use std::fs;

use tempfile::tempdir;

use crate::image::{Change, End, change, make};
use crate::run::{keys, run};

const KEYS: [&str; 15] = [
    "path",
    "disk_id",
    "layer_id",
    "name",
    "virtual_size",
    "block_size",
    "sector_size",
    "sealed",
    "clean",
    "in_use_by",
    "depth",
    "base",
    "file_bytes",
    "allocated_bytes",
    "generation",
];

#[test]
fn the_header_is_told_with_stable_keys() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "vm.cow");
    let info = run(dir.path(), ["info", "--json", "vm.cow"]).json();
    let found = keys(&info);
    for key in KEYS.iter().chain(&["features"]) {
        assert!(found.contains(key), "{key}");
    }
    assert_eq!(info["path"].as_str(), fs::canonicalize(&path).unwrap().to_str());
    assert_eq!((&info["virtual_size"], &info["block_size"]), (&(1 << 20).into(), &4096.into()));
    assert_eq!((&info["sealed"], &info["clean"]), (&false.into(), &true.into()));
    assert!(info["in_use_by"].is_null() && info["depth"].is_null() && info["base"].is_null());
    change(&path, &[Change::Write(0, 1, 1)], End::Killed);
    let info = run(dir.path(), ["info", "--json", "vm.cow"]).json();
    assert!(info["clean"] == false && info["in_use_by"].is_null(), "{info}");
    assert!(run(dir.path(), ["info", "vm.cow"]).ok().contains("the next open for writing recovers it"));
}

#[test]
fn a_chain_and_its_files_are_listed() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("base.raw"), vec![7; 8192]).unwrap();
    run(dir.path(), ["create", "vm.cow", "--base", "base.raw", "--base-format", "raw"]).ok();
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    run(dir.path(), ["snapshot", "vm.cow@s2"]).ok();
    let real = fs::canonicalize(dir.path()).unwrap();
    let chain = run(dir.path(), ["info", "--json", "--chain", "vm.cow"]).json();
    assert_eq!((&chain["depth"], chain["chain"].as_array().unwrap().len()), (&3.into(), 2));
    let names: Vec<_> =
        chain["chain"].as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["s2", "s1"]);
    let files = ["vm.cow", "vm@s2.cow", "vm@s1.cow", "base.raw"].map(|f| real.join(f).display().to_string());
    assert_eq!(run(dir.path(), ["info", "--files", "vm.cow"]).ok(), files.join("\n") + "\n");
    assert_eq!(run(dir.path(), ["info", "--files", "-0", "vm.cow"]).ok(), files.join("\0") + "\0");
    // Without --chain no other file is needed.
    fs::remove_file(dir.path().join("base.raw")).unwrap();
    fs::remove_file(dir.path().join("vm@s1.cow")).unwrap();
    assert!(run(dir.path(), ["info", "vm.cow"]).ok().contains("vm@s2.cow"));
    run(dir.path(), ["info", "--chain", "vm.cow"]).fails(1, "cannot be found");
    let lost = run(dir.path(), ["info", "--files", "--json", "vm.cow"]);
    assert_eq!(lost.error_code(), "parent_missing");
}

#[test]
fn a_snapshot_is_found_by_its_name_wherever_it_went() {
    let dir = tempdir().unwrap();
    make(dir.path(), "vm.cow");
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    run(dir.path(), ["snapshot", "vm.cow@s2"]).ok();
    let name = |image: &str| run(dir.path(), ["info", "--json", image]).json()["name"].clone();
    assert_eq!(name("vm.cow@s1"), "s1");
    assert_eq!(name("vm@s1.cow"), "s1");
    // Beside the image under another name; the chain does not find it any more.
    fs::rename(dir.path().join("vm@s1.cow"), dir.path().join("old@kept.cow")).unwrap();
    assert_eq!(name("vm.cow@s1"), "s1");
    run(dir.path(), ["info", "vm.cow@s3"]).fails(1, "no snapshot \"s3\"");
    run(dir.path(), ["info", "vm.cow@.."]).fails(1, "begins with");
    run(dir.path(), ["info", "none.cow@s1"]).fails(1, "none.cow");
    // In another directory, named by COWDISK_PATH.
    let other = tempdir().unwrap();
    fs::rename(dir.path().join("vm@s2.cow"), other.path().join("vm@s2.cow")).unwrap();
    run(dir.path(), ["info", "--chain", "vm.cow"]).fails(1, "cannot be found");
    let mut command = crate::run::cowdisk(dir.path(), ["info", "vm.cow@s2"]);
    command.env("COWDISK_PATH", other.path());
    assert!(crate::run::finish(command).ok().contains("s2"));
}

#[test]
fn help_has_examples_and_a_closed_pipe_is_success() {
    let dir = tempdir().unwrap();
    make(dir.path(), "vm.cow");
    for command in ["create", "info", "map", "check", "snapshot", "bench"] {
        assert!(run(dir.path(), [command, "--help"]).ok().contains("Examples:"), "{command}");
    }
    assert!(run(dir.path(), ["--version"]).ok().starts_with("cowdisk "));
    for args in ["info vm.cow", "map vm.cow", "check vm.cow", "--help", "info --json vm.cow"] {
        let mut command = std::process::Command::new("bash");
        let script = format!("'{}' {args} | true; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_cowdisk"));
        command.args(["-c", &script]).current_dir(dir.path());
        let ran = crate::run::finish(command);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{args}");
    }
    let mut command = std::process::Command::new("bash");
    let script = format!("'{}' info vm.cow > /dev/full", env!("CARGO_BIN_EXE_cowdisk"));
    command.args(["-c", &script]).current_dir(dir.path());
    crate::run::finish(command).fails(1, "write output");
}
