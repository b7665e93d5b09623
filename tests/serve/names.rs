//! Names and places that are easy to get wrong.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use crate::bench::Bench;
use crate::client::write;

const MIB: u64 = 1 << 20;

#[test]
fn odd_names_are_served_like_any_other() {
    let bench = Bench::new();
    let deep = "d".repeat(200);
    for name in ["a b/my disk.cow", "x@y/vm.cow", "100%/ü\"'.cow", &format!("{deep}/vm.cow"), "-x/vm"] {
        let image = bench.image(name, 16 * MIB);
        let daemon = bench.serve([&image]);
        assert_eq!(daemon.connect().call(&write(0, 0, &[1; 512], 1)), 0);
        let status = bench.status(&image);
        assert_eq!((status["path"].as_str(), status["state"].as_str()), (image.to_str(), Some("ok")));
        bench.stop([&image]).expect(0);
    }
}

#[test]
fn all_names_of_a_file_lead_to_its_daemon() {
    let bench = Bench::new();
    let image = bench.image("images/vm.cow", 16 * MIB);
    std::os::unix::fs::symlink("images/vm.cow", bench.path("link")).unwrap();
    std::os::unix::fs::symlink("images", bench.path("dir")).unwrap();
    std::fs::hard_link(&image, bench.path("hard.cow")).unwrap();
    let daemon = bench.serve(["link"]);
    for name in ["link", "dir/vm.cow", "images/vm.cow", "images/../link", "hard.cow"] {
        assert_eq!(bench.status(name)["pid"], daemon.pid(), "{name}");
    }
    bench.run(["serve", "hard.cow", "--frontend", "nbd"]).expect(75);
    bench.stop(["hard.cow"]).expect(0);
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let bench = Bench::new();
    std::fs::write(bench.path("text.cow"), "not an image").unwrap();
    std::fs::write(bench.path("zeros.cow"), vec![0; 1 << 20]).unwrap();
    std::fs::create_dir(bench.path("dir.cow")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(bench.path("fifo.cow")).status().unwrap().success());
    std::os::unix::fs::symlink("nowhere", bench.path("dangling.cow")).unwrap();
    for name in ["text.cow", "zeros.cow", "dir.cow", "dangling.cow", "missing.cow", "dir.cow/x"] {
        for mode in ["--read-only", "--temporary", "--name=x"] {
            let ended = bench.run(["serve", name, mode, "--frontend", "nbd"]).expect(1);
            assert!(ended.stderr.contains(name) && ended.stdout.is_empty(), "{ended:?}");
        }
    }
    let fifo = bench.run(["serve", "fifo.cow", "--read-only", "--frontend", "nbd"]).expect(1);
    assert!(fifo.stderr.contains("fifo.cow: ") && fifo.stderr.contains("FIFO"), "{fifo:?}");
    let names = bench.names("");
    assert!(!names.iter().any(|name| name.contains("temporary")), "{names:?}");
}

#[test]
fn sockets_have_the_images_owner_and_mode() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 16 * MIB);
    std::fs::set_permissions(&image, PermissionsExt::from_mode(0o660)).unwrap();
    let daemon = bench.serve([&image]);
    let sockets: Vec<String> =
        bench.names("run").into_iter().filter(|n| n.ends_with(".sock") || n.ends_with(".nbd")).collect();
    assert_eq!(sockets.len(), 2);
    for socket in sockets {
        let meta = std::fs::metadata(bench.path("run").join(socket)).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777, 0o660);
    }
    daemon.terminate();
}

#[test]
fn stale_sockets_and_entries_are_no_obstacle() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve([&image]);
    let left: Vec<String> = bench.names("run");
    daemon.kill();
    assert_eq!(bench.names("run"), left, "a killed daemon leaves its files");
    bench.run(["status", "vm.cow"]).expect(1);
    bench.stop(["vm.cow"]).expect(1);
    assert_eq!(bench.names("run"), ["lock"], "and status forgets them");

    // Sockets of dead daemons at the very places.
    for name in left.iter().filter(|n| n.ends_with(".sock") || n.ends_with(".nbd")) {
        drop(UnixListener::bind(bench.path("run").join(name)).unwrap());
    }
    let daemon = bench.serve([&image]);
    assert_eq!(bench.status("vm.cow")["pid"], daemon.pid());
    daemon.terminate();

    let own = format!("unix:{}", bench.path("my nbd.sock").display());
    let daemon = bench.serve(["vm.cow", "--nbd", &own]);
    daemon.kill();
    let again = bench.serve(["vm.cow", "--nbd", &own]);
    assert!(again.uri.ends_with("/my%20nbd.sock"), "{}", again.uri);
    again.terminate();
    std::fs::write(bench.path("file"), "x").unwrap();
    bench.run(["serve", "vm.cow", "--nbd", &format!("unix:{}", bench.path("file").display())]).expect(1);
    assert_eq!(std::fs::read(bench.path("file")).unwrap(), b"x");
}
