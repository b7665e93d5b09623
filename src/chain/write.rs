//! Requests: bounds, alignment, locks (W3), and what each kind becomes.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::image::{FailedRequest, OpCounts};
use super::queue::{ImageQueue, Stamp};
use crate::device::Errno;
use crate::error::{Error, Kind, Result};
use crate::layer::{Head, WriteItem};
use crate::limits::MAX_REQUEST_BYTES;
use crate::rules::{self, Rule};
use crate::storage::{BUF_ALIGN, IoBuf, Storage};
use crate::units::{BLOCK, BLOCK_SIZE, VBlock, block_aligned, blocks_for};

/// Bytes of zeros written at once for a write-zeroes that must keep its space.
const ZEROES_AT_ONCE: u64 = 128 * 1024;
/// Blocks of one zero extent.
const ZERO_BLOCKS: u64 = 1 << 30;

impl<S: Storage> ImageQueue<S> {
    /// What a write that writes nothing gives: the newest number acknowledged.
    fn nothing_written(&self) -> Result<Stamp> {
        let here = self.here();
        let head = here.writable()?;
        Ok(Stamp { head: head.tag(), seq: head.journal.acked() })
    }

    fn check_range(&self, pos: u64, len: u64) -> Result<()> {
        let geometry = self.here().geometry();
        let sector = u64::from(geometry.sector_size);
        let end = pos.checked_add(len);
        if !pos.is_multiple_of(sector)
            || !len.is_multiple_of(sector)
            || end.is_none_or(|end| end > geometry.size)
        {
            let text = format!("request {pos} + {len} is outside of the disk, or not in sectors of {sector}");
            return Err(Error::new(Kind::Usage, text));
        }
        Ok(())
    }

    /// With the locks of W3, or behind a read: a resize, which has its blocks alone, may have come meanwhile.
    fn look_again(&self, pos: u64, len: u64) -> Result<()> {
        if rules::holds(Rule::LookAgain) { self.check_range(pos, len) } else { Ok(()) }
    }

    /// The whole blocks around a range of bytes.
    fn blocks_around(pos: u64, len: u64) -> Range<VBlock> {
        VBlock::holding(pos)..VBlock(blocks_for(pos + len))
    }

    async fn do_read(&self, pos: u64, buf: &IoBuf) -> Result<()> {
        let len = buf.len() as u64;
        self.check_range(pos, len)?;
        if len == 0 {
            return Ok(());
        }
        self.read_range(pos, buf).await?;
        // What was behind the end of a disk that has shrunk meanwhile is nothing that it ever showed.
        self.look_again(pos, len)
    }

    async fn read_range(&self, pos: u64, buf: &IoBuf) -> Result<()> {
        let len = buf.len() as u64;
        if block_aligned(pos, len) {
            return self.read_blocks(VBlock::holding(pos), buf).await;
        }
        let blocks = Self::blocks_around(pos, len);
        let bounce = self.bounce((blocks.end.0 - blocks.start.0) as usize * BLOCK_SIZE);
        self.read_blocks(blocks.start, &bounce.buf).await?;
        let skip = (pos - blocks.start.pos()) as usize;
        buf.copy_buf(0, &bounce.buf.slice(skip..skip + buf.len()));
        Ok(())
    }

    /// Writes any range; gives the number of its last record.
    async fn do_write(&self, pos: u64, buf: &IoBuf) -> Result<Stamp> {
        let len = buf.len() as u64;
        self.check_range(pos, len)?;
        let mut newest = self.nothing_written()?;
        let mut at = 0;
        while at < len {
            // Pieces of a larger request end on block borders.
            let end = (at + MAX_REQUEST_BYTES - (pos + at) % BLOCK).min(len);
            let part = buf.slice(at as usize..end as usize);
            newest = self.write_piece(pos + at, part).await?;
            at = end;
        }
        Ok(newest)
    }

    async fn write_piece(&self, pos: u64, buf: IoBuf) -> Result<Stamp> {
        let len = buf.len() as u64;
        let blocks = Self::blocks_around(pos, len);
        if !block_aligned(pos, len) {
            return self.write_unaligned(pos, buf, blocks).await;
        }
        let _shared = self.image.locks().lock(blocks.clone(), false).await;
        self.look_again(pos, len)?;
        if (buf.as_ptr() as usize).is_multiple_of(BUF_ALIGN) {
            return self.submit(WriteItem::Data(blocks.start, buf)).await;
        }
        let bounce = self.bounce(buf.len());
        bounce.buf.copy_buf(0, &buf);
        self.submit(WriteItem::Data(blocks.start, bounce.buf.clone())).await
    }

    /// Writes from memory that only the kernel reaches. `None`: the bytes have to be seen, as the head has checksums, or the
    /// range is none of whole blocks, or the host refuses such memory.
    async fn do_write_unseen(&self, pos: u64, buf: &IoBuf) -> Result<Option<Stamp>> {
        let len = buf.len() as u64;
        self.check_range(pos, len)?;
        let whole = block_aligned(pos, len) && (1..=MAX_REQUEST_BYTES).contains(&len);
        if !whole || self.unseen_refused.get() || self.here().writable()?.reader.checksums {
            return Ok(None);
        }
        let blocks = Self::blocks_around(pos, len);
        let _shared = self.image.locks().lock(blocks.clone(), false).await;
        self.look_again(pos, len)?;
        match self.submit(WriteItem::Data(blocks.start, buf.clone())).await {
            // The same bytes from other memory tell whether it is that. The blocks that were tried rest until the next
            // open, so it is not tried again.
            Err(e) if e.kind() == Kind::Io => {
                self.unseen_refused.set(true);
                Ok(None)
            }
            written => written.map(Some),
        }
    }

    /// Reads the old bytes of the first and last block, and writes whole blocks; alone on them (W3).
    async fn write_unaligned(&self, pos: u64, buf: IoBuf, blocks: Range<VBlock>) -> Result<Stamp> {
        let _alone = self.image.locks().lock(blocks.clone(), rules::holds(Rule::Locks)).await;
        self.look_again(pos, buf.len() as u64)?;
        let count = (blocks.end.0 - blocks.start.0) as usize;
        let bounce = self.bounce(count * BLOCK_SIZE);
        let skip = (pos - blocks.start.pos()) as usize;
        if skip > 0 {
            self.read_blocks(blocks.start, &bounce.buf.slice(0..BLOCK_SIZE)).await?;
        }
        let tail = (skip + buf.len()) % BLOCK_SIZE;
        if tail > 0 && (count > 1 || skip == 0) {
            let last = VBlock(blocks.end.0 - 1);
            self.read_blocks(last, &bounce.buf.slice((count - 1) * BLOCK_SIZE..count * BLOCK_SIZE)).await?;
        }
        bounce.buf.copy_buf(skip, &buf);
        self.submit(WriteItem::Data(blocks.start, bounce.buf.clone())).await
    }

    /// Makes a range read as zeros without keeping its space.
    async fn do_discard(&self, pos: u64, len: u64) -> Result<Stamp> {
        self.check_range(pos, len)?;
        let mut newest = self.nothing_written()?;
        let end = pos + len;
        let (first, last) = (pos.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
        if pos < first {
            newest = newest.max(self.zero_bytes(pos, first.min(end) - pos).await?);
        }
        let mut next = VBlock::holding(first);
        while next < VBlock::holding(last) {
            let blocks = (VBlock::holding(last).0 - next.0).min(ZERO_BLOCKS);
            let _shared = self.image.locks().lock(next..next.plus(blocks), false).await;
            self.look_again(pos, len)?;
            newest = newest.max(self.submit(WriteItem::Zero(next, blocks as u32)).await?);
            next = next.plus(blocks);
        }
        if first <= last && last < end {
            newest = newest.max(self.discard_begin(last, end).await?);
        }
        Ok(newest)
    }

    /// Discards from the beginning of a block to `end` within it. Behind the disk's end there is nothing: there the block
    /// counts as whole.
    async fn discard_begin(&self, pos: u64, end: u64) -> Result<Stamp> {
        let block = VBlock::holding(pos);
        let shared = self.image.locks().lock(block..block.plus(1), false).await;
        // The size stays as long as the disk's last block is locked.
        if self.here().geometry().size == end {
            return self.submit(WriteItem::Zero(block, 1)).await;
        }
        drop(shared);
        self.zero_bytes(pos, end - pos).await
    }

    /// Writes zeros as data.
    async fn zero_bytes(&self, pos: u64, len: u64) -> Result<Stamp> {
        let mut newest = self.nothing_written()?;
        let bounce = self.bounce(len.min(ZEROES_AT_ONCE) as usize);
        bounce.buf.zero(0..bounce.buf.len());
        let mut at = 0;
        while at < len {
            let part = (len - at).min(ZEROES_AT_ONCE) as usize;
            newest = newest.max(self.do_write(pos + at, &bounce.buf.slice(0..part)).await?);
            at += part as u64;
        }
        Ok(newest)
    }

    async fn finish(&self, written: Result<Stamp>, fua: bool) -> Result<()> {
        let stamp = written?;
        match fua {
            true => self.commit(|_| stamp).await,
            false => Ok(()),
        }
    }

    /// Makes durable what `pick` names of the head as it is now. What another head has of it is durable since the switch.
    async fn commit(&self, pick: impl FnOnce(&Head<S>) -> Stamp) -> Result<()> {
        let here = self.here();
        let Some(head) = &here.head else { return Ok(()) };
        let Stamp { head: tag, seq } = pick(head);
        if tag != head.tag() {
            return Ok(());
        }
        // Through the runners, who see it through if this request is dropped.
        head.commit(seq, async || self.submit(WriteItem::Evidence).await.map(drop)).await
    }

    fn answer(
        &self,
        counts: &OpCounts,
        place: FailedRequest,
        result: Result<()>,
    ) -> std::result::Result<(), Errno> {
        counts.count(place.length, &result);
        result.map_err(|e| self.image.failed(&e, Some(place)))
    }
}

const fn place(operation: &'static str, start: u64, length: u64) -> FailedRequest {
    FailedRequest { operation, start, length }
}

impl<S: Storage> crate::device::Queue for ImageQueue<S> {
    async fn read(&self, pos: u64, buf: IoBuf) -> std::result::Result<(), Errno> {
        let result = self.do_read(pos, &buf).await;
        self.answer(&self.image.counters.read, place("read", pos, buf.len() as u64), result)
    }

    async fn write(&self, pos: u64, buf: IoBuf, fua: bool) -> std::result::Result<(), Errno> {
        let written = self.do_write(pos, &buf).await;
        let result = self.finish(written, fua).await;
        self.answer(&self.image.counters.write, place("write", pos, buf.len() as u64), result)
    }

    async fn read_unseen(&self, pos: u64, buf: IoBuf) -> std::result::Result<bool, Errno> {
        let len = buf.len() as u64;
        if !block_aligned(pos, len) || len == 0 || self.check_range(pos, len).is_err() {
            return Ok(false);
        }
        match self.read_blocks_unseen(VBlock::holding(pos), &buf).await {
            Ok(false) => Ok(false),
            moved => {
                let result = moved.and_then(|_| self.look_again(pos, len));
                self.image.counters.unseen.fetch_add(1, Ordering::Relaxed);
                self.answer(&self.image.counters.read, place("read", pos, len), result).map(|()| true)
            }
        }
    }

    async fn write_unseen(&self, pos: u64, buf: IoBuf, fua: bool) -> std::result::Result<bool, Errno> {
        let written = match self.do_write_unseen(pos, &buf).await {
            Ok(None) => return Ok(false),
            Ok(Some(stamp)) => Ok(stamp),
            Err(e) => Err(e),
        };
        let result = self.finish(written, fua).await;
        self.image.counters.unseen.fetch_add(1, Ordering::Relaxed);
        let place = place("write", pos, buf.len() as u64);
        self.answer(&self.image.counters.write, place, result).map(|()| true)
    }

    async fn flush(&self) -> std::result::Result<(), Errno> {
        let result = self.commit(|head| Stamp { head: head.tag(), seq: head.journal.acked() }).await;
        self.answer(&self.image.counters.flush, place("flush", 0, 0), result)
    }

    async fn discard(&self, pos: u64, len: u64, fua: bool) -> std::result::Result<(), Errno> {
        let written = self.do_discard(pos, len).await;
        let result = self.finish(written, fua).await;
        self.answer(&self.image.counters.discard, place("discard", pos, len), result)
    }

    async fn write_zeroes(
        &self,
        pos: u64,
        len: u64,
        unmap: bool,
        fua: bool,
    ) -> std::result::Result<(), Errno> {
        let written = match unmap {
            true => self.do_discard(pos, len).await,
            false => match self.check_range(pos, len) {
                Ok(()) => self.zero_bytes(pos, len).await,
                Err(e) => Err(e),
            },
        };
        let result = self.finish(written, fua).await;
        self.answer(&self.image.counters.zero, place("write_zeroes", pos, len), result)
    }
}
