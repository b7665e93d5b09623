//! From a descriptor to a call of the disk's queue, and back to the number that is committed.

use super::uapi::{IoDesc, io_flag, op};
use crate::device::{Errno, Queue};
use crate::storage::IoBuf;
use crate::units::SECTOR;

/// A request as the kernel asks for it, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    Read { pos: u64, len: usize },
    Write { pos: u64, len: usize, fua: bool },
    Flush,
    Discard { pos: u64, len: u64, fua: bool },
    WriteZeroes { pos: u64, len: u64, unmap: bool, fua: bool },
}

impl Request {
    /// Reads a descriptor; `room` is the size of the largest request. Flags other than FUA and NOUNMAP are hints.
    pub(super) fn parse(desc: &IoDesc, room: usize) -> Result<Request, Errno> {
        let len = u64::from(desc.nr_sectors) * SECTOR;
        let fua = desc.op_flags & io_flag::FUA != 0;
        // Not for FLUSH, whose position is -1.
        let pos = || desc.start_sector.checked_mul(SECTOR).ok_or(Errno(libc::EINVAL));
        let moved =
            || usize::try_from(len).ok().filter(|len| (1..=room).contains(len)).ok_or(Errno(libc::EINVAL));
        match desc.op_flags & op::MASK {
            op::READ => Ok(Request::Read { pos: pos()?, len: moved()? }),
            op::WRITE => Ok(Request::Write { pos: pos()?, len: moved()?, fua }),
            op::FLUSH => Ok(Request::Flush),
            op::DISCARD => Ok(Request::Discard { pos: pos()?, len, fua }),
            op::WRITE_ZEROES => {
                let unmap = desc.op_flags & io_flag::NOUNMAP == 0;
                Ok(Request::WriteZeroes { pos: pos()?, len, unmap, fua })
            }
            _ => Err(Errno(libc::EOPNOTSUPP)),
        }
    }

    /// Bytes of data that it moves.
    pub(super) const fn data(&self) -> usize {
        match self {
            Request::Read { len, .. } | Request::Write { len, .. } => *len,
            Request::Flush | Request::Discard { .. } | Request::WriteZeroes { .. } => 0,
        }
    }

    /// Runs the request; gives what is committed on success: the full count for reads and writes, 0 for the rest.
    /// A short count is never committed.
    pub(super) async fn run<Q: Queue>(self, queue: &Q, buf: &IoBuf) -> Result<i32, Errno> {
        match self {
            Request::Read { pos, len } => {
                queue.read(pos, buf.slice(0..len)).await?;
                Ok(count(len))
            }
            Request::Write { pos, len, fua } => {
                queue.write(pos, buf.slice(0..len), fua).await?;
                Ok(count(len))
            }
            Request::Flush => queue.flush().await.map(|()| 0),
            Request::Discard { pos, len, fua } => queue.discard(pos, len, fua).await.map(|()| 0),
            Request::WriteZeroes { pos, len, unmap, fua } => {
                queue.write_zeroes(pos, len, unmap, fua).await.map(|()| 0)
            }
        }
    }
}

impl Request {
    /// As [`Request::run`], where only the kernel reaches the data. `None`: it has to be seen.
    pub(super) async fn run_unseen<Q: Queue>(self, queue: &Q, buf: &IoBuf) -> Result<Option<i32>, Errno> {
        let done = match self {
            Request::Read { pos, .. } => queue.read_unseen(pos, buf.clone()).await?,
            Request::Write { pos, fua, .. } => queue.write_unseen(pos, buf.clone(), fua).await?,
            Request::Flush | Request::Discard { .. } | Request::WriteZeroes { .. } => false,
        };
        Ok(done.then(|| count(buf.len())))
    }
}

/// A buffer is at most 32 MiB.
fn count(len: usize) -> i32 {
    i32::try_from(len).expect("bounded by the buffer's size")
}

/// What is committed for a failed request: a number that is an errno, whatever the disk gave.
pub(super) fn failure(Errno(errno): Errno) -> i32 {
    if (1..4096).contains(&errno) { -errno } else { -libc::EIO }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{RingOptions, Runtime};
    use std::cell::RefCell;
    use std::rc::Rc;

    const ROOM: usize = 128 << 10;

    fn desc(op_flags: u32, start_sector: u64, nr_sectors: u32) -> IoDesc {
        IoDesc { op_flags, nr_sectors, start_sector, addr: 0 }
    }

    /// A disk in memory that writes down what it is asked for.
    #[derive(Default)]
    struct Ram {
        bytes: RefCell<Vec<u8>>,
        calls: RefCell<Vec<String>>,
    }

    impl Ram {
        fn call(&self, text: String, end: u64) -> Result<(), Errno> {
            self.calls.borrow_mut().push(text);
            if end > self.bytes.borrow().len() as u64 { Err(Errno(libc::EINVAL)) } else { Ok(()) }
        }
    }

    impl Queue for Ram {
        async fn read(&self, pos: u64, buf: IoBuf) -> Result<(), Errno> {
            self.call(format!("read {pos} {}", buf.len()), pos + buf.len() as u64)?;
            buf.copy_from(0, &self.bytes.borrow()[pos as usize..pos as usize + buf.len()]);
            Ok(())
        }
        async fn write(&self, pos: u64, buf: IoBuf, fua: bool) -> Result<(), Errno> {
            self.call(format!("write {pos} {} {fua}", buf.len()), pos + buf.len() as u64)?;
            buf.copy_to(0, &mut self.bytes.borrow_mut()[pos as usize..pos as usize + buf.len()]);
            Ok(())
        }
        async fn flush(&self) -> Result<(), Errno> {
            self.call("flush".to_owned(), 0)
        }
        async fn discard(&self, pos: u64, len: u64, fua: bool) -> Result<(), Errno> {
            self.call(format!("discard {pos} {len} {fua}"), pos + len)
        }
        async fn write_zeroes(&self, pos: u64, len: u64, unmap: bool, fua: bool) -> Result<(), Errno> {
            self.call(format!("zeroes {pos} {len} {unmap} {fua}"), pos + len)
        }
    }

    /// Commits of `descs`, and the calls that they made, on a disk of 64 KiB.
    fn execute(descs: Vec<IoDesc>, buf: &IoBuf) -> (Vec<i32>, Vec<String>) {
        let ram = Rc::new(Ram { bytes: RefCell::new(vec![0; 65536]), ..Ram::default() });
        let (buf, ours) = (buf.clone(), ram.clone());
        let results = Runtime::new(RingOptions { entries: 8 }).unwrap().block_on(async move {
            let mut results = Vec::new();
            for desc in descs {
                let result = match Request::parse(&desc, ROOM) {
                    Ok(request) => request.run(&*ours, &buf).await,
                    Err(errno) => Err(errno),
                };
                results.push(result.unwrap_or_else(failure));
            }
            results
        });
        let calls = ram.calls.take();
        (results, calls)
    }

    #[test]
    fn every_operation_reaches_the_disk_in_bytes() {
        let buf = IoBuf::zeroed(ROOM);
        buf.copy_from(0, &[7; 4096]);
        let requests = vec![
            desc(op::WRITE | io_flag::FUA | io_flag::META, 8, 8),
            desc(op::READ | io_flag::FAILFAST_DEV, 8, 1),
            desc(op::FLUSH, u64::MAX, 0),
            desc(op::DISCARD, 16, 16),
            desc(op::WRITE_ZEROES, 0, 8),
            desc(op::WRITE_ZEROES | io_flag::NOUNMAP | io_flag::FUA, 0, 8),
        ];
        let (results, calls) = execute(requests, &buf);
        assert_eq!(results, [4096, 512, 0, 0, 0, 0]);
        assert_eq!(
            calls,
            [
                "write 4096 4096 true",
                "read 4096 512",
                "flush",
                "discard 8192 8192 false",
                "zeroes 0 4096 true false",
                "zeroes 0 4096 false true",
            ]
        );
    }

    #[test]
    fn what_is_unknown_or_impossible_is_refused_without_touching_the_disk() {
        let requests = vec![
            desc(op::WRITE_SAME, 0, 8),
            desc(18, 0, 8),
            desc(0xff, 0, 8),
            desc(op::READ, 0, 0),
            desc(op::WRITE, 0, 257),
            desc(op::READ, u64::MAX, 8),
        ];
        let (results, calls) = execute(requests, &IoBuf::zeroed(ROOM));
        let (no, bad) = (-libc::EOPNOTSUPP, -libc::EINVAL);
        assert_eq!(results, [no, no, no, bad, bad, bad]);
        assert!(calls.is_empty());
    }

    #[test]
    fn the_disks_errno_is_committed() {
        let (results, _) = execute(vec![desc(op::WRITE, 128, 8)], &IoBuf::zeroed(ROOM));
        assert_eq!(results, [-libc::EINVAL]);
        assert_eq!(failure(Errno(libc::ENOSPC)), -libc::ENOSPC);
        assert_eq!((failure(Errno(0)), failure(Errno(-5)), failure(Errno(i32::MAX))), (-5, -5, -5));
    }
}
