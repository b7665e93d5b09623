//! `journal`: lanes, commits and checkpoints of several queues on a file that loses what was not synced. What a commit has
//! promised stands in the ring at every moment, in a block that nobody is writing (C1, J1, J2); nobody waits for ever.

use std::sync::Arc;

use cowdisk::error::{Error, Kind, Result};
use cowdisk::format::{LayerId, Place, RecordExtent};
use cowdisk::journal::{Content, Formed, Freeze, Journal, JournalStart, Lanes, NotFormed};
use cowdisk::rules::Rule;
use cowdisk::storage::{File, IoVecs, finish_write};
use cowdisk::units::{BLOCK, BLOCK_SIZE, PBlock, Seq, VBlock};
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use crate::file::{EPOCH, LAYER, RingFile};
use crate::{explore, notices};

const QUEUES: usize = 2;
const RECORDS: usize = 4;
/// So few that the ring fills up.
const RING: u64 = 6;

struct World {
    journal: Journal<RingFile>,
    file: RingFile,
}

impl World {
    fn new() -> World {
        let file = RingFile::default();
        let start = JournalStart {
            layer: LayerId(LAYER),
            epoch: EPOCH,
            generation: 1,
            cut: Seq(0),
            ring: PBlock(2)..PBlock(2 + RING),
            reserved: RING,
        };
        World { journal: Journal::new(file.clone(), start), file }
    }

    /// Puts a record into the journal, waiting for room, as `Head::form` does.
    fn form(&self, lanes: &mut Lanes) -> Formed {
        // Small ones share a block, large ones fill it.
        let blocks = if thread_rng().gen_bool(0.3) { 600 } else { 1 };
        let extent = RecordExtent { vblock: VBlock(0), place: Place::Data(PBlock(100)), blocks };
        let crcs = vec![0; blocks as usize];
        let mut vecs = IoVecs::new();
        loop {
            match self.journal.form(lanes, Content::new(&[extent], &crcs), vecs) {
                Ok(formed) => return formed,
                Err((NotFormed::Poisoned, _)) => panic!("poisoned: {:?}", self.journal.poisoned()),
                Err((_, back)) => vecs = back,
            }
            // The answer may be a checkpoint that broke off: then again.
            let _ = block_on(self.journal.room());
        }
    }

    fn queue(&self) {
        let mut lanes = Lanes::new();
        for _ in 0..RECORDS {
            let mut formed = self.form(&mut lanes);
            let seq = formed.seq;
            let pos = formed.address.0 * BLOCK;
            let op = self.file.write(std::mem::take(&mut formed.vecs), pos);
            block_on(finish_write(&self.file, op, BLOCK_SIZE, pos)).0.unwrap();
            self.journal.written(&mut lanes, &formed);
            if thread_rng().gen_bool(0.1) {
                self.journal.fail(seq);
                continue;
            }
            self.journal.settle(seq);
            match thread_rng().gen_range(0..4) {
                0 => self.commit(seq),
                1 => self.commit(self.journal.acked()),
                _ => {}
            }
        }
    }

    fn commit(&self, need: Seq) {
        // A checkpoint that broke off is the answer to those who waited for it; they may ask again.
        while let Err(e) = block_on(self.journal.commit(need)) {
            assert_eq!(e.kind(), Kind::NoSpace, "{e}");
        }
        let durable = self.journal.stats().durable;
        assert!(durable >= need, "a commit up to {} made {} durable", need.0, durable.0);
        self.file.promise(durable);
    }

    /// Checkpoints as they are wanted, as `Head::run_checkpoints` and `Head::checkpoint` do, until the layer is poisoned.
    fn checkpoints(&self) {
        let (mut generation, mut unfinished) = (1, None);
        while block_on(self.journal.checkpoint_wanted()) {
            let freeze = unfinished.take().unwrap_or_else(|| self.journal.freeze());
            self.journal.checkpoint_begins();
            match block_on(self.fold(freeze)) {
                Ok(()) => {
                    generation += 1;
                    // The superblock names the cut: records up to it are no longer needed.
                    self.file.cut(freeze.cut);
                    self.journal.release(freeze.cut, generation);
                }
                Err(e) if e.kind() == Kind::NoSpace => {
                    unfinished = Some(freeze);
                    self.journal.checkpoint_broke_off(&e);
                }
                Err(_) => return,
            }
        }
    }

    async fn fold(&self, freeze: Freeze) -> Result<()> {
        self.journal.settled(freeze.cut).await?;
        if thread_rng().gen_bool(0.1) {
            return Err(Error::new(Kind::NoSpace, "the host has no space for a checkpoint"));
        }
        self.journal.sync_for_checkpoint(freeze.cut).await?;
        self.journal.sync_for_checkpoint(freeze.cut).await
    }
}

fn queues_and_checkpoints() {
    let world = Arc::new(World::new());
    let spawn = |work: fn(&World)| {
        let world = world.clone();
        thread::spawn(move || work(&world))
    };
    let checkpoints = spawn(World::checkpoints);
    let queues: Vec<_> = (0..QUEUES).map(|_| spawn(World::queue)).collect();
    if thread_rng().gen_bool(0.5) {
        world.journal.want_checkpoint();
    }
    queues.into_iter().for_each(|t| t.join().unwrap());
    world.commit(world.journal.acked());
    world.journal.poison("the end");
    checkpoints.join().unwrap();
    let newest = world.journal.stats().newest;
    assert_eq!(newest, Seq((QUEUES * RECORDS) as u64), "every number went to a record");
}

#[test]
fn what_a_commit_promises_stays() {
    explore("journal", 4000, queues_and_checkpoints);
    for rule in [Rule::Target, Rule::Rewrite, Rule::RewriteWait, Rule::CloseBlocks] {
        notices("journal", rule, 4000, queues_and_checkpoints);
    }
}
