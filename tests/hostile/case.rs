//! A case of the table, and its judgement.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::attack::attack;
use crate::run::{Ran, content_of};

/// What is run on the image `vm.cow` of a case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Verb {
    Info,
    InfoChain,
    InfoFiles,
    Check,
    CheckAll,
    Map,
    Read,
    Serve,
    Write,
    Snapshot,
}

pub(crate) use Verb::*;

/// All of them; those that only read first.
const VERBS: [Verb; 10] = [Info, InfoChain, InfoFiles, Check, CheckAll, Map, Read, Serve, Write, Snapshot];
/// Those that check.
pub(crate) const CHECKS: [Verb; 2] = [Check, CheckAll];
/// Those that open the image for writing.
pub(crate) const WRITERS: [Verb; 3] = [Serve, Write, Snapshot];

impl Verb {
    fn args(self) -> &'static [&'static str] {
        match self {
            Info => &["info", "vm.cow"],
            InfoChain => &["info", "--chain", "vm.cow"],
            InfoFiles => &["info", "--files", "vm.cow"],
            Check => &["check", "vm.cow"],
            CheckAll => &["check", "--data", "--chain", "vm.cow"],
            Map => &["map", "vm.cow"],
            // Every block of the disk is read, or written twice over.
            Read => &["bench", "vm.cow", "-c", "256"],
            Write => &["bench", "-w", "vm.cow", "-c", "512", "-d", "8", "--flush-interval", "100"],
            Serve => &["serve", "vm.cow", "--frontend", "nbd", "--", "true"],
            Snapshot => &["snapshot", "vm.cow@s"],
        }
    }
}

/// What a command must do.
#[derive(Clone, Debug)]
struct Expected {
    codes: &'static [i32],
    /// Each of them is in what it printed.
    says: Vec<String>,
}

type Make = Box<dyn Fn(&Path) + Send + Sync>;

/// Files, and what every command makes of them.
pub(crate) struct Case {
    pub(crate) name: String,
    make: Make,
    expected: BTreeMap<Verb, Expected>,
    /// Not even who opens it for writing changes anything.
    refused: bool,
}

impl Case {
    /// Every command succeeds, unless the case says otherwise.
    pub(crate) fn new(name: impl Into<String>, make: impl Fn(&Path) + Send + Sync + 'static) -> Case {
        let (name, make) = (name.into(), Box::new(make));
        Case { name, make, expected: BTreeMap::new(), refused: false }.all(&[0], &[])
    }

    pub(crate) fn all(self, codes: &'static [i32], says: &[&str]) -> Case {
        self.on(&VERBS, codes, says)
    }

    /// The superblocks are of no use: every command refuses the image, and names it.
    pub(crate) fn refused(mut self, says: &[&str]) -> Case {
        self.refused = true;
        let says: Vec<&str> = says.iter().copied().chain(["vm.cow"]).collect();
        self.all(&[1], &says).on(&CHECKS, &[1, 2], &says)
    }

    pub(crate) fn on(mut self, verbs: &[Verb], codes: &'static [i32], says: &[&str]) -> Case {
        let says: Vec<String> = says.iter().map(|s| (*s).to_owned()).collect();
        self.expected.extend(verbs.iter().map(|&verb| (verb, Expected { codes, says: says.clone() })));
        self
    }
}

/// Runs every command on the case; gives how many that were.
pub(crate) fn judge(case: &Case, failed: &mut Vec<String>) -> usize {
    let readers = made(case);
    for verb in VERBS {
        // Who writes changes what the next one would find.
        let fresh = WRITERS.contains(&verb).then(|| made(case));
        let dir = fresh.as_ref().unwrap_or(&readers).path();
        let before = content_of(dir);
        let (ran, wrong) = attack(dir, verb.args());
        let wrong = wrong.map(str::to_owned).or_else(|| differs(&case.expected[&verb], &ran));
        // A command that only reads, or that was refused because of the superblock, changes nothing.
        let wrong = wrong.or_else(|| {
            let may_change = WRITERS.contains(&verb) && !case.refused;
            (!may_change && content_of(dir) != before).then(|| "it changed something".to_owned())
        });
        if std::env::var_os("COWDISK_SHOW").is_some() {
            eprintln!("{} | {verb:?} | {:?} | {}{}", case.name, ran.code, ran.stdout, ran.stderr);
        }
        if let Some(wrong) = wrong {
            failed.push(format!("{}: {verb:?}: {wrong}: {ran:?}", case.name));
        }
    }
    VERBS.len()
}

fn made(case: &Case) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    (case.make)(dir.path());
    assert!(fs::symlink_metadata(dir.path().join("vm.cow")).is_ok(), "{} makes no image", case.name);
    dir
}

fn differs(expected: &Expected, ran: &Ran) -> Option<String> {
    if !expected.codes.iter().any(|&code| ran.code == Some(code)) {
        return Some(format!("it did not exit with any of {:?}", expected.codes));
    }
    let printed = format!("{}{}", ran.stdout, ran.stderr);
    let missing = expected.says.iter().find(|part| !printed.contains(part.as_str()));
    missing.map(|part| format!("it did not say {part:?}"))
}
