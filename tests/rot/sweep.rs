//! Applies every damage on all cores, counts what came of it, and names each that came to wrong data.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cowdisk::storage::sim::{Crash, Fault, FaultKind, Faults, OpKind, SimDisk, When};

use crate::damage::{Damage, damages};
use crate::judge::{Outcome, judge, judge_recovery};
use crate::reference::{End, Reference, references, run, scripts};
use crate::script::{HEAD, Script};

/// Of so many shares of bits, a normal run applies one.
const SHARES: u64 = 2400;
/// And one of so many runs with a write that goes wrong.
const FAULT_SHARES: u64 = 3;
/// One damage of so many is followed by an open for writing.
const RECOVER_EVERY: usize = 4;
/// A damage that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Failures that are shown.
const SHOWN: usize = 20;

type Counts = BTreeMap<&'static str, BTreeMap<Outcome, usize>>;

/// `COWDISK_SHARE=k/n`, or one that follows the day; `COWDISK_ROT=all` is 0/1.
fn share() -> (u64, u64) {
    if std::env::var("COWDISK_ROT").is_ok_and(|what| what == "all") {
        return (0, 1);
    }
    let Ok(text) = std::env::var("COWDISK_SHARE") else {
        let days = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 86400;
        return (days % SHARES, SHARES);
    };
    let (k, n) = text.split_once('/').expect("COWDISK_SHARE is k/n");
    let (k, n) = (k.parse().expect("k is a number"), n.parse().expect("n is a number"));
    assert!(k < n, "COWDISK_SHARE is k/n with k < n");
    (k, n)
}

/// What the threads of a sweep share.
#[derive(Default)]
struct Sweep {
    next: AtomicUsize,
    counts: Mutex<Counts>,
    failures: Mutex<Vec<String>>,
    done: AtomicBool,
    /// What each thread is at, and since when.
    running: Mutex<BTreeMap<usize, (Instant, String)>>,
}

impl Sweep {
    /// Does the jobs `0..count` on two threads; `job` gives its line of the summary, a label, and what came of it.
    fn run(
        &self,
        count: usize,
        job: impl Fn(usize) -> (&'static str, String, Result<Outcome, String>) + Sync,
    ) {
        let (sweep, job) = (self, &job);
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..2).map(|thread| scope.spawn(move || sweep.work(thread, count, job))).collect();
            scope.spawn(|| self.watch());
            workers.into_iter().for_each(|worker| worker.join().unwrap());
            self.done.store(true, Ordering::Release);
        });
    }

    fn work(
        &self,
        thread: usize,
        count: usize,
        job: &impl Fn(usize) -> (&'static str, String, Result<Outcome, String>),
    ) {
        loop {
            let nth = self.next.fetch_add(1, Ordering::Relaxed);
            if nth >= count {
                self.running.lock().unwrap().remove(&thread);
                return;
            }
            self.running.lock().unwrap().insert(thread, (Instant::now(), format!("job {nth}")));
            match catch_unwind(AssertUnwindSafe(|| job(nth))) {
                Ok((line, label, Err(e))) => self.fail(format!("{line}: {label}: {e}")),
                Ok((line, _, Ok(outcome))) => {
                    *self.counts.lock().unwrap().entry(line).or_default().entry(outcome).or_default() += 1;
                }
                Err(_) => self.fail(format!("job {nth} panicked")),
            }
        }
    }

    fn fail(&self, what: String) {
        self.failures.lock().unwrap().push(what);
    }

    /// A thread that hangs cannot be joined, so this ends the process.
    fn watch(&self) {
        while !self.done.load(Ordering::Acquire) {
            std::thread::park_timeout(Duration::from_millis(100));
            for (since, what) in self.running.lock().unwrap().values() {
                if since.elapsed() > PATIENCE {
                    eprintln!("{what} hangs");
                    std::process::abort();
                }
            }
        }
    }

    fn report(&self, jobs: usize, since: Instant) {
        println!("rot: {jobs} damages in {:.0?}", since.elapsed());
        for (line, outcomes) in &*self.counts.lock().unwrap() {
            let of = |outcome| outcomes.get(&outcome).copied().unwrap_or_default();
            println!(
                "rot: {line}: {} damages: {} refused, {} unreadable, {} found by check alone, {} unharmed, {} older",
                outcomes.values().sum::<usize>(),
                of(Outcome::Refused),
                of(Outcome::Unreadable),
                of(Outcome::Checked),
                of(Outcome::Unharmed),
                of(Outcome::Older),
            );
        }
        let failures = self.failures.lock().unwrap();
        let shown = failures.iter().take(SHOWN).map(|f| format!("\n  {f}")).collect::<String>();
        assert!(failures.is_empty(), "{} damages were not found:{shown}", failures.len());
    }
}

fn judge_damage(reference: &Reference, damage: Damage, recover: bool) -> Result<Outcome, String> {
    let damaged = || {
        let disk = reference.disk.crash(Crash::ProcessDeath, 0);
        damage.apply(reference, &disk);
        disk
    };
    let outcome = judge(reference, &damaged())?;
    if recover {
        judge_recovery(reference, &damaged())?;
    }
    Ok(outcome)
}

#[test]
fn undamaged_images_are_right() {
    for reference in references() {
        let outcome = judge(&reference, &reference.disk.crash(Crash::ProcessDeath, 0));
        assert_eq!(outcome, Ok(Outcome::Unharmed), "{}", reference.name);
        judge_recovery(&reference, &reference.disk.crash(Crash::ProcessDeath, 0)).unwrap();
    }
}

#[test]
fn damage_is_found_or_harmless() {
    let since = Instant::now();
    let (share, shares) = share();
    println!("rot: share {share}/{shares} of the bits (COWDISK_SHARE)");
    let references = references();
    let mut jobs: Vec<(usize, Damage)> = Vec::new();
    for (i, reference) in references.iter().enumerate() {
        jobs.extend(damages(reference, (share, shares)).into_iter().map(|damage| (i, damage)));
    }
    println!("rot: {} damages", jobs.len());
    let sweep = Sweep::default();
    sweep.run(jobs.len(), |nth| {
        let (reference, damage) = (&references[jobs[nth].0], jobs[nth].1);
        let flip = matches!(damage, Damage::Flip { .. });
        let recover = !flip || nth % RECOVER_EVERY == 0;
        let label = format!("{}, {damage:?}", reference.name);
        (damage.name(reference), label, judge_damage(reference, damage, recover))
    });
    sweep.report(jobs.len(), since);
}

/// A run in which one write goes wrong.
struct FaultRun {
    name: String,
    script: Script,
    at: u64,
    kind: FaultKind,
}

impl FaultRun {
    /// The runs of a script and of all that is left of it when the end is cut off: each write goes wrong.
    fn of(name: &str, script: &Script) -> Vec<FaultRun> {
        let mut all = Vec::new();
        for steps in 0..=script.steps.len() {
            let script = Script { steps: script.steps[..steps].to_vec(), ..script.clone() };
            let writes = count_writes(&script);
            let kinds = [FaultKind::Lost, FaultKind::Misdirected(4096), FaultKind::Misdirected(8192)];
            for kind in kinds {
                all.extend((1..=writes).map(|at| {
                    let name = format!("{name}, {steps} steps");
                    FaultRun { name, script: script.clone(), at, kind }
                }));
            }
        }
        all
    }

    fn line(&self) -> &'static str {
        if self.kind == FaultKind::Lost { "lost writes" } else { "writes that went astray" }
    }

    fn judge(&self) -> Result<Outcome, String> {
        let disk = SimDisk::new(1);
        let fail = Fault { at: self.at, kind: self.kind, sticky: false, only: Some(OpKind::Write) };
        disk.set_faults(Faults { fail: Some(fail), budget: None });
        // The damage may be met on the way: then the script ends there.
        let known = run(&disk, &self.script, End::Quiet).unwrap_or_else(|(_, known)| known);
        if known.states.is_empty() {
            return Ok(Outcome::Refused);
        }
        let newest = known.acked;
        let disk = disk.crash(Crash::ProcessDeath, 0);
        let name = String::new();
        let reference =
            Reference { name, disk: disk.clone(), image: HEAD, known, newest, layers: Vec::new() };
        let outcome = judge(&reference, &disk)?;
        judge_recovery(&reference, &disk.crash(Crash::ProcessDeath, 0))?;
        Ok(outcome)
    }
}

fn count_writes(script: &Script) -> u64 {
    let disk = SimDisk::new(1);
    let count = Rc::new(Cell::new(0));
    let counter = count.clone();
    disk.set_hook(Some(Box::new(move |_, event| {
        counter.set(counter.get() + u64::from(event.op == OpKind::Write && event.when == When::Issue));
    })));
    assert!(run(&disk, script, End::Quiet).is_ok());
    count.get()
}

#[test]
fn lost_and_misdirected_writes_are_found_or_harmless() {
    let since = Instant::now();
    let (share, shares) = share();
    let shares = shares.min(FAULT_SHARES);
    let all = scripts();
    // A write of data that is lost is found by its checksum.
    let runs = all.iter().filter(|(name, script)| **name != "tree" && script.checksums);
    let runs = runs.flat_map(|(name, s)| FaultRun::of(name, s));
    let runs: Vec<FaultRun> =
        runs.enumerate().filter(|(i, _)| *i as u64 % shares == share % shares).map(|(_, run)| run).collect();
    let sweep = Sweep::default();
    sweep.run(runs.len(), |nth| {
        let run = &runs[nth];
        let label = format!("{}, write {} is {:?}", run.name, run.at, run.kind);
        (run.line(), label, run.judge())
    });
    sweep.report(runs.len(), since);
}
