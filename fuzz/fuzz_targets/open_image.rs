//! A damaged image, its checksums sealed again: opening, reading and writing it must end in an error or in order,
//! never in a panic or a hang.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use cowdisk::device::Queue;
use cowdisk::format::testing::reseal;
use cowdisk::storage::IoBuf;
use cowdisk::storage::sim::{Executor, SimDisk};
use cowdisk_fuzz::{IMAGE, SIZE, open, sample_image};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Patch {
    pos: u32,
    bytes: [u8; 8],
    len: u8,
}

#[derive(Arbitrary, Debug)]
struct Damage {
    patches: Vec<Patch>,
    reseal: bool,
    cut: Option<u32>,
}

static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(sample_image);

fuzz_target!(|damage: Damage| {
    let mut bytes = SAMPLE.clone();
    for patch in damage.patches.iter().take(64) {
        let pos = patch.pos as usize % bytes.len();
        let len = (patch.len as usize % 9).min(bytes.len() - pos);
        bytes[pos..pos + len].copy_from_slice(&patch.bytes[..len]);
    }
    if damage.reseal {
        bytes.chunks_exact_mut(4096).for_each(reseal);
    }
    if let Some(cut) = damage.cut {
        bytes.truncate(cut as usize % (bytes.len() + 1));
    }
    let disk = SimDisk::new(1);
    disk.put_file(IMAGE, &bytes);
    let (on, executor) = (disk.clone(), Executor::new(&disk, 1));
    executor.block_on(async move {
        let Ok((image, queue)) = open(&on).await else { return };
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
    });
});
