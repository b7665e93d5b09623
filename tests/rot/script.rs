//! What is done to an image before it is damaged: steps one after the other, each with at most one journal record, so
//! that the content after each record is known.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use cowdisk::chain::{Access, Image, ImageQueue, OpenOptions, SnapshotName, open_chain};
use cowdisk::device::Queue;
use cowdisk::format::{Holder, Superblock};
use cowdisk::layer::Finish;
use cowdisk::limits::MIN_JOURNAL_BYTES;
use cowdisk::ops::{BaseFormat, CreateOptions, create, snapshot};
use cowdisk::storage::sim::{JoinHandle, SimDisk, spawn};
use cowdisk::storage::{FileKind, IoBuf};
use cowdisk::units::{PBlock, Seq};

pub const HEAD: &str = "/d/vm.cow";
pub const SNAPSHOT: &str = "/d/vm@s1.cow";
const BASE: &str = "/d/base.raw";
const BLOCK: usize = 4096;

/// One step; positions in blocks, of `Unaligned` in sectors.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Write(usize, usize),
    Unaligned(usize, usize),
    Zero(usize, usize),
    Discard(usize, usize),
    Flush,
    Checkpoint,
    Tick,
    Reopen,
    Snapshot,
    Close,
}

/// An image and what happens to it.
#[derive(Clone, Debug)]
pub struct Script {
    pub blocks: usize,
    /// Blocks of the raw base; 0: none.
    pub base: usize,
    pub steps: Vec<Step>,
    /// Of data.
    pub checksums: bool,
}

/// What is known of a run, also of one that was broken off.
#[derive(Default)]
pub struct Known {
    /// The content as of each record, the newest last; of a record that was not acknowledged too.
    pub states: Vec<(Seq, Vec<u8>)>,
    /// The newest record that was acknowledged.
    pub acked: Seq,
    /// The content when the snapshot was taken.
    pub sealed: Vec<u8>,
    /// The superblock in force.
    pub sb: Option<Superblock>,
}

pub fn to_write() -> OpenOptions {
    let me = Holder { pid: 1, host: "sim".into(), socket: String::new() };
    OpenOptions { alive: |_| false, cache_bytes: 1 << 20, ..OpenOptions::new(Access::Write(me)) }
}

pub fn to_read() -> OpenOptions {
    OpenOptions { cache_bytes: 1 << 20, ..OpenOptions::new(Access::Read { lock: true }) }
}

/// An open image with a queue and what it needs in the background.
pub struct Open {
    pub image: Arc<Image<SimDisk>>,
    pub queue: Rc<ImageQueue<SimDisk>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Open {
    pub async fn new(disk: &SimDisk, path: &str, options: &OpenOptions) -> cowdisk::Result<Open> {
        let (image, _) = open_chain(disk, Path::new(path), options).await?;
        let image = Arc::new(image);
        let queue = ImageQueue::new(image.clone());
        if image.head().is_none() {
            return Ok(Open { image, queue, tasks: Vec::new() });
        }
        let (a, b, c, d) = (image.clone(), image.clone(), image.clone(), image.clone());
        let tasks = vec![
            spawn(async move { a.run_checkpoints().await }),
            spawn(async move { b.run_growth().await }),
            spawn(async move { c.run_ring_growth().await }),
            // Of a damaged tree the holes cannot be known; the file grows instead.
            spawn(async move { d.find_holes().await.unwrap_or_default() }),
            spawn(queue.clone().runner()),
            spawn(queue.clone().runner()),
        ];
        Ok(Open { image, queue, tasks })
    }

    pub async fn close(self) -> cowdisk::Result<()> {
        self.queue.close();
        self.image.close().await?;
        for task in self.tasks {
            task.await;
        }
        Ok(())
    }
}

/// The superblock in force.
pub fn superblock(bytes: &[u8]) -> Option<Superblock> {
    let slot = |i: usize| Superblock::decode(bytes.get(i * BLOCK..(i + 1) * BLOCK)?, PBlock(i as u64)).ok();
    (0..2).filter_map(slot).max_by_key(|sb| sb.generation)
}

/// Bytes that tell sectors and steps apart.
fn fill(bytes: &mut [u8], pos: usize, step: usize) {
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&((pos + i * 8) as u64 | (step as u64 + 1) << 32).to_le_bytes());
    }
}

/// A run of a script on a disk.
pub struct Run {
    disk: SimDisk,
    known: Rc<RefCell<Known>>,
    content: Vec<u8>,
}

impl Run {
    /// Makes the image and does all steps. `Err`: what a damaged medium made fail; nothing was done behind it.
    pub async fn play(disk: SimDisk, script: Script, known: Rc<RefCell<Known>>) -> Result<(), String> {
        let mut content = vec![0; script.blocks * BLOCK];
        fill(&mut content[..script.base * BLOCK], 0, 0xBA5E);
        let mut run = Run { disk, known, content };
        run.make(&script).await.map_err(|e| e.to_string())?;
        run.note(Seq(0));
        let mut open = None;
        for (number, step) in script.steps.iter().enumerate() {
            let now = match open.take() {
                Some(open) => open,
                None => run.open().await.map_err(|e| e.to_string())?,
            };
            open = run.step(number, *step, now).await?;
        }
        Ok(())
    }

    async fn make(&self, script: &Script) -> cowdisk::Result<()> {
        let mut options = CreateOptions { journal: Some(MIN_JOURNAL_BYTES), ..CreateOptions::default() };
        options.no_checksums = !script.checksums;
        options.size = Some((script.blocks * BLOCK) as u64);
        self.disk.put_special("/d", FileKind::Directory);
        if script.base > 0 {
            self.disk.put_file(BASE, &self.content[..script.base * BLOCK]);
            options.base = Some((BASE.into(), BaseFormat::Raw));
        }
        let (_, sb) = create(&self.disk, Path::new(HEAD), &options).await?;
        self.known.borrow_mut().sb = Some(sb);
        Ok(())
    }

    async fn open(&self) -> cowdisk::Result<Open> {
        let open = Open::new(&self.disk, HEAD, &to_write()).await?;
        self.known.borrow_mut().sb = Some(open.image.superblock());
        Ok(open)
    }

    fn note(&self, seq: Seq) {
        self.known.borrow_mut().states.push((seq, self.content.clone()));
    }

    /// One step; gives the image back if it is still open.
    async fn step(&mut self, number: usize, step: Step, open: Open) -> Result<Option<Open>, String> {
        let head = open.image.head().expect("open for writing");
        let before = head.journal.acked();
        match step {
            Step::Write(..) | Step::Unaligned(..) | Step::Zero(..) | Step::Discard(..) => {
                self.change(number, step, &open, before.next()).await?;
                assert!(head.journal.acked() <= before.next(), "step {number} made several records");
            }
            Step::Flush => open.queue.flush().await.map_err(|e| format!("flush: {e:?}"))?,
            Step::Checkpoint => head.checkpoint(Finish::Running).await.map_err(|e| e.to_string())?,
            Step::Tick => open.image.tick().await.map_err(|e| e.to_string())?,
            Step::Reopen | Step::Close | Step::Snapshot => {
                let image = open.image.clone();
                // The lock goes with the last who knows the head.
                drop(head);
                open.close().await.map_err(|e| e.to_string())?;
                self.known.borrow_mut().sb = Some(image.superblock());
                drop(image);
                if matches!(step, Step::Snapshot) {
                    let name = SnapshotName::new("s1").unwrap();
                    let taken = snapshot(&self.disk, Path::new(HEAD), &name, &to_write(), |_| false).await;
                    taken.map_err(|e| e.to_string())?;
                    self.new_head();
                }
                return Ok(None);
            }
        }
        self.known.borrow_mut().sb = Some(open.image.superblock());
        Ok(Some(open))
    }

    /// A snapshot was taken: the head is another layer, whose records begin anew.
    fn new_head(&self) {
        let bytes = self.disk.read_file(HEAD).expect("the path names the new head");
        let mut known = self.known.borrow_mut();
        *known = Known { sealed: self.content.clone(), sb: superblock(&bytes), ..Known::default() };
        known.states.push((Seq(0), self.content.clone()));
    }

    /// A step that changes the content, with record `seq`.
    async fn change(&mut self, number: usize, step: Step, open: &Open, seq: Seq) -> Result<(), String> {
        let (first, count, unit) = match step {
            Step::Unaligned(first, count) => (first, count, 512),
            Step::Write(first, count) | Step::Zero(first, count) | Step::Discard(first, count) => {
                (first, count, BLOCK)
            }
            _ => unreachable!("only these change the content"),
        };
        let (pos, len) = (first * unit, count * unit);
        let bytes = &mut self.content[pos..pos + len];
        let writes = matches!(step, Step::Write(..) | Step::Unaligned(..));
        if writes {
            fill(bytes, pos, number)
        } else {
            bytes.fill(0)
        }
        let buf = IoBuf::from_slice(bytes);
        // Known before it is acknowledged: a crash may keep it.
        self.note(seq);
        let (pos, len) = (pos as u64, len as u64);
        let done = match step {
            Step::Zero(..) => open.queue.write_zeroes(pos, len, false, false).await,
            Step::Discard(..) => open.queue.discard(pos, len, false).await,
            _ => open.queue.write(pos, buf, false).await,
        };
        done.map_err(|e| format!("step {number} {step:?}: {e:?}"))?;
        self.known.borrow_mut().acked = seq;
        Ok(())
    }
}
