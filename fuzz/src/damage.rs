//! A damaged image, its checksums sealed again: opening, reading, checking and writing it must end in an error or in
//! order, never in a panic or a hang.

use std::path::Path;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use cowdisk::device::Queue;
use cowdisk::format::testing::reseal;
use cowdisk::ops::{CheckOptions, check};
use cowdisk::storage::IoBuf;
use cowdisk::storage::sim::SimDisk;

use crate::image::{IMAGE, Opened, SIZE, open, sample_image};

#[derive(Arbitrary, Debug)]
struct Patch {
    pos: u32,
    bytes: [u8; 8],
    len: u8,
}

#[derive(Arbitrary, Debug)]
struct Damage {
    /// Of data that has no checksums.
    plain: bool,
    patches: Vec<Patch>,
    reseal: bool,
    cut: Option<u32>,
}

static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(|| sample_image(false));
static PLAIN: LazyLock<Vec<u8>> = LazyLock::new(|| sample_image(true));

impl Damage {
    fn apply(&self) -> Vec<u8> {
        let sample = if self.plain { &*PLAIN } else { &*SAMPLE };
        let mut bytes = sample.clone();
        for patch in self.patches.iter().take(64) {
            let pos = place(patch.pos, sample);
            let len = (usize::from(patch.len) % 9).min(bytes.len() - pos);
            bytes[pos..pos + len].copy_from_slice(&patch.bytes[..len]);
        }
        if self.reseal {
            bytes.chunks_exact_mut(4096).for_each(reseal);
        }
        if let Some(cut) = self.cut {
            bytes.truncate(cut as usize % (bytes.len() + 1));
        }
        bytes
    }
}

/// Mostly where structures are: the file has far more empty blocks.
fn place(pos: u32, sample: &[u8]) -> usize {
    let blocks: Vec<usize> = sample
        .chunks(4096)
        .enumerate()
        .filter(|(_, block)| block.starts_with(b"COW"))
        .map(|(i, _)| i)
        .collect();
    match pos % 8 {
        0 => pos as usize % sample.len(),
        _ => blocks[(pos >> 16) as usize % blocks.len()] * 4096 + (pos >> 3) as usize % 512,
    }
}

/// Whether the image could still be opened.
pub fn run(bytes: &[u8]) -> bool {
    let Ok(damage) = Damage::arbitrary_take_rest(Unstructured::new(bytes)) else { return false };
    let disk = SimDisk::new(1);
    disk.put_file(IMAGE, &damage.apply());
    let options = CheckOptions { data: true, chain: true, ..CheckOptions::default() };
    let _ = disk.block_on(check(&disk, Path::new(IMAGE), &options));
    let on = disk.clone();
    disk.block_on(async move {
        let Ok(Opened { image, queue }) = open(&on).await else { return false };
        let size = image.geometry().size.min(SIZE);
        let buf = IoBuf::zeroed(16384);
        for pos in (0..size.saturating_sub(16383)).step_by(16384) {
            let _ = queue.read(pos, buf.clone()).await;
        }
        let _ = queue.write(0, buf.slice(0..4096), false).await;
        let _ = queue.write(1024, buf.slice(0..512), true).await;
        let _ = queue.discard(8192, 8192, false).await;
        let _ = image.tick().await;
        queue.close();
        let _ = image.close().await;
        true
    })
}
