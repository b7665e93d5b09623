//! Another size for the disk, while requests run.
//!
//! One record says it all: the size, that everything behind the smaller one of both ends is zero, and, if that end lies
//! within a block, the block with zeros behind it. So a disk that grows shows zeros in its new part, whatever it held there
//! before it shrank, and whatever a parent holds there that is larger than the disk was.

use super::image::Image;
use super::layers::{Chain, ChainLayer};
use super::queue::ImageQueue;
use crate::error::{Error, Kind, Result};
use crate::format::Resize;
use crate::layer::{Batch, Finish, WriteItem};
use crate::limits::{MAX_DISK_BYTES, is_disk_size};
use crate::rules::{self, Rule};
use crate::storage::{IoBuf, Storage};
use crate::units::{BLOCK, BLOCK_SIZE, VBlock, blocks_for};

impl<S: Storage> ImageQueue<S> {
    /// For a disk that was made larger than the one below it, which ends at byte `border`: writes zeros to the rest of the
    /// block that holds it, where the lower layer may hold anything.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub async fn zero_behind(&self, border: u64) -> Result<()> {
        let block = VBlock::holding(border);
        let _alone = self.image.locks().lock(block..block.plus(1), true).await;
        let Some(rest) = self.zero_rest(border).await? else { return Ok(()) };
        let mut batch = Batch::default();
        push(&mut batch, rest);
        self.write_batch(&mut batch).await.map(drop)
    }

    /// Makes the disk `size` bytes large. What is cut is gone, what is new reads as zeros. It is durable when this is done.
    /// Requests behind the new end fail from then on.
    ///
    /// # Errors
    /// `Usage` for a size that cannot be, `Permission` for an image that is open read-only; `Io`, `NoSpace`: the disk has
    /// the size that it had.
    pub async fn resize(&self, size: u64) -> Result<()> {
        let image = &self.image;
        let _head_stays = image.without_snapshots().await?;
        let old = self.here().geometry();
        if !is_disk_size(size, old.sector_size.into()) {
            let sector = old.sector_size;
            let text = format!("size {size}: it must be a multiple of {sector} between 512 bytes and 4 PiB");
            return Err(Error::new(Kind::Usage, text).at(image.path()));
        }
        if size == old.size {
            return Ok(());
        }
        let border = size.min(old.size);
        let behind = VBlock::holding(border)..VBlock(blocks_for(MAX_DISK_BYTES));
        // Whoever writes there has its record settled, or looks at the size again (W3).
        let alone = image.locks().lock(behind, true).await;
        let mut batch = Batch::default();
        if let Some(rest) = self.zero_rest(border).await? {
            push(&mut batch, rest);
        }
        push(&mut batch, WriteItem::Resize(Resize { size, zero_from: VBlock(blocks_for(border)) }));
        let written = self.write_batch(&mut batch).await;
        let chain = self.here();
        let head = chain.writable()?;
        let stamp = match written {
            Ok(stamp) => stamp,
            Err(e) => {
                // W4: what a crash would make of a failed record is certain only behind a checkpoint.
                let _ = head.checkpoint(Finish::Running).await;
                return Err(e);
            }
        };
        if rules::holds(Rule::DurableResize) {
            head.commit(stamp.seq, async || head.write_evidence().await).await?;
        }
        image.announce_size(size);
        drop(alone);
        // The superblock is what `info` reads. Where there is no room for a checkpoint now, a later one tells it.
        if rules::holds(Rule::DurableResize) {
            let _ = head.checkpoint(Finish::Running).await;
        }
        Ok(())
    }

    /// The block that holds `border`, with zeros behind that byte; `None` if it has none but zeros there, or if the border
    /// is a block's. The caller has the block alone.
    async fn zero_rest(&self, border: u64) -> Result<Option<WriteItem>> {
        let skip = (border % BLOCK) as usize;
        if skip == 0 || !rules::holds(Rule::ZeroRest) {
            return Ok(None);
        }
        let block = VBlock::holding(border);
        let buf = IoBuf::zeroed(BLOCK_SIZE);
        self.read_blocks(block, &buf).await?;
        if buf.slice(skip..BLOCK_SIZE).is_zero() {
            return Ok(None);
        }
        buf.zero(skip..BLOCK_SIZE);
        Ok(Some(WriteItem::Data(block, buf)))
    }
}

fn push(batch: &mut Batch, item: WriteItem) {
    batch.push(item).expect("two items fit every batch");
}

impl<S: Storage> Image<S> {
    /// Requests are measured by this size from now on.
    fn announce_size(&self, size: u64) {
        let chain = self.chain();
        let top = chain.top();
        let mut sb = top.sb.clone();
        sb.virtual_size = size;
        let layer = ChainLayer { reader: top.reader.clone(), sb, size, pending: None };
        let layers = chain.with_layer(layer);
        self.chain.store(std::sync::Arc::new(Chain { layers, ..(*chain).clone() }));
    }
}
