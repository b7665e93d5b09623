//! `cowdisk list`

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cowdisk::calendar::utc;
use cowdisk::error::{Error, Kind, Result, printable};
use cowdisk::ops::{self, Disk, Listing, SnapshotEntry};
use cowdisk::storage::uring::Uring;
use serde::Serialize;

use crate::output::Output;
use crate::{engine, size};

/// List disks, their snapshots and forks
///
/// Shows what is in directories, or one image with what belongs to it: each disk with its snapshots, the newest first, what
/// deleting each of them would free, and the disks that need it; forks below the snapshot that they stand on.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cowdisk list .
  cowdisk list vm.cow
  cowdisk list --unused -0 images backups | xargs -0 rm -v")]
pub(crate) struct Args {
    /// Images, or directories with images
    #[arg(value_name = "IMAGE|DIR", required = true)]
    places: Vec<PathBuf>,
    /// Only the sealed layers that no disk in these places needs, one per line
    #[arg(long)]
    unused: bool,
    /// End the names of --unused with a zero byte
    #[arg(short = '0', requires = "unused")]
    zero: bool,
}

#[derive(Serialize)]
struct Listed {
    disks: Vec<OneDisk>,
    unused: Option<Vec<Unused>>,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct OneDisk {
    path: Option<String>,
    disk_id: String,
    head_bytes: u64,
    stands_on: Option<String>,
    snapshots: Vec<OneSnapshot>,
}

#[derive(Serialize)]
struct OneSnapshot {
    name: String,
    path: String,
    layer_id: String,
    created: String,
    depth: usize,
    exclusive_bytes: Option<u64>,
    used_by: Vec<String>,
}

#[derive(Serialize)]
struct Unused {
    path: String,
    bytes: u64,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let places = args.places.clone();
    let listing = engine::run(async move { ops::list(&Uring, &places, &engine::to_read()).await })?;
    if !out.json() {
        listing.problems.iter().for_each(|e| out.note(e.to_string()));
    }
    if args.unused {
        return unused(listing, args.zero, out);
    }
    match out.json() {
        true => out.object(&listed(&listing))?,
        false => tree(&listing.disks, out)?,
    }
    Ok(u8::from(!listing.problems.is_empty()))
}

fn unused(listing: Listing, zero: bool, out: &Output) -> Result<u8> {
    let Some(unused) = &listing.unused else {
        let text = "what is unused cannot be told while a chain does not lead to its end";
        let error = listing.problems.into_iter().next();
        return Err(match error {
            Some(e) => Error::new(e.kind(), format!("{text}: {e}")),
            None => Error::new(Kind::Corrupt, text),
        });
    };
    if out.json() {
        out.object(&listed(&listing))?;
        return Ok(0);
    }
    for (path, _) in unused {
        // For other programs: as it is.
        out.bytes(path.as_os_str().as_bytes())?;
        out.bytes(if zero { b"\0" } else { b"\n" })?;
    }
    out.flush()?;
    Ok(0)
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn listed(listing: &Listing) -> Listed {
    let snapshot = |s: &SnapshotEntry| OneSnapshot {
        name: s.name.clone(),
        path: shown(&s.path),
        layer_id: s.layer.to_string(),
        created: utc(s.created_ns),
        depth: s.depth,
        exclusive_bytes: s.exclusive,
        used_by: s.used_by.iter().map(|path| shown(path)).collect(),
    };
    let disk = |d: &Disk| OneDisk {
        path: d.path.as_deref().map(shown),
        disk_id: d.id.to_string(),
        head_bytes: d.head_bytes,
        stands_on: d.stands_on.as_deref().map(shown),
        snapshots: d.snapshots.iter().map(snapshot).collect(),
    };
    let unused = |(path, bytes): &(PathBuf, u64)| Unused { path: shown(path), bytes: *bytes };
    Listed {
        disks: listing.disks.iter().map(disk).collect(),
        unused: listing.unused.as_ref().map(|list| list.iter().map(unused).collect()),
        problems: listing.problems.iter().map(ToString::to_string).collect(),
    }
}

/// What is still to be printed, the next one last.
enum Line<'a> {
    Disk(usize, &'a Disk),
    Snapshot(usize, &'a SnapshotEntry),
}

fn tree(disks: &[Disk], out: &Output) -> Result<()> {
    let snapshots: HashSet<&Path> =
        disks.iter().flat_map(|d| &d.snapshots).map(|s| s.path.as_path()).collect();
    let is_fork = |d: &&Disk| d.stands_on.as_deref().is_some_and(|on| snapshots.contains(on));
    let roots = disks.iter().filter(|d| !is_fork(d)).rev();
    let mut lines: Vec<Line<'_>> = roots.map(|d| Line::Disk(0, d)).collect();
    while let Some(line) = lines.pop() {
        match line {
            Line::Disk(indent, disk) => {
                out.text(disk_line(indent, disk))?;
                lines.extend(disk.snapshots.iter().rev().map(|s| Line::Snapshot(indent + 2, s)));
            }
            Line::Snapshot(indent, snapshot) => {
                out.text(snapshot_line(indent, snapshot))?;
                let on_it = |d: &&Disk| d.stands_on.as_deref() == Some(&snapshot.path);
                lines.extend(disks.iter().filter(on_it).rev().map(|d| Line::Disk(indent + 2, d)));
            }
        }
    }
    out.flush()
}

fn disk_line(indent: usize, disk: &Disk) -> String {
    let bytes = size::human(disk.head_bytes);
    match &disk.path {
        Some(path) => format!("{:indent$}{}  {bytes}\n", "", printable(&shown(path))),
        None => format!("{:indent$}disk {} (its head is not here)\n", "", disk.id),
    }
}

fn snapshot_line(indent: usize, snapshot: &SnapshotEntry) -> String {
    let name = match snapshot.name.as_str() {
        "" => printable(&shown(&snapshot.path)),
        name => format!("@{}", printable(name)),
    };
    let frees =
        snapshot.exclusive.map_or_else(String::new, |bytes| format!("  frees {}", size::human(bytes)));
    let used = match snapshot.used_by.len() {
        0 => String::new(),
        1 => "  used by 1 other disk".to_owned(),
        n => format!("  used by {n} other disks"),
    };
    let condemned = if snapshot.condemned { "  being deleted: delete it again to end that" } else { "" };
    format!("{:indent$}{name}  {}{frees}{used}{condemned}\n", "", utc(snapshot.created_ns))
}
