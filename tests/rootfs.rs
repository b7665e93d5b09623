//! A real root filesystem as base: see `tests/rootfs/run`.

use std::process::Command;

#[test]
fn thousands_of_files_on_a_real_root_filesystem() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rootfs/run");
    let output =
        Command::new(script).arg(env!("CARGO_BIN_EXE_cowdisk")).output().expect("the script can be run");
    let text = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    assert!(output.status.success(), "{text}");
    assert!(text.trim_end().ends_with("rootfs: ok") || text.contains("\nrootfs: ok\n"), "{text}");
    println!("{text}");
}
