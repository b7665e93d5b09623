//! Writes the seed corpora to `fuzz/seeds/TARGET/`: inputs drawn at random of which each came to something that none
//! before it did, and streams of clients. Always the same. What runs have found stays beside them.
//!
//!     cargo run --release --manifest-path fuzz/Cargo.toml --example seeds [TARGET…]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use cowdisk::nbd::protocol::{Command, Request};
use cowdisk::storage::sim::Rng;
use cowdisk_fuzz::{damage, journal, operations, stream, ublk};

/// Seeds of a target.
const MAX_SEEDS: usize = 60;
const DRAWS: u64 = 3000;
/// Bytes of the longest seed.
const MAX_BYTES: usize = 1500;

/// Draws inputs and keeps those that come to something new.
fn draw<T: Ord>(run: impl Fn(&[u8]) -> T) -> Vec<Vec<u8>> {
    let mut rng = Rng::new(1);
    let (mut came, mut seeds) = (BTreeSet::new(), Vec::new());
    for _ in 0..DRAWS {
        let mut bytes = vec![0; 1 + rng.index(MAX_BYTES)];
        rng.fill(&mut bytes);
        if seeds.len() < MAX_SEEDS && came.insert(run(&bytes)) {
            seeds.push(bytes);
        }
    }
    seeds
}

fn requests() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for command in 0..9 {
        for (offset, length) in [(0, 512), (1 << 30, 512), (u64::MAX, 1), (4096, 0)] {
            let command = Command::from(command);
            seeds.push(Request { flags: 0, command, cookie: 1, offset, length }.encode().to_vec());
        }
    }
    seeds
}

fn main() -> std::io::Result<()> {
    let all: [(&str, fn() -> Vec<Vec<u8>>); 6] = [
        ("open_image", || draw(|bytes| (damage::run(bytes), bytes.len() / 200))),
        ("operations", || draw(operations::run)),
        ("journal_replay", || draw(journal::run)),
        ("nbd_stream", stream::seeds),
        ("nbd_request", requests),
        ("ublk_driver", || draw(ublk::run)),
    ];
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let all = all.iter().filter(|(target, _)| wanted.is_empty() || wanted.iter().any(|name| name == target));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for (target, seeds) in all {
        let seeds = seeds();
        let dir = root.join(target);
        fs::create_dir_all(&dir)?;
        for (number, bytes) in seeds.iter().enumerate() {
            fs::write(dir.join(format!("{number:03}")), bytes)?;
        }
        eprintln!("{target}: {} seeds", seeds.len());
    }
    Ok(())
}
