//! The life of an image: served under load, killed, served again and looked at, now and then a snapshot or a check.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use cowdisk::storage::sim::Rng;
use parking_lot::Mutex;

use crate::bench::{Bench, Daemon, Ended};
use crate::counts::Counts;
use crate::load::{Load, Shared};
use crate::oracle::{BLANK, Number, Oracle, SECTOR, compare, stamp};

const MIB: usize = 1 << 20;
/// The longest time from the beginning of a load to the kill.
const LOAD: Duration = Duration::from_millis(60);
/// The longest time from the start of a daemon or a snapshot to its kill, if that is to hit it at work.
const START: Duration = Duration::from_millis(12);
/// Bytes that the look at the disk reads at once.
const LOOK: usize = MIB;
/// The write that all sectors of a base come from.
const BASE: Number = 2;

/// An image and what is known of it.
pub struct Life {
    bench: Bench,
    /// What a failure names.
    id: String,
    /// `None` only within a round.
    daemon: Option<Daemon>,
    /// What its daemons are started with.
    args: Vec<String>,
    oracle: Shared,
    sectors: usize,
    base: Option<Vec<Number>>,
    /// Snapshots that were asked for, and what the disk held then; at the end those that were broken off are not there.
    snapshots: Vec<(String, Vec<Number>, Asked)>,
    round: u64,
}

/// How the taking of a snapshot went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Acknowledged,
    Killed,
}

/// A time up to `most`, to wait before a kill: this is the experiment, and no event to wait for.
fn some_time(rng: &mut Rng, most: Duration) -> Duration {
    Duration::from_micros(rng.below(most.as_micros() as u64))
}

impl Life {
    /// A new image: empty, on a raw base, or on a snapshot; of every three one has no checksums of data.
    pub fn begin(rng: &mut Rng, seed: u64, index: u64) -> Life {
        let bench = Bench::new();
        // Mostly small ones, so that much of each is written to.
        let size = [2, 4, 4, 8, 8, 8, 16, 16, 32, 64][rng.index(10)] * MIB;
        let sectors = size / SECTOR;
        let journal = ["256k", "512k", "1M"][rng.index(3)];
        let mut create: Vec<String> =
            ["create", "vm.cow", "--journal-size", journal, "--size"].map(String::from).into();
        create.push(size.to_string());
        if index % 3 == 2 {
            create.extend(["--checksums", "none"].map(String::from));
        }
        let kind = rng.below(3);
        let base = (kind == 1).then(|| {
            // A shorter base and a whole one.
            let length = if rng.chance(1, 2) { sectors } else { sectors / 2 + 3 };
            let base: Vec<u8> = (0..length).flat_map(|sector| stamp(sector, BASE)).collect();
            std::fs::write(bench.path("base.raw"), base).unwrap();
            create.extend(["--base", "base.raw", "--base-format", "raw"].map(String::from));
            let mut content = vec![BASE; length];
            content.resize(sectors, BLANK);
            content
        });
        bench.run(&create).expect(0);
        let content = base.clone().unwrap_or_else(|| vec![BLANK; sectors]);
        let queues = 1 + rng.below(2);
        let mut life = Life {
            bench,
            id: format!("COWDISK_SEED={seed} image {index} ({})", create[3..].join(" ")),
            daemon: None,
            args: ["vm.cow".into(), "--queues".into(), queues.to_string()].into(),
            oracle: Arc::new(Mutex::new(Oracle::new(content))),
            sectors,
            base,
            snapshots: Vec::new(),
            round: 0,
        };
        life.serve();
        if kind == 2 {
            life.prepare_parent(rng);
        }
        life
    }

    /// Fills a part of the disk, and takes a snapshot of it.
    fn prepare_parent(&mut self, rng: &mut Rng) {
        let mut counts = Counts::default();
        let loads = self.start_load(rng);
        std::thread::sleep(some_time(rng, LOAD));
        self.daemon.take().unwrap().terminate();
        loads.into_iter().for_each(|load| {
            load.join();
        });
        self.serve();
        self.judge(&mut counts);
        self.daemon.take().unwrap().terminate();
        self.take_snapshot("parent", Asked::Acknowledged, rng);
        self.serve();
    }

    fn serve(&mut self) {
        self.daemon = Some(self.bench.serve(&self.args));
    }

    fn start_load(&self, rng: &mut Rng) -> Vec<Load> {
        let daemon = self.daemon.as_ref().unwrap();
        let connections = 1 + rng.below(4);
        let window = [1, 4, 16, 32][rng.index(4)];
        (0..connections).map(|_| Load::start(daemon.connect(), &self.oracle, rng.split(), window)).collect()
    }

    /// One load, one end, one look.
    pub fn round(&mut self, rng: &mut Rng, counts: &mut Counts) {
        self.round += 1;
        counts.images += u64::from(self.round == 1);
        let before = self.generation();
        let loads = self.start_load(rng);
        std::thread::sleep(some_time(rng, LOAD));
        let daemon = self.daemon.take().unwrap();
        let killed = rng.chance(19, 20);
        let ended = if killed { daemon.kill() } else { daemon.terminate() };
        for load in loads {
            let tally = load.join();
            counts.reads += tally.reads;
            counts.flushes += tally.flushes;
        }
        self.count_recovery(&ended, counts);
        if killed {
            counts.checkpoints += self.generation() - before;
        }
        if rng.chance(1, 8) {
            self.check(if killed { &["journal_replay", "journal_left_out", "superblock_slot"] } else { &[] });
            counts.checks += 1;
        }
        if rng.chance(1, 6) {
            self.kill_at_start(rng);
            counts.kills_at_start += 1;
        }
        self.serve();
        let in_flight = self.judge(counts);
        if killed {
            counts.kills += 1;
            counts.kills_in_flight += u64::from(in_flight);
        } else {
            counts.terminated += 1;
        }
        if rng.chance(1, 6) {
            self.snapshot(rng, counts);
        }
    }

    /// The generation of the superblock, which each checkpoint raises by one.
    fn generation(&self) -> u64 {
        self.bench.run(["info", "--json", "vm.cow"]).expect(0).json()["generation"].as_u64().unwrap()
    }

    /// What a daemon said it did when it opened the image.
    fn count_recovery(&self, ended: &Ended, counts: &mut Counts) {
        let Some((_, told)) = ended.stderr.split_once("it was not closed: ") else { return };
        let records: u64 = told.split(' ').next().unwrap().parse().unwrap();
        counts.recoveries += 1;
        counts.replays += u64::from(records > 0);
        counts.records_replayed += records;
    }

    /// Kills a daemon that may just be recovering the image.
    fn kill_at_start(&self, rng: &mut Rng) {
        let mut command = self.bench.cowdisk(["serve", "--frontend", "nbd"]);
        let mut child = command.args(&self.args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(some_time(rng, START));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Reads the whole disk and compares it with what it must hold. True if requests were in flight at the last end.
    fn judge(&mut self, counts: &mut Counts) -> bool {
        let disk = look(self.daemon.as_ref().unwrap(), self.sectors);
        let verified = self.oracle.lock().judge(&disk).unwrap_or_else(|e| panic!("{e}"));
        counts.acknowledged += verified.answered;
        counts.in_flight += verified.unanswered;
        verified.unanswered > 0
    }

    /// Takes a snapshot of the disk as it is, closed or not; half of the time it is killed over it.
    fn snapshot(&mut self, rng: &mut Rng, counts: &mut Counts) {
        let daemon = self.daemon.take().unwrap();
        let ended = if rng.chance(1, 2) { daemon.kill() } else { daemon.terminate() };
        self.count_recovery(&ended, counts);
        let asked = if rng.chance(1, 2) { Asked::Acknowledged } else { Asked::Killed };
        self.take_snapshot(&format!("s{}", self.round), asked, rng);
        counts.kills_in_snapshot += u64::from(asked == Asked::Killed);
        self.serve();
        self.judge(counts);
    }

    fn take_snapshot(&mut self, name: &str, asked: Asked, rng: &mut Rng) {
        let args = ["snapshot".into(), format!("vm.cow@{name}")];
        match asked {
            Asked::Acknowledged => drop(self.bench.run(&args).expect(0)),
            Asked::Killed => {
                let mut command = self.bench.cowdisk(&args);
                let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                std::thread::sleep(some_time(rng, START));
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
        self.snapshots.push((name.to_owned(), self.oracle.lock().content(), asked));
    }

    /// `check` finds nothing but what is `allowed`.
    fn check(&self, allowed: &[&str]) {
        let ended = self.bench.run(["check", "--data", "--chain", "--json", "vm.cow"]);
        let report = ended.json();
        let codes = report["findings"].as_array().unwrap().iter().map(|f| f["code"].as_str().unwrap());
        // A file that is no layer yet when its maker is killed stays: nobody knows whose it is.
        let unborn = self.snapshots.iter().any(|(_, _, asked)| *asked == Asked::Killed);
        let may_be = |code: &&str| allowed.contains(code) || (unborn && *code == "leftover_file");
        let bad: Vec<&str> = codes.filter(|code| !may_be(code)).collect();
        let code = if report["findings_total"] == 0 { 0 } else { 3 };
        assert!(bad.is_empty() && ended.code == code, "check finds {bad:?}: {ended:?}");
    }

    /// Closes the image; it and its snapshots are whole and exact, and its base is as it was.
    pub fn end(mut self, counts: &mut Counts) {
        let ended = self.daemon.take().unwrap().terminate();
        self.count_recovery(&ended, counts);
        self.check(&[]);
        counts.checks += 1;
        for (name, content, asked) in std::mem::take(&mut self.snapshots) {
            if asked == Asked::Killed && !self.bench.path(format!("vm@{name}.cow")).exists() {
                continue;
            }
            let daemon = self.bench.serve(["--read-only".into(), format!("vm.cow@{name}")]);
            let disk = look(&daemon, self.sectors);
            compare(&content, &disk).unwrap_or_else(|e| panic!("snapshot {name}: {e}"));
            daemon.terminate();
            counts.snapshots += 1;
        }
        if let Some(base) = &self.base {
            let mut bytes = std::fs::read(self.bench.path("base.raw")).unwrap();
            bytes.resize(self.sectors * SECTOR, 0);
            compare(base, &bytes).unwrap_or_else(|e| panic!("the base was changed: {e}"));
        }
    }

    /// Keeps the files of a failed run, which cannot be had again by its seed.
    fn keep(&self) -> PathBuf {
        let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("kill-{}", std::process::id()));
        std::fs::create_dir_all(&kept).unwrap();
        for name in self.bench.names("").iter().filter(|name| *name != "run") {
            std::fs::copy(self.bench.path(name), kept.join(name)).unwrap();
        }
        kept
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // It may be at work still.
            self.daemon = None;
            let kept = self.keep();
            eprintln!("{} round {}; its files: {}", self.id, self.round, kept.display());
        }
    }
}

/// The whole disk.
fn look(daemon: &Daemon, sectors: usize) -> Vec<u8> {
    let mut client = daemon.connect();
    let parts = (0..sectors * SECTOR).step_by(LOOK);
    let disk = parts.flat_map(|at| client.read(at as u64, LOOK.min(sectors * SECTOR - at) as u32)).collect();
    client.disconnect();
    disk
}
