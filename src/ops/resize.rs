//! `resize`: another size for the disk, offline and live.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use serde::{Deserialize, Serialize};

use super::map::{RunState, map_from};
use crate::chain::{Image, ImageQueue, OpenOptions, OpenReport, open_chain};
use crate::error::{Error, Kind, Result, printable};
use crate::layer::Finish;
use crate::limits::is_disk_size;
use crate::storage::Storage;

/// The size that is wanted, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewSize {
    /// This size.
    To(u64),
    /// So much more than now.
    By(u64),
}

/// A resize.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResizeOptions {
    /// The size that is wanted.
    pub size: NewSize,
    /// Also if something is cut.
    pub shrink: bool,
    /// Nothing is changed.
    pub dry_run: bool,
}

/// What a resize did, or would do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resized {
    /// Size of the disk before, in bytes.
    pub from: u64,
    /// And then.
    pub to: u64,
    /// Bytes behind the new end that held data.
    pub data_cut: u64,
}

impl Resized {
    /// Refuses to cut anything off `image` if that was not wanted.
    ///
    /// # Errors
    /// `Usage` with what would be cut.
    pub fn allowed(&self, image: &Path, shrink: bool) -> Result<()> {
        if shrink || self.to >= self.from {
            return Ok(());
        }
        let (cut, data, to) = (self.from - self.to, self.data_cut, self.to);
        let text = format!("it would lose its last {cut} bytes, of which {data} hold data");
        let hint = format!("cowdisk resize '{}' {to} --shrink", printable(&image.to_string_lossy()));
        Err(Error::new(Kind::Usage, text).at(image).hint(hint))
    }
}

impl NewSize {
    /// The size in bytes for a disk of `now` bytes in sectors of `sector` bytes.
    ///
    /// # Errors
    /// `Usage`: no disk has that size.
    pub fn of(self, now: u64, sector: u32) -> Result<u64> {
        let size = match self {
            NewSize::To(size) => Some(size),
            NewSize::By(more) => now.checked_add(more),
        };
        size.filter(|size| is_disk_size(*size, sector.into())).ok_or_else(|| {
            let text =
                format!("{self:?}: a size must be a multiple of {sector} between {sector} bytes and 4 PiB");
            Error::new(Kind::Usage, text)
        })
    }
}

/// Resizes an image that is open in this process, where its background tasks run; requests go on.
///
/// # Errors
/// `Usage` for a size that cannot be, or if something would be cut and that was not wanted; as [`ImageQueue::resize`].
pub async fn resize_open<S: Storage>(image: &Arc<Image<S>>, options: &ResizeOptions) -> Result<Resized> {
    let now = image.geometry();
    let to = options.size.of(now.size, now.sector_size).map_err(|e| e.at(image.path()))?;
    let data_cut = if to < now.size { data_behind(image, to).await? } else { 0 };
    let resized = Resized { from: now.size, to, data_cut };
    if options.dry_run {
        return Ok(resized);
    }
    resized.allowed(&image.path(), options.shrink)?;
    let queue = ImageQueue::new(image.clone());
    let done = queue.resize(to).await;
    queue.close();
    done.map(|()| resized)
}

/// Bytes of data from `pos` on, as far as the disk goes.
async fn data_behind<S: Storage>(image: &Image<S>, pos: u64) -> Result<u64> {
    if let Some(head) = image.head() {
        // Into its tree, which is what a map reads.
        head.checkpoint(Finish::Running).await?;
    }
    let mut bytes = 0;
    map_from(&image.chain(), pos, |run| {
        if run.state == RunState::Data {
            bytes += run.length - pos.saturating_sub(run.start).min(run.length);
        }
        ControlFlow::Continue(())
    })
    .await?;
    Ok(bytes)
}

/// Resizes the image `path`, which nobody serves; `open` is for writing, or, for a dry run, for reading.
///
/// # Errors
/// As [`resize_open`], and whatever keeps the image from being opened or closed.
pub async fn resize<S: Storage>(
    storage: &S,
    path: &Path,
    options: &ResizeOptions,
    open: &OpenOptions,
) -> Result<(Resized, OpenReport)> {
    let (image, report) = open_chain(storage, path, open).await?;
    let image = Arc::new(image);
    let work = async {
        let resized = resize_open(&image, options).await;
        let closed = image.close().await;
        let resized = resized?;
        closed.map(|()| resized)
    };
    Ok((with_growth(&image, work).await?, report))
}

/// Runs `work` with what an image that is open for writing needs beside it.
pub(super) async fn with_growth<S: Storage, T>(image: &Image<S>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let (mut growth, mut ring) = (pin!(image.run_growth()), pin!(image.run_ring_growth()));
    let mut checkpoints = pin!(image.run_checkpoints());
    let mut running = [true; 3];
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        // They end when the image is closed, and are not to be asked again.
        running[0] = running[0] && growth.as_mut().poll(cx).is_pending();
        running[1] = running[1] && ring.as_mut().poll(cx).is_pending();
        running[2] = running[2] && checkpoints.as_mut().poll(cx).is_pending();
        Poll::Pending
    })
    .await
}
