//! `cowdisk map`

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use cowdisk::chain::{Image, SnapshotName, open_chain};
use cowdisk::error::{Result, printable};
use cowdisk::ops::{self, MapRun, RunState};
use cowdisk::storage::uring::Uring;
use serde::Serialize;

use crate::engine;
use crate::output::Output;

/// List where the content of a disk is
///
/// One line for each run of the disk: start and length in bytes, what it reads as, the file that holds it, the offset
/// there. `data` comes from a file, `zero` was written or discarded as zeros, a `hole` was never written.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cowdisk map vm.cow
  cowdisk map --json vm.cow@before-upgrade
  cowdisk map vm.cow --since before-upgrade")]
pub(crate) struct Args {
    /// An image, or its snapshot as IMAGE@NAME
    image: PathBuf,
    /// Only what was changed since this snapshot of the image
    #[arg(long, value_name = "NAME")]
    since: Option<String>,
}

#[derive(Serialize)]
struct Run {
    start: u64,
    length: u64,
    state: &'static str,
    layer: Option<String>,
    offset: Option<u64>,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let lister = Rc::new(Lister::new(out.clone()));
    engine::run(async move {
        let path = engine::locate(&args.image).await?;
        let (image, _) = open_chain(&Uring, &path, &engine::to_read()).await?;
        let since = match args.since {
            Some(name) => Some(open_snapshot(&path, &SnapshotName::new(&name)?).await?),
            None => None,
        };
        lister.begin()?;
        let mut printed = Ok(());
        let list = |run: MapRun<'_>| {
            printed = lister.run(&run);
            if printed.is_err() || lister.out.closed() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        match since {
            Some(since) => ops::map_since(&image.chain(), &since.chain(), list).await?,
            None => ops::map(&image.chain(), list).await?,
        }
        printed?;
        lister.end()
    })?;
    Ok(0)
}

async fn open_snapshot(image: &Path, name: &SnapshotName) -> Result<Image<Uring>> {
    let path = ops::find_snapshot(&Uring, image, name, &engine::search()).await?;
    Ok(open_chain(&Uring, &path, &engine::to_read()).await?.0)
}

/// Prints runs as they come: there may be millions.
struct Lister {
    out: Output,
    first: std::cell::Cell<bool>,
}

impl Lister {
    fn new(out: Output) -> Lister {
        Lister { out, first: std::cell::Cell::new(true) }
    }

    fn begin(&self) -> Result<()> {
        match self.out.json() {
            true => self.out.bytes(b"{\"runs\":["),
            false => self.out.line(format!("{:>16} {:>16} state {:>16} file", "start", "length", "offset")),
        }
    }

    fn run(&self, run: &MapRun<'_>) -> Result<()> {
        let state = match run.state {
            RunState::Data => "data",
            RunState::Zero => "zero",
            RunState::Hole => "hole",
        };
        let layer = run.layer.map(|l| l.to_string_lossy().into_owned());
        let (start, length, offset) = (run.start, run.length, run.offset);
        if !self.out.json() {
            let offset = offset.map_or_else(|| "-".to_owned(), |o| o.to_string());
            let layer = layer.map_or_else(|| "-".to_owned(), |l| printable(&l));
            return self.out.text(format!("{start:>16} {length:>16} {state}  {offset:>16} {layer}\n"));
        }
        if !self.first.replace(false) {
            self.out.bytes(b",")?;
        }
        self.out.text(crate::output::json(&Run { start, length, state, layer, offset })?)
    }

    fn end(&self) -> Result<()> {
        if self.out.json() {
            self.out.bytes(b"]}\n")?;
        }
        self.out.flush()
    }
}
