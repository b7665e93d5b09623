//! A disk in memory that records what it is asked, and can be told to fail or to wait.

use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};

use cowdisk::device::{Disk, Errno, Geometry, Queue};
use cowdisk::runtime;
use cowdisk::storage::IoBuf;

/// A request as it reached the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Read { pos: u64, len: u64 },
    Write { pos: u64, len: u64, fua: bool },
    Flush,
    Discard { pos: u64, len: u64, fua: bool },
    Zero { pos: u64, len: u64, unmap: bool, fua: bool },
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    calls: Vec<Call>,
    /// Requests that touch the range fail with the errno.
    fault: Option<(Range<u64>, i32)>,
    /// Writes wait while this is set.
    held: bool,
    waiting: Vec<Waker>,
    /// Writes that came within one turn of the executor, turn by turn.
    turns: Vec<usize>,
    /// Queues that were made, by index.
    queues: Vec<usize>,
}

#[derive(Clone)]
pub struct RamDisk {
    geometry: Geometry,
    state: Arc<Mutex<State>>,
}

impl RamDisk {
    pub fn new(size: u64) -> RamDisk {
        RamDisk::of(Geometry { size, sector_size: 512, read_only: false, block_size: 4096 })
    }

    pub fn of(geometry: Geometry) -> RamDisk {
        let bytes = vec![0; usize::try_from(geometry.size).unwrap()];
        RamDisk { geometry, state: Arc::new(Mutex::new(State { bytes, ..State::default() })) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn bytes(&self, range: Range<usize>) -> Vec<u8> {
        self.state().bytes[range].to_vec()
    }

    /// Fills the disk with bytes that differ from block to block.
    pub fn fill(&self) {
        for (at, byte) in self.state().bytes.iter_mut().enumerate() {
            *byte = ((at / 512) * 31 + at % 251) as u8;
        }
    }

    /// The requests since the last time.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state().calls)
    }

    pub fn fail(&self, range: Range<u64>, errno: i32) {
        self.state().fault = Some((range, errno));
    }

    /// Makes writes wait until [`RamDisk::let_go`].
    pub fn hold(&self) {
        self.state().held = true;
    }

    pub fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    pub fn let_go(&self) {
        let mut state = self.state();
        state.held = false;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    pub fn turns(&self) -> Vec<usize> {
        self.state().turns.clone()
    }

    /// Handles on this disk, wherever they are.
    pub fn handles(&self) -> usize {
        Arc::strong_count(&self.state)
    }

    pub fn queues(&self) -> Vec<usize> {
        self.state().queues.clone()
    }
}

impl Disk for RamDisk {
    type Queue = RamQueue;
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn queue(&self, index: usize) -> Rc<RamQueue> {
        self.state().queues.push(index);
        Rc::new(RamQueue { disk: self.clone(), turn: Rc::default() })
    }
}

pub struct RamQueue {
    disk: RamDisk,
    /// Writes of this turn.
    turn: Rc<std::cell::Cell<usize>>,
}

impl RamQueue {
    /// Records a request. The frontend must have checked it.
    fn begin(&self, call: Call, pos: u64, len: u64) -> Result<Range<usize>, Errno> {
        let mut state = self.disk.state();
        state.calls.push(call);
        let end = pos.checked_add(len).unwrap();
        let sector = u64::from(self.disk.geometry.sector_size);
        assert!(len > 0 && end <= self.disk.geometry.size, "outside of the disk: {call:?}");
        assert!(pos.is_multiple_of(sector) && len.is_multiple_of(sector), "not aligned: {call:?}");
        match &state.fault {
            Some((range, errno)) if pos < range.end && end > range.start => Err(Errno(*errno)),
            _ => Ok(usize::try_from(pos).unwrap()..usize::try_from(end).unwrap()),
        }
    }

    /// Counts the writes that are started before other tasks get to run again.
    fn count_turn(&self) {
        self.turn.set(self.turn.get() + 1);
        if self.turn.get() == 1 {
            let (turn, disk) = (self.turn.clone(), self.disk.clone());
            runtime::spawn(async move { disk.state().turns.push(turn.take()) });
        }
    }

    async fn wait_while_held(&self) {
        poll_fn(|cx| {
            let mut state = self.disk.state();
            if !state.held {
                return Poll::Ready(());
            }
            state.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Queue for RamQueue {
    async fn read(&self, pos: u64, buf: IoBuf) -> Result<(), Errno> {
        let len = buf.len() as u64;
        let range = self.begin(Call::Read { pos, len }, pos, len)?;
        buf.copy_from(0, &self.disk.state().bytes[range]);
        Ok(())
    }

    async fn write(&self, pos: u64, buf: IoBuf, fua: bool) -> Result<(), Errno> {
        let len = buf.len() as u64;
        self.count_turn();
        let range = self.begin(Call::Write { pos, len, fua }, pos, len)?;
        self.wait_while_held().await;
        buf.copy_to(0, &mut self.disk.state().bytes[range]);
        Ok(())
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.disk.state().calls.push(Call::Flush);
        Ok(())
    }

    async fn discard(&self, pos: u64, len: u64, fua: bool) -> Result<(), Errno> {
        let range = self.begin(Call::Discard { pos, len, fua }, pos, len)?;
        self.disk.state().bytes[range].fill(0);
        Ok(())
    }

    async fn write_zeroes(&self, pos: u64, len: u64, unmap: bool, fua: bool) -> Result<(), Errno> {
        let range = self.begin(Call::Zero { pos, len, unmap, fua }, pos, len)?;
        self.disk.state().bytes[range].fill(0);
        Ok(())
    }
}
