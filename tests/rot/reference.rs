//! The images that are damaged, made by the engine itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use cowdisk::format::Magic;
use cowdisk::storage::sim::{Crash, Executor, OpKind, SimDisk, When};
use cowdisk::units::Seq;

use crate::model;
use crate::script::{HEAD, Known, Run, SNAPSHOT, Script, Step, superblock};

pub const BLOCK: usize = 4096;

/// What a block of a layer file holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Superblock,
    Journal,
    Node,
    Data,
    /// Zeros: never written, or given back.
    Empty,
}

/// A block and what else has stood in its place.
pub struct Block {
    pub kind: Kind,
    /// Bytes before the zeros at its end.
    pub used: usize,
    pub older: Vec<Box<[u8; BLOCK]>>,
}

/// A file that can be damaged.
pub struct Layer {
    pub path: &'static str,
    pub blocks: Vec<Block>,
    /// Its data has checksums.
    pub checksums: bool,
}

/// An image before it is damaged.
pub struct Reference {
    pub name: String,
    pub disk: SimDisk,
    /// What is opened.
    pub image: &'static str,
    pub known: Known,
    /// The newest record that counts.
    pub newest: Seq,
    pub layers: Vec<Layer>,
}

/// Versions of blocks, by number, of all layer files together: a write may be lost, or go to another file.
type Versions = BTreeMap<u64, Vec<Box<[u8; BLOCK]>>>;

/// How a run ends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum End {
    /// All operations have ended.
    Quiet,
    /// After so many steps of the executor, by the death of the process, or of the machine.
    Crash(usize, Crash),
}

impl Reference {
    /// Runs a script to its end; panics if something fails that nobody damaged.
    pub fn new(name: &str, script: &Script, end: End) -> Reference {
        let disk = SimDisk::new(1);
        let versions = record_versions(&disk);
        let known = run(&disk, script, end).unwrap_or_else(|(e, _)| panic!("{name}: {e}"));
        disk.set_hook(None);
        let crash = if let End::Crash(_, kind) = end { kind } else { Crash::ProcessDeath };
        let disk = disk.crash(crash, 7);
        let mut reference =
            Reference { name: name.into(), disk, image: HEAD, known, newest: Seq(0), layers: Vec::new() };
        reference.look();
        let versions = versions.borrow();
        for path in [HEAD, SNAPSHOT] {
            if let Some(bytes) = reference.disk.read_file(path) {
                let checksums = superblock(&bytes).is_some_and(|sb| sb.checksums.protects());
                reference.layers.push(Layer { path, blocks: blocks(&bytes, &versions), checksums });
            }
        }
        reference
    }

    /// Finds out what the undamaged image holds. A crash in a checkpoint may leave a superblock that the process did
    /// not know as its own yet, and one in a write a record that it had not acknowledged.
    fn look(&mut self) {
        let bytes = self.disk.read_file(self.image).expect("the image is there");
        let sb = superblock(&bytes).expect("it has a superblock");
        self.newest = model::newest(&sb, &bytes).expect("nothing is damaged");
        self.known.sb = Some(sb);
    }

    /// The content as of a record.
    pub fn state(&self, seq: Seq) -> &[u8] {
        let upto = self.known.states.partition_point(|(s, _)| *s <= seq);
        &self.known.states[upto - 1].1
    }
}

/// Runs a script; an error comes with what is known of the image by then.
pub fn run(disk: &SimDisk, script: &Script, end: End) -> Result<Known, (String, Known)> {
    let known = Rc::new(RefCell::new(Known::default()));
    let executor = Executor::new(disk, 1);
    let playing = executor.spawn(Run::play(disk.clone(), script.clone(), known.clone()));
    let limit = if let End::Crash(steps, _) = end { steps } else { usize::MAX };
    let mut steps = 0;
    while steps < limit && !playing.is_finished() {
        assert!(executor.step(), "nothing can go on");
        steps += 1;
    }
    let played = playing.try_take();
    drop(playing);
    drop(executor);
    if end == End::Quiet {
        while disk.in_flight() > 0 {
            disk.complete(0);
        }
    }
    let known = Rc::into_inner(known).expect("the run has ended").into_inner();
    match played {
        Some(Err(e)) => Err((e, known)),
        _ => Ok(known),
    }
}

fn record_versions(disk: &SimDisk) -> Rc<RefCell<Versions>> {
    let versions: Rc<RefCell<Versions>> = Rc::default();
    let list = versions.clone();
    disk.set_hook(Some(Box::new(move |disk, event| {
        if event.op != OpKind::Write || event.when != When::Issue {
            return;
        }
        let Some(bytes) = disk.read_file(&event.path) else { return };
        let blocks = event.pos / BLOCK as u64..(event.pos + event.len).div_ceil(BLOCK as u64);
        for block in blocks {
            let start = block as usize * BLOCK;
            let old = bytes.get(start..start + BLOCK).and_then(|b| <[u8; BLOCK]>::try_from(b).ok());
            let old = Box::new(old.unwrap_or([0; BLOCK]));
            let mut list = list.borrow_mut();
            let all = list.entry(block).or_default();
            if !all.contains(&old) {
                all.push(old);
            }
        }
    })));
    versions
}

fn blocks(bytes: &[u8], versions: &Versions) -> Vec<Block> {
    let block = |(number, bytes): (u64, &[u8])| {
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        let magics = [
            (Magic::Superblock, Kind::Superblock),
            (Magic::Journal, Kind::Journal),
            (Magic::Node, Kind::Node),
        ];
        let kind = magics.iter().find(|(magic, _)| bytes.starts_with(&magic.bytes()));
        let kind = kind.map_or(if used == 0 { Kind::Empty } else { Kind::Data }, |(_, kind)| *kind);
        let older = versions.get(&number).into_iter().flatten();
        Block { kind, used, older: older.filter(|old| old[..] != *bytes).cloned().collect() }
    };
    (0..).zip(bytes.chunks_exact(BLOCK)).map(block).collect()
}

/// Requests that leave several journal blocks, flushed records in two places, and some that no flush covers.
pub fn journal_steps() -> Vec<Step> {
    use Step::*;
    vec![
        Write(3, 2),
        Unaligned(17, 9),
        Flush,
        Write(9, 1),
        Discard(10, 3),
        Write(4, 1),
        Flush,
        Zero(20, 5),
        Write(21, 2),
        Flush,
        Write(30, 4),
        Unaligned(3, 2),
        Write(9, 1),
    ]
}

pub fn scripts() -> BTreeMap<&'static str, Script> {
    use Step::*;
    let on_base = |steps: Vec<Step>| Script { blocks: 40, base: 24, steps, checksums: true };
    let with = |steps: &[Step], more: &[Step]| [steps, more].concat();
    let journal = journal_steps();
    let scattered = (0..240).map(|i| Write((i * 97) % 480, 1)).chain([Close]).collect();
    BTreeMap::from([
        ("fresh", Script { blocks: 40, base: 0, steps: vec![], checksums: true }),
        ("overlay", on_base(with(&journal, &[Checkpoint, Write(1, 1), Discard(2, 9), Close]))),
        ("tree", Script { blocks: 480, base: 0, steps: scattered, checksums: true }),
        ("journal", on_base(journal.clone())),
        ("journal of an empty base", Script { base: 0, ..on_base(journal.clone()) }),
        ("journal without checksums", Script { checksums: false, ..on_base(journal.clone()) }),
        (
            "overlay without checksums",
            Script {
                checksums: false,
                ..on_base(with(&journal, &[Checkpoint, Write(1, 1), Discard(2, 9), Close]))
            },
        ),
        ("checkpointed", on_base(with(&journal, &[Checkpoint, Write(5, 2), Flush, Write(6, 1), Zero(0, 2)]))),
        ("reopened", on_base(with(&journal, &[Reopen, Write(5, 2), Flush, Write(6, 1), Flush, Write(8, 1)]))),
        (
            "snapshot",
            on_base(with(&journal, &[Snapshot, Write(5, 2), Discard(9, 2), Flush, Write(6, 1), Tick, Close])),
        ),
        (
            "snapshot, not closed",
            on_base(with(&journal, &[Snapshot, Write(5, 2), Flush, Write(6, 1), Write(31, 1)])),
        ),
    ])
}

/// All of them.
pub fn references() -> Vec<Reference> {
    let scripts = scripts();
    let mut all: Vec<Reference> =
        scripts.iter().map(|(name, script)| Reference::new(name, script, End::Quiet)).collect();
    for kind in [Crash::ProcessDeath, Crash::PowerLoss] {
        for steps in [320, 420] {
            let name = format!("{kind:?} after {steps} steps");
            all.push(Reference::new(&name, &scripts["journal"], End::Crash(steps, kind)));
        }
    }
    all.push(snapshot_itself());
    all
}

/// The snapshot's file, opened by itself.
fn snapshot_itself() -> Reference {
    let mut direct = Reference::new("snapshot itself", &scripts()["snapshot"], End::Quiet);
    direct.image = SNAPSHOT;
    direct.layers.retain(|layer| layer.path == SNAPSHOT);
    direct.known.states = vec![(Seq(0), direct.known.sealed.clone())];
    direct.look();
    direct
}
