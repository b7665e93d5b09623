//! What people do with disks over a year: scripts of a page each, which the README shows.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Runs `script` in a directory of its own, with the program on its path, and `settings` in its environment.
fn run(script: &str, settings: &[(&str, &str)]) -> Output {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journeys").join(script);
    let dir = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_cowdisk"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(place);
    command.current_dir(dir.path()).env("PATH", path).env_remove("COWDISK_PATH");
    command.env("COWDISK_RUNTIME_DIR", dir.path().join("run"));
    // Settings of the caller count, for longer runs.
    let set = settings.iter().filter(|(name, _)| std::env::var_os(name).is_none());
    let output = command.envs(set.copied()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{script}: {}\n{out}{err}", output.status);
    output
}

fn last_line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned()
}

#[test]
fn three_machines_over_a_year() {
    let output = run("year.sh", &[("WEEKS", "12")]);
    println!("journey: {}", last_line(&output));
    assert!(last_line(&output).ends_with("snapshots, all whole"), "{output:?}");
}

#[test]
fn a_golden_image_and_its_forks() {
    let output = run("golden.sh", &[]);
    println!("journey: {}", last_line(&output));
    assert!(last_line(&output).contains("; 3 are kept, "), "{output:?}");
}

/// The README shows what is run here, and nothing else.
#[test]
fn the_readme_shows_the_golden_image_as_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let script = fs::read_to_string(root.join("tests/journeys/golden.sh")).unwrap();
    let (_, body) = script.split_once("set -eu\n").unwrap();
    assert!(readme.contains(body.trim()), "README.md does not have the body of golden.sh");
}
