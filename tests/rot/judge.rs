//! Opens a damaged image and says what came of it.

use cowdisk::device::Queue;
use cowdisk::ops::{CheckOptions, Status, check};
use cowdisk::storage::IoBuf;
use cowdisk::storage::sim::SimDisk;

use crate::model;
use crate::reference::{BLOCK, Reference};
use crate::script::{HEAD, Open, to_read, to_write};

/// What a damage came to. All but `Older` hold the newest content, or no wrong byte of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// The image was not opened.
    Refused,
    /// Blocks could not be read; the others were right.
    Unreadable,
    /// The content was right, and `check` found the damage.
    Checked,
    /// The content was right, and `check` had nothing to say.
    Unharmed,
    /// The end of an unclosed journal was left out, which nothing calls durable.
    Older,
}

/// What a reader saw: the blocks, `None` where it got an error.
type Seen = Vec<Option<Vec<u8>>>;

/// Reads a whole disk.
async fn read_all(open: &Open) -> Seen {
    let size = open.image.geometry().size as usize;
    let buf = IoBuf::zeroed(size);
    if open.queue.read(0, buf.clone()).await.is_ok() {
        return buf.to_vec().chunks(BLOCK).map(|b| Some(b.to_vec())).collect();
    }
    let mut seen = Vec::new();
    for pos in (0..size).step_by(BLOCK) {
        let part = buf.slice(pos..pos + BLOCK);
        let done = open.queue.read(pos as u64, part.clone()).await;
        seen.push(done.ok().map(|()| part.to_vec()));
    }
    seen
}

/// `Err`: why the image was not opened.
fn read(disk: &SimDisk, path: &str) -> Result<Seen, String> {
    disk.block_on(async {
        let open = Open::new(disk, path, &to_read()).await.map_err(|e| e.to_string())?;
        Ok(read_all(&open).await)
    })
}

fn all_there(seen: &Seen) -> bool {
    seen.iter().all(Option::is_some)
}

/// The first block that was read and is wrong.
fn wrong(seen: &Seen, expected: &[u8]) -> Option<usize> {
    if seen.len() * BLOCK != expected.len() {
        return Some(seen.len());
    }
    let pairs = seen.iter().zip(expected.chunks(BLOCK));
    pairs.enumerate().find(|(_, (seen, right))| seen.as_ref().is_some_and(|s| s != right)).map(|(i, _)| i)
}

/// The content that the damaged `disk` must show where it shows any, and whether it is the newest.
fn expected<'a>(reference: &'a Reference, disk: &SimDisk, seen: &Seen) -> Result<(&'a [u8], bool), String> {
    let best = reference.state(reference.newest);
    let Some(block) = wrong(seen, best) else { return Ok((best, true)) };
    let sb = reference.known.sb.as_ref().expect("there is one");
    let bytes = disk.read_file(reference.image).expect("damage leaves the file there");
    let Some(seq) = model::newest(sb, &bytes) else {
        return Err(format!("block {block} is wrong, and a record that was durable is missing"));
    };
    let older = reference.state(seq);
    match wrong(seen, older) {
        None => Ok((older, older == best)),
        Some(other) => Err(format!(
            "block {block} is not that of the newest state, and block {other} not that of record {}",
            seq.0
        )),
    }
}

/// Opens for reading, reads everything and checks. `Err`: wrong data, or damage that a reader met and `check` did not.
pub fn judge(reference: &Reference, disk: &SimDisk) -> Result<Outcome, String> {
    let seen = read(disk, reference.image);
    let (right, older) = match &seen {
        Ok(seen) => (all_there(seen), !expected(reference, disk, seen)?.1),
        Err(_) => (false, false),
    };
    let options = CheckOptions { data: true, chain: true, ..CheckOptions::default() };
    let report = disk.block_on(check(disk, reference.image.as_ref(), &options));
    let status = report.as_ref().map_or(Status::Incomplete, |report| report.status);
    match seen {
        Err(e) if status < Status::Incomplete => Err(format!("not opened ({e}), but check says {status:?}")),
        Err(_) => Ok(Outcome::Refused),
        Ok(_) if !right && status < Status::Incomplete => {
            Err(format!("unreadable, but check says {status:?}"))
        }
        Ok(_) if !right => Ok(Outcome::Unreadable),
        Ok(_) if older => Ok(Outcome::Older),
        Ok(_) if status > Status::Harmless => Ok(Outcome::Checked),
        Ok(_) => Ok(Outcome::Unharmed),
    }
}

/// Opens for writing, which recovers; reads, writes two blocks, closes, and reads again. `Err`: anything of that was
/// wrong, or what could be read before cannot be read any more.
pub fn judge_recovery(reference: &Reference, disk: &SimDisk) -> Result<(), String> {
    if reference.image != HEAD {
        return Ok(());
    }
    let Ok(before) = read(disk, HEAD) else {
        // What is refused for reading is not changed by an attempt to write.
        return match disk.block_on(async { Open::new(disk, HEAD, &to_write()).await.is_ok() }) {
            true => Err("opened for writing, but not for reading".into()),
            false => Ok(()),
        };
    };
    let (content, _) = expected(reference, disk, &before)?;
    let mut content = content.to_vec();
    let at = content.len() - 2 * BLOCK;
    let result = disk.block_on(async {
        let Ok(open) = Open::new(disk, HEAD, &to_write()).await else { return Ok(false) };
        let seen = read_all(&open).await;
        if let Some(block) = wrong(&seen, &content) {
            return Err(format!("block {block} is wrong after recovery"));
        }
        let wrote = open.queue.write(at as u64, IoBuf::from_slice(&[0xEE; 2 * BLOCK]), true).await.is_ok();
        // With a node that cannot be read, nothing can be folded.
        let _ = open.close().await;
        Ok(wrote)
    })?;
    if result {
        content[at..].fill(0xEE);
    }
    while disk.in_flight() > 0 {
        disk.complete(0);
    }
    match read(disk, HEAD) {
        Err(e) if all_there(&before) => Err(format!("recovery made it worse: {e}")),
        Err(_) => Ok(()),
        Ok(after) => match wrong(&after, &content) {
            Some(block) => Err(format!("block {block} is wrong after recovery, writes and a close")),
            None if all_there(&before) && !all_there(&after) => Err("recovery made it worse".into()),
            None => Ok(()),
        },
    }
}
