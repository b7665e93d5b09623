//! What a service manager sees, and the files for it in `packaging`.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::bench::{Bench, is_clean, tool};
use crate::{PATIENCE, wait_until};

const MIB: u64 = 1 << 20;

/// The manager's end.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Manager {
        Manager(UnixDatagram::bind(path).unwrap())
    }

    /// The next message.
    fn next(&self) -> String {
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = [0; 4096];
        loop {
            match self.0.recv(&mut bytes) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                len => return String::from_utf8(bytes[..len.expect("a message")].to_vec()).unwrap(),
            }
        }
    }

    /// Reads on to a message with this line.
    fn wait_for(&self, line: &str) -> String {
        loop {
            let message = self.next();
            if message.lines().any(|l| l == line) {
                return message;
            }
        }
    }

    /// Everything that has come so far.
    fn rest(&self) -> String {
        self.0.set_nonblocking(true).unwrap();
        let mut all = String::new();
        let mut bytes = [0; 4096];
        while let Ok(len) = self.0.recv(&mut bytes) {
            all.push_str(std::str::from_utf8(&bytes[..len]).unwrap());
            all.push('\n');
        }
        all
    }
}

/// Ends with the test.
struct Ends(Child);

impl Ends {
    fn terminate(&mut self) -> Option<i32> {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        let mut status = None;
        wait_until("the daemon ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_manager_hears_of_begin_life_and_end() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let hidden = format!("cowdisk-test-{}", std::process::id());
    let by_path = Manager::at(&bench.path("notify"));
    let by_name =
        Manager(UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&hidden).unwrap()).unwrap());
    let addresses = [bench.path("notify").display().to_string(), format!("@{hidden}")];
    for (manager, address) in [by_path, by_name].iter().zip(addresses) {
        let mut command = bench.cowdisk(["serve", "vm.cow", "--frontend", "nbd", "--queues", "2"]);
        command.env("NOTIFY_SOCKET", address).env("WATCHDOG_USEC", "200000").stdout(Stdio::null());
        let mut daemon = Ends(command.spawn().unwrap());
        let ready = manager.wait_for("READY=1");
        assert!(ready.contains(&format!("STATUS={} is served at nbd+unix", image.display())), "{ready}");
        for _ in 0..5 {
            manager.wait_for("WATCHDOG=1");
        }
        assert_eq!(daemon.terminate(), Some(0));
        manager.wait_for("STOPPING=1");
        assert!(is_clean(&image));
    }
}

#[test]
fn a_start_that_fails_is_never_ready() {
    let bench = Bench::new();
    let manager = Manager::at(&bench.path("notify"));
    fs::write(bench.path("bad.cow"), vec![0; 1 << 20]).unwrap();
    for image in ["bad.cow", "missing.cow"] {
        let mut command = bench.cowdisk(["serve", image, "--frontend", "nbd"]);
        command.env("NOTIFY_SOCKET", bench.path("notify"));
        assert_eq!(command.output().unwrap().status.code(), Some(1));
    }
    let said = manager.rest();
    assert!(!said.contains("READY"), "{said}");
}

#[test]
fn a_watchdog_for_another_process_and_the_managers_socket_stay_out_of_the_command() {
    let bench = Bench::new();
    bench.image("vm.cow", 64 * MIB);
    let manager = Manager::at(&bench.path("notify"));
    let script = "test -z \"$NOTIFY_SOCKET$WATCHDOG_USEC$WATCHDOG_PID\"";
    let mut command = bench.cowdisk(["serve", "vm.cow", "--frontend", "nbd", "--", "sh", "-c", script]);
    command.env("NOTIFY_SOCKET", bench.path("notify"));
    command.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = manager.rest();
    assert!(said.contains("READY=1") && said.contains("STOPPING=1") && !said.contains("WATCHDOG"), "{said}");
}

fn packaged(name: &str) -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name);
    let text = fs::read_to_string(&path).unwrap();
    (path, text)
}

/// The value of the last line `key=…` of a unit.
fn value<'a>(unit: &'a str, key: &str) -> &'a str {
    let prefix = format!("{key}=");
    unit.lines().filter_map(|line| line.strip_prefix(&prefix)).next_back().unwrap()
}

#[test]
fn the_unit_starts_what_this_program_understands() {
    let bench = Bench::new();
    let image = bench.image("a b$HOME.cow", 64 * MIB);
    let (_, unit) = packaged("cowdisk@.service");
    let help = bench.run(["serve", "--help"]).expect(0).stdout;
    let example = unit.lines().find_map(|line| line.strip_prefix("# COWDISK_OPTIONS=")).unwrap();
    let start = value(&unit, "ExecStart");
    let options = example.split(' ').chain(start.split(' ')).filter(|word| word.starts_with("--"));
    assert!(options.clone().count() > 0);
    for option in options {
        assert!(help.contains(option), "{option} is no option of serve");
    }
    assert_eq!(value(&unit, "Environment"), "COWDISK_IMAGE=%f");

    // As systemd would do it: $WORDS are split, ${WORD} is one word, and what stands in them is taken as it is.
    let arguments = start.strip_prefix("/usr/bin/cowdisk ").unwrap();
    let arguments = arguments.replace("${COWDISK_IMAGE}", "\"${COWDISK_IMAGE}\"");
    let manager = Manager::at(&bench.path("notify"));
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec \"$0\" {arguments}"), env!("CARGO_BIN_EXE_cowdisk")]);
    command.env("COWDISK_OPTIONS", format!("{example} --frontend nbd")).env("COWDISK_IMAGE", &image);
    command.env("COWDISK_RUNTIME_DIR", bench.path("run")).env("NOTIFY_SOCKET", bench.path("notify"));
    let mut daemon = Ends(command.stdout(Stdio::null()).spawn().unwrap());
    manager.wait_for("READY=1");
    assert_eq!(bench.status(&image)["state"], "ok");
    assert_eq!(daemon.terminate(), Some(0));

    // What is not tried again.
    let usage = bench.run(["serve", "--no-such-option"]);
    assert_eq!(value(&unit, "RestartPreventExitStatus"), usage.code.to_string());
}

#[test]
fn systemd_takes_the_unit() {
    let bench = Bench::new();
    let (_, unit) = packaged("cowdisk@.service");
    // The program is not installed here.
    let unit = unit.replace("/usr/bin/cowdisk", env!("CARGO_BIN_EXE_cowdisk"));
    fs::write(bench.path("cowdisk@srv-vm.cow.service"), unit).unwrap();
    let verify = ["verify", "--man=no", "./cowdisk@srv-vm.cow.service"];
    tool("systemd-analyze", "systemd", &verify, &bench.path(""));
    let escaped = ["--path", "--template=cowdisk@.service", "/srv/vm.cow"];
    let instance = tool("systemd-escape", "systemd", &escaped, &bench.path(""));
    assert_eq!(instance.trim(), "cowdisk@srv-vm.cow.service");
}

#[test]
fn the_udev_rules_ask_this_program() {
    let bench = Bench::new();
    let (_, rules) = packaged("60-cowdisk.rules");
    let program = rules.split("IMPORT{program}=\"").nth(1).unwrap().split('"').next().unwrap();
    let arguments = program.strip_prefix("/usr/bin/cowdisk ").unwrap().replace("$devnode", "/dev/ublkb4095");
    let asked = bench.run(arguments.split(' ')).expect(0);
    assert_eq!((asked.stdout.as_str(), asked.stderr.as_str()), ("", ""), "a device of nobody has no names");
    let label = rules.lines().find_map(|line| line.split("GOTO=\"").nth(1)).unwrap();
    assert!(rules.contains(&format!("LABEL=\"{label}")));
}
