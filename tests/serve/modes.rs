//! Read-only and temporary serving.

use std::os::unix::fs::PermissionsExt;

use cowdisk::nbd::protocol::{Command, error, flags};

use crate::bench::{Bench, is_clean, wait_unlocked};
use crate::client::{Client, request, write};

const MIB: u64 = 1 << 20;

#[test]
fn read_only_leaves_every_byte_as_it_is() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let daemon = bench.serve([&image]);
    assert_eq!(daemon.connect().call(&write(0, 8192, &[5; 4096], 1)), 0);
    // Not closed: it has a journal to replay, which must not be replayed into the file.
    daemon.kill();
    wait_unlocked(&image);
    let before = std::fs::read(&image).unwrap();
    let first = bench.serve(["vm.cow", "--read-only"]);
    let second = bench.serve(["vm.cow", "--read-only"]);
    for daemon in [&first, &second] {
        let mut client = Client::connect(&daemon.socket());
        let (size, announced) = client.begin(false, "");
        assert_eq!((size, announced & flags::READ_ONLY), (64 * MIB, flags::READ_ONLY));
        assert_eq!(client.read(8192, 4096), [5; 4096]);
        assert_eq!(client.call(&write(0, 0, &[1; 4096], 1)), error::EPERM);
        assert_eq!(client.call(&request(Command::Trim, 0, 0, 4096, 2)), error::EPERM);
    }
    assert_eq!(bench.status(&first.uri)["mode"], "read_only");
    // Two of them: a client must say which.
    let several = bench.stop(["vm.cow"]).expect(64);
    assert!(several.stderr.contains("2 times"), "{several:?}");
    // A writer has to wait for readers.
    bench.run(["serve", "vm.cow", "--frontend", "nbd", "--", "true"]).expect(75);
    let told = first.terminate().stderr;
    assert!(told.contains("1 records read from its journal, nothing written"), "{told}");
    second.terminate();
    assert!(std::fs::read(&image).unwrap() == before, "the file was written to");
    assert!(!is_clean(&image));
}

#[test]
fn a_file_without_write_bits_is_served_read_only() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    std::fs::set_permissions(&image, PermissionsExt::from_mode(0o444)).unwrap();
    let daemon = bench.serve(["vm.cow", "--read-only"]);
    let mode = std::fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    bench.stop(["vm.cow"]).expect(0);
}

#[test]
fn what_is_written_to_a_temporary_disk_vanishes() {
    let bench = Bench::new();
    let image = bench.image("dir/vm.cow", 64 * MIB);
    let daemon = bench.serve([&image]);
    assert_eq!(daemon.connect().call(&write(0, 0, &[3; 8192], 1)), 0);
    daemon.terminate();
    let before = std::fs::read(&image).unwrap();

    let first = bench.serve(["dir/vm.cow", "--temporary"]);
    let second = bench.serve(["dir/vm.cow", "--temporary"]);
    for (daemon, value) in [(&first, 1), (&second, 2)] {
        let mut client = daemon.connect();
        assert_eq!(client.read(0, 8192), [3; 8192]);
        assert_eq!(client.call(&write(0, 512, &[value; 512], 1)), 0);
        assert_eq!(client.call(&request(Command::Trim, 0, 4096, 4096, 2)), 0);
    }
    for (daemon, value) in [(&first, 1), (&second, 2)] {
        let mut client = daemon.connect();
        assert_eq!(client.read(0, 512), [3; 512]);
        assert_eq!(client.read(512, 512), [value; 512]);
        assert_eq!(client.read(4096, 4096), [0; 4096]);
    }
    assert_eq!(bench.names("dir"), ["vm.cow"], "the overlay has no name");
    let status = bench.status(&first.uri);
    assert_eq!((status["mode"].as_str(), status["layers"].as_u64()), (Some("temporary"), Some(2)));
    assert_eq!(status["path"].as_str(), image.to_str());
    first.terminate();
    second.kill();
    assert_eq!(bench.names("dir"), ["vm.cow"]);
    assert!(std::fs::read(&image).unwrap() == before, "the image was written to");
    let again = bench.serve([&image]);
    assert_eq!(again.connect().read(0, 8192), [3; 8192]);
    again.terminate();
}

#[test]
fn a_temporary_disk_needs_no_write_access_to_the_images_directory() {
    if std::process::Command::new("id").arg("-u").output().unwrap().stdout == b"0\n" {
        // Root may write anywhere; a directory that cannot be written to has to be a file system's doing.
        return read_only_mount();
    }
    let bench = Bench::new();
    bench.image("dir/vm.cow", 64 * MIB);
    std::fs::set_permissions(bench.path("dir"), PermissionsExt::from_mode(0o555)).unwrap();
    serve_temporarily(&bench);
    std::fs::set_permissions(bench.path("dir"), PermissionsExt::from_mode(0o755)).unwrap();
}

fn serve_temporarily(bench: &Bench) {
    let daemon = bench.serve(["dir/vm.cow", "--temporary"]);
    assert_eq!(daemon.connect().call(&write(0, 0, &[3; 8192], 1)), 0);
    daemon.terminate();
}

/// As root, in a mount namespace of its own.
fn read_only_mount() {
    let bench = Bench::new();
    bench.image("dir/vm.cow", 64 * MIB);
    let program = env!("CARGO_BIN_EXE_cowdisk");
    let script = format!(
        "mount --bind dir dir && mount -o remount,ro,bind dir && ! touch dir/x 2>/dev/null && \
         '{program}' serve dir/vm.cow --temporary --frontend nbd -- sh -c '[ -n \"$COWDISK_URI\" ]'"
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).current_dir(bench.path(""));
    let output = command.env("COWDISK_RUNTIME_DIR", bench.path("run")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(bench.names("dir"), ["vm.cow"]);
}

#[test]
fn wrong_wishes_for_a_device_are_bad_usage() {
    let bench = Bench::new();
    for [option, value] in [
        ["--ublk-features", "+NO_SUCH_FEATURE"],
        ["--ublk-features", "QUIESCE"],
        ["--ublk-features", "+DEL_DEV_ASYNC"],
        ["--on-death", "never"],
    ] {
        let refused = bench.run(["serve", "vm.cow", option, value]).expect(64);
        assert!(refused.stderr.contains(value), "{refused:?}");
    }
    // It ends with its daemon, whatever is wished.
    bench.run(["serve", "vm.cow", "--temporary", "--on-death", "wait"]).expect(64);
}
