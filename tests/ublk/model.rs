//! A disk in memory that takes its time, writes sector after sector, and outlives its servers.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;

use cowdisk::device::{Disk, Errno, Geometry, Queue};
use cowdisk::storage::IoBuf;
use cowdisk::storage::sim::{Rng, spawn};

pub const SECTOR: usize = 512;

const EINVAL: Errno = Errno(22);

/// What a server's disk does wrong, on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A write is acknowledged before it is done.
    EarlyAck,
    /// The last sector of a write is forgotten.
    LastSector,
    /// Every request waits for ever, once in a while.
    Hang,
}

/// A call as it reached the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    Read(u64, usize),
    Write(u64, usize, bool),
    Flush,
    Discard(u64, u64, bool),
    Zeroes { pos: u64, len: u64, unmap: bool, fua: bool },
}

pub struct Inner {
    pub bytes: Vec<u8>,
    pub calls: Vec<Call>,
    /// Calls of each kind, by name.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Requests under way.
    running: usize,
    /// The next requests end with this.
    pub errno: Option<i32>,
    rng: Rng,
}

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub struct Ram {
    inner: Arc<Mutex<Inner>>,
    pub geometry: Geometry,
    pub fault: Option<Fault>,
    /// It moves most data without seeing it, where the driver has that.
    pub unseen: bool,
}

impl Ram {
    pub fn new(size: u64, seed: u64) -> Ram {
        let inner = Inner {
            bytes: vec![0; usize::try_from(size).unwrap()],
            calls: Vec::new(),
            kinds: BTreeMap::new(),
            running: 0,
            errno: None,
            rng: Rng::new(seed),
        };
        let geometry = Geometry { size, sector_size: 512, read_only: false, block_size: 4096 };
        Ram { inner: Arc::new(Mutex::new(inner)), geometry, fault: None, unseen: false }
    }

    pub fn with_fault(self, fault: Option<Fault>) -> Ram {
        Ram { fault, ..self }
    }

    pub fn with_unseen(self, unseen: bool) -> Ram {
        Ram { unseen, ..self }
    }

    pub fn with_geometry(self, geometry: Geometry) -> Ram {
        Ram { geometry, ..self }
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Reads and writes under way.
    pub fn running(&self) -> usize {
        self.inner().running
    }

    /// The calls since the last look.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.inner().calls)
    }

    async fn call(&self, call: Call, name: &'static str) -> Result<(), Errno> {
        let turns = {
            let mut inner = self.inner();
            inner.calls.push(call);
            if inner.calls.len() > 64 {
                inner.calls.remove(0);
            }
            *inner.kinds.entry(name).or_default() += 1;
            inner.rng.below(4)
        };
        for _ in 0..turns {
            turn().await;
        }
        if self.fault == Some(Fault::Hang) && self.inner().rng.chance(1, 40) {
            std::future::pending::<()>().await;
        }
        self.inner().errno.map_or(Ok(()), |errno| Err(Errno(errno)))
    }

    fn range(&self, pos: u64, len: u64) -> Result<std::ops::Range<usize>, Errno> {
        let end = pos.checked_add(len).filter(|end| *end <= self.geometry.size).ok_or(EINVAL)?;
        let aligned = pos.is_multiple_of(SECTOR as u64) && len.is_multiple_of(SECTOR as u64);
        if aligned { Ok(pos as usize..end as usize) } else { Err(EINVAL) }
    }

    async fn store(&self, pos: usize, data: Vec<u8>) {
        for (index, sector) in data.chunks(SECTOR).enumerate() {
            let wait = {
                let mut inner = self.inner();
                let at = pos + index * SECTOR;
                inner.bytes[at..at + SECTOR].copy_from_slice(sector);
                inner.rng.chance(1, 4)
            };
            if wait {
                turn().await;
            }
        }
    }
}

/// Counts a read or write as long as it lives.
struct Running(Ram);

impl Running {
    fn new(disk: &Ram) -> Running {
        disk.inner().running += 1;
        Running(disk.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.inner().running -= 1;
    }
}

/// Lets others run.
pub async fn turn() {
    let been = Cell::new(false);
    poll_fn(|cx| {
        if been.replace(true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Disk for Ram {
    type Queue = Ram;
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn moves_unseen(&self) -> bool {
        self.unseen
    }
    fn queue(&self, _index: usize) -> Rc<Ram> {
        Rc::new(self.clone())
    }
}

impl Queue for Ram {
    async fn read(&self, pos: u64, buf: IoBuf) -> Result<(), Errno> {
        let _running = Running::new(self);
        let range = self.range(pos, buf.len() as u64);
        self.call(Call::Read(pos, buf.len()), "read").await?;
        buf.copy_from(0, &self.inner().bytes[range?]);
        Ok(())
    }
    async fn write(&self, pos: u64, buf: IoBuf, fua: bool) -> Result<(), Errno> {
        let _running = Running::new(self);
        let range = self.range(pos, buf.len() as u64);
        self.call(Call::Write(pos, buf.len(), fua), "write").await?;
        let (pos, mut data) = (range?.start, buf.to_vec());
        if self.fault == Some(Fault::LastSector) && data.len() > SECTOR {
            data.truncate(data.len() - SECTOR);
        }
        if self.fault == Some(Fault::EarlyAck) {
            let disk = self.clone();
            drop(spawn(async move { disk.store(pos, data).await }));
            return Ok(());
        }
        self.store(pos, data).await;
        Ok(())
    }
    async fn read_unseen(&self, pos: u64, buf: IoBuf) -> Result<bool, Errno> {
        assert!(buf.entry().is_some());
        if self.inner().rng.chance(1, 4) {
            return Ok(false);
        }
        self.read(pos, buf.by_kernel()).await.map(|()| true)
    }
    async fn write_unseen(&self, pos: u64, buf: IoBuf, fua: bool) -> Result<bool, Errno> {
        assert!(buf.entry().is_some());
        if self.inner().rng.chance(1, 4) {
            return Ok(false);
        }
        self.write(pos, buf.by_kernel(), fua).await.map(|()| true)
    }
    async fn flush(&self) -> Result<(), Errno> {
        self.call(Call::Flush, "flush").await
    }
    async fn discard(&self, pos: u64, len: u64, fua: bool) -> Result<(), Errno> {
        let range = self.range(pos, len);
        self.call(Call::Discard(pos, len, fua), "discard").await?;
        let range = range?;
        self.store(range.start, vec![0; range.len()]).await;
        Ok(())
    }
    async fn write_zeroes(&self, pos: u64, len: u64, unmap: bool, fua: bool) -> Result<(), Errno> {
        let range = self.range(pos, len);
        self.call(Call::Zeroes { pos, len, unmap, fua }, "zeroes").await?;
        let range = range?;
        self.store(range.start, vec![0; range.len()]).await;
        Ok(())
    }
}
