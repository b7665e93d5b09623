//! A user of a disk: what a filesystem sees of `/dev/ublkbN`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::block::Bio;
use super::handles::SimNode;
use super::state::Shared;
use crate::ublk::uapi::{ParamBasic, ParamDiscard, attr, io_flag, op, param};
use crate::units::SECTOR;

/// The open disk.
#[derive(Debug)]
pub struct SimBlock(SimNode);

/// A request on its way; ends with what was read, or an errno.
#[derive(Debug)]
struct Submitted {
    shared: Arc<Shared>,
    request: u64,
}

impl Future for Submitted {
    type Output = Result<Vec<u8>, i32>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Vec<u8>, i32>> {
        let mut state = self.shared.state();
        let request = state.requests.get_mut(&self.request).expect("polled until it is done");
        match request.result.take() {
            Some(result) => {
                state.requests.remove(&self.request);
                Poll::Ready(result)
            }
            None => {
                request.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl SimBlock {
    pub(super) fn open(shared: &Arc<Shared>, id: u32) -> Option<SimBlock> {
        SimNode::open(shared, id).ok().map(SimBlock)
    }

    /// Sends a request as it is, without a look at the disk's limits, through a queue that chance picks.
    pub async fn submit(&self, bio: Bio) -> Result<Vec<u8>, i32> {
        let shared = self.0.shared().clone();
        let request = {
            let mut state = shared.state();
            let queue = state.rng.index(64);
            state.submit(self.0.id(), queue, bio)
        };
        Submitted { shared, request }.await
    }

    fn limits(&self) -> Result<(ParamBasic, Option<ParamDiscard>), i32> {
        let state = self.0.shared().state();
        let params = state.devices.get(&self.0.id()).ok_or(libc::ENXIO)?.params;
        let discard = (params.types & param::DISCARD != 0).then_some(params.discard);
        Ok((params.basic, discard))
    }

    /// Pieces of at most `most` sectors of a range that lies on the disk.
    fn pieces(&self, pos: u64, len: u64, most: u32) -> Result<Vec<(u64, u32)>, i32> {
        let (basic, _) = self.limits()?;
        let sector = 1_u64 << basic.logical_bs_shift;
        let end = pos.checked_add(len).ok_or(libc::EIO)?;
        if !pos.is_multiple_of(sector) || !len.is_multiple_of(sector) {
            return Err(libc::EINVAL);
        }
        if end > basic.dev_sectors * SECTOR {
            return Err(libc::EIO);
        }
        let (mut at, end) = (pos / SECTOR, end / SECTOR);
        let mut pieces = Vec::new();
        while at < end {
            let count = u32::try_from(end - at).unwrap_or(u32::MAX).min(most);
            pieces.push((at, count));
            at += u64::from(count);
        }
        Ok(pieces)
    }

    /// Reads; in pieces where the disk wants that.
    pub async fn read(&self, pos: u64, len: u64) -> Result<Vec<u8>, i32> {
        let mut bytes = Vec::new();
        for (sector, sectors) in self.pieces(pos, len, self.limits()?.0.max_sectors)? {
            let bio = Bio { op_flags: op::READ, sector, sectors, data: Vec::new() };
            bytes.extend(self.submit(bio).await?);
        }
        Ok(bytes)
    }

    /// Writes. `flags` are added to each piece; FUA becomes a flush afterwards where the disk does not have it.
    pub async fn write(&self, pos: u64, data: &[u8], flags: u32) -> Result<(), i32> {
        let (basic, _) = self.limits()?;
        if basic.attrs & attr::READ_ONLY != 0 {
            return Err(libc::EPERM);
        }
        let kept = if has_fua(&basic) { flags } else { flags & !io_flag::FUA };
        for (sector, sectors) in self.pieces(pos, data.len() as u64, basic.max_sectors)? {
            let from = usize::try_from(sector * SECTOR - pos).map_err(|_| libc::EIO)?;
            let data = data[from..from + sectors as usize * SECTOR as usize].to_vec();
            self.submit(Bio { op_flags: op::WRITE | kept, sector, sectors, data }).await?;
        }
        if flags & io_flag::FUA != 0 && !has_fua(&basic) { self.flush().await } else { Ok(()) }
    }

    /// Flushes; without VOLATILE_CACHE no server hears of it.
    pub async fn flush(&self) -> Result<(), i32> {
        if self.limits()?.0.attrs & attr::VOLATILE_CACHE == 0 {
            return Ok(());
        }
        // A flush has no position.
        let bio = Bio { op_flags: op::FLUSH, sector: u64::MAX, ..Bio::default() };
        self.submit(bio).await.map(drop)
    }

    /// Discards.
    pub async fn discard(&self, pos: u64, len: u64) -> Result<(), i32> {
        let limits = self.limits()?.1.filter(|discard| discard.max_discard_sectors > 0);
        let most = limits.ok_or(libc::EOPNOTSUPP)?.max_discard_sectors;
        for (sector, sectors) in self.pieces(pos, len, most)? {
            self.submit(Bio { op_flags: op::DISCARD, sector, sectors, data: Vec::new() }).await?;
        }
        Ok(())
    }

    /// Writes zeroes; `flags` as in [`SimBlock::write`], and NOUNMAP.
    pub async fn write_zeroes(&self, pos: u64, len: u64, flags: u32) -> Result<(), i32> {
        let limits = self.limits()?.1.filter(|discard| discard.max_write_zeroes_sectors > 0);
        let most = limits.ok_or(libc::EOPNOTSUPP)?.max_write_zeroes_sectors;
        for (sector, sectors) in self.pieces(pos, len, most)? {
            let bio = Bio { op_flags: op::WRITE_ZEROES | flags, sector, sectors, data: Vec::new() };
            self.submit(bio).await?;
        }
        Ok(())
    }
}

/// Without VOLATILE_CACHE the FUA bit means nothing.
const fn has_fua(basic: &ParamBasic) -> bool {
    let both = attr::VOLATILE_CACHE | attr::FUA;
    basic.attrs & both == both
}
