//! `cowdisk doctor`: what it says of machines and directories differs, so what is tested is how it says it.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::run::{Ran, cowdisk, finish, keys, run};

/// The level of one check.
fn level(report: &Value, check: &str) -> Option<String> {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|f| f["check"] == check)?;
    Some(found["level"].as_str().unwrap().to_owned())
}

/// The exit status belongs to the verdict, and the verdict to the findings.
fn check_verdict(ran: &Ran) -> Value {
    let report = ran.json();
    let order = ["ok", "note", "limited", "failed"];
    let rank = |level: &Value| order.iter().position(|name| level == name).unwrap();
    let worst = report["findings"].as_array().unwrap().iter().map(|f| rank(&f["level"])).max().unwrap();
    assert_eq!(rank(&report["verdict"]), worst);
    assert_eq!(ran.code, Some([0, 0, 2, 1][worst]));
    report
}

#[test]
fn every_finding_says_what_why_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let report = check_verdict(&run(dir.path(), ["doctor", ".", "--json"]));
    assert_eq!(keys(&report), ["findings", "kernel", "ublk_features", "verdict"]);
    for finding in report["findings"].as_array().unwrap() {
        assert_eq!(keys(finding), ["check", "hint", "level", "message", "why"]);
        assert!(finding["level"] == "ok" || finding["why"].is_string() && finding["hint"].is_string());
    }
    // These tests could not run on a machine where it is otherwise.
    for check in ["io_uring", "io_uring_operations", "locks", "directory", "hard_links"] {
        assert_eq!(level(&report, check).as_deref(), Some("ok"), "{report}");
    }
    for check in ["ublk", "kernel", "filesystem", "free_space", "direct_io", "hole_punching", "reflink"] {
        assert!(level(&report, check).is_some(), "{check} in {report}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
    let people = run(dir.path(), ["doctor"]);
    assert!(people.stdout.starts_with("ok ") && people.stdout.contains("io_uring can be used"), "{people:?}");
}

#[test]
fn an_image_stands_for_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("images")).unwrap();
    fs::write(dir.path().join("images/vm.cow"), "not even an image").unwrap();
    std::os::unix::fs::symlink("images/vm.cow", dir.path().join("link")).unwrap();
    let report = check_verdict(&run(dir.path(), ["doctor", "link", "--json"]));
    let real = fs::canonicalize(dir.path().join("images")).unwrap();
    assert!(report.to_string().contains(real.to_str().unwrap()), "{report}");
    run(dir.path(), ["doctor", "missing"]).fails(1, "missing: look for it");
    assert_eq!(run(dir.path(), ["doctor", "missing", "--json"]).error_code(), "not_found");
}

#[test]
fn a_place_for_no_files_and_one_in_memory_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let refused = run(dir.path(), ["doctor", "/proc", "--json"]);
    assert_eq!(level(&check_verdict(&refused), "directory").as_deref(), Some("failed"));
    assert_eq!(refused.code, Some(1));
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        let report = check_verdict(&run(memory, ["doctor", ".", "--json"]));
        assert_eq!(level(&report, "filesystem").as_deref(), Some("limited"));
    }
}

#[test]
fn limits_of_this_process_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("sh");
    let program = cowdisk(dir.path(), [""; 0]).get_program().to_owned();
    command.args(["-c", "ulimit -n 64 && exec \"$0\" doctor --json"]).arg(program).current_dir(dir.path());
    let report = check_verdict(&finish(command));
    assert_eq!(level(&report, "open_files").as_deref(), Some("limited"));
}
