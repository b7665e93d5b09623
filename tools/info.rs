//! `cowdisk info`

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cowdisk::calendar;
use cowdisk::error::{Result, printable};
use cowdisk::format::{Parent, Superblock};
use cowdisk::ops::{self, LayerInfo};
use cowdisk::storage::uring::Uring;
use serde::Serialize;

use crate::output::Output;
use crate::{engine, size};

/// Show what an image's header says
///
/// Opens no other file without --chain or --files, takes no lock, and works while the image is in use.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cowdisk info vm.cow
  cowdisk info --json vm.cow@before-upgrade
  cowdisk info --files -0 vm.cow | tar -c --null -T - -f backup.tar")]
pub(crate) struct Args {
    /// An image, or its snapshot as IMAGE@NAME
    image: PathBuf,
    /// Show every layer down to the base
    #[arg(long)]
    chain: bool,
    /// List every file the disk needs, one per line
    #[arg(long, conflicts_with = "chain")]
    files: bool,
    /// End the names of --files with a zero byte
    #[arg(short = '0', requires = "files")]
    zero: bool,
}

#[derive(Serialize)]
struct Info {
    path: String,
    disk_id: String,
    layer_id: String,
    name: Option<String>,
    virtual_size: u64,
    block_size: u32,
    sector_size: u32,
    sealed: bool,
    clean: bool,
    in_use_by: Option<User>,
    /// Layers, this one included; known only with `--chain`.
    depth: Option<usize>,
    /// What the layer stands on, as recorded.
    base: Option<String>,
    base_format: Option<&'static str>,
    file_bytes: u64,
    allocated_bytes: u64,
    generation: u64,
    features: Vec<String>,
    created_ns: i64,
    sealed_ns: Option<i64>,
    journal_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<Vec<Info>>,
}

#[derive(Serialize)]
struct User {
    pid: u32,
    host: String,
    socket: String,
}

#[derive(Serialize)]
struct Files {
    files: Vec<String>,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let follow = args.chain || args.files;
    let image = args.image.clone();
    let (layers, base) = engine::run(async move {
        let search = engine::search();
        let path = ops::locate(&Uring, &image, &search).await?;
        match follow {
            true => ops::info_chain(&Uring, &path, &search).await,
            false => Ok((vec![ops::info(&Uring, &path).await?], None)),
        }
    })?;
    if args.files {
        return files(&layers, base.as_deref(), args.zero, out);
    }
    let depth = args.chain.then_some(layers.len());
    let infos: Vec<Info> =
        layers.iter().enumerate().map(|(i, l)| describe(l, depth.map(|d| d - i))).collect();
    print(infos, args.chain, base.as_deref(), out)?;
    Ok(0)
}

fn files(layers: &[LayerInfo], base: Option<&Path>, zero: bool, out: &Output) -> Result<u8> {
    let paths = layers.iter().map(|l| l.path.as_path()).chain(base);
    if out.json() {
        let files = paths.map(|p| p.to_string_lossy().into_owned()).collect();
        out.object(&Files { files })?;
        return Ok(0);
    }
    for path in paths {
        // For other programs: as it is.
        out.bytes(path.as_os_str().as_bytes())?;
        out.bytes(if zero { b"\0" } else { b"\n" })?;
    }
    out.flush()?;
    Ok(0)
}

fn describe(layer: &LayerInfo, depth: Option<usize>) -> Info {
    let sb = &layer.sb;
    let (base, base_format) = recorded_parent(sb);
    let user =
        |h: &cowdisk::format::Holder| User { pid: h.pid, host: h.host.clone(), socket: h.socket.clone() };
    Info {
        path: layer.path.to_string_lossy().into_owned(),
        disk_id: sb.disk.to_string(),
        layer_id: sb.layer.to_string(),
        name: sb.sealed.as_ref().map(|s| s.name.clone()).filter(|n| !n.is_empty()),
        virtual_size: sb.virtual_size,
        block_size: sb.block_size,
        sector_size: sb.sector_size,
        sealed: sb.sealed.is_some(),
        clean: layer.clean,
        in_use_by: layer.in_use_by.as_ref().map(user),
        depth,
        base,
        base_format,
        file_bytes: layer.meta.len,
        allocated_bytes: layer.meta.allocated,
        generation: sb.generation,
        features: layer.features(),
        created_ns: sb.created_ns,
        sealed_ns: sb.sealed.as_ref().map(|s| s.time_ns),
        journal_bytes: sb.ring().map_or(0, |r| r.blocks * u64::from(sb.block_size)),
        chain: None,
    }
}

/// Where the parent was when the layer was made, and what it is.
fn recorded_parent(sb: &Superblock) -> (Option<String>, Option<&'static str>) {
    let (hints, format) = match &sb.parent {
        Parent::None => return (None, None),
        Parent::Layer { hints, .. } => (hints, "cow"),
        Parent::Foreign { hints, .. } => (hints, "raw"),
    };
    let place = if hints.absolute.is_empty() { &hints.relative } else { &hints.absolute };
    (Some(place.clone()), Some(format))
}

fn print(mut infos: Vec<Info>, chain: bool, base: Option<&Path>, out: &Output) -> Result<()> {
    if !out.json() {
        for info in &infos {
            lines(info, out)?;
        }
        return match base {
            Some(path) => out.line(format!("base          {}", printable(&path.to_string_lossy()))),
            None => Ok(()),
        };
    }
    let below = infos.split_off(1);
    let Some(mut top) = infos.pop() else { return Ok(()) };
    top.chain = chain.then_some(below);
    out.object(&top)
}

fn lines(info: &Info, out: &Output) -> Result<()> {
    let state = match (info.sealed, &info.in_use_by, info.clean) {
        (_, Some(user), _) => format!("in use by process {} on host {}", user.pid, printable(&user.host)),
        (true, ..) => "sealed".to_owned(),
        (false, None, true) => "clean".to_owned(),
        (false, None, false) => "not closed: the next open for writing recovers it".to_owned(),
    };
    out.line(printable(&info.path))?;
    if let Some(name) = &info.name {
        out.line(format!("  snapshot    {}", printable(name)))?;
    }
    out.line(format!("  size        {} ({} bytes)", size::human(info.virtual_size), info.virtual_size))?;
    out.line(format!("  on disk     {}", size::human(info.allocated_bytes)))?;
    out.line(format!("  state       {state}"))?;
    if let Some(base) = &info.base {
        let format = info.base_format.unwrap_or_default();
        out.line(format!("  stands on   {} ({format})", printable(base)))?;
    }
    if let Some(ns) = info.sealed_ns.or(Some(info.created_ns)) {
        out.line(format!(
            "  {}  {}",
            if info.sealed { "taken     " } else { "created   " },
            calendar::utc(ns)
        ))?;
    }
    out.line(format!("  sectors     {} bytes", info.sector_size))?;
    out.line(format!("  disk id     {}", info.disk_id))?;
    out.line(format!("  layer id    {}", info.layer_id))?;
    out.line(format!("  generation  {}", info.generation))
}
