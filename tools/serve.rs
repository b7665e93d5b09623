//! `cowdisk serve`

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;
use cowdisk::error::{Result, printable};
use cowdisk::limits::DEFAULT_CACHE_BYTES;
use cowdisk::nbd::Address;
use cowdisk::serve::{self, FrontendChoice, Log, Mode, ServeOptions};
use cowdisk::ublk::{CopyMode, FeatureChoice, OnDeath};
use serde_json::json;

use crate::output::Output;
use crate::{engine, size};

/// Make an image available as a block device or over NBD
#[derive(clap::Args)]
#[command(after_help = "\
Prints one line when the disk can be used: `ready /dev/ublkb0` or `ready nbd+unix:///?socket=PATH`.
SIGTERM and SIGINT end it cleanly. A ublk device that somebody has open then waits, with its requests
held, for the next `serve` of the same image.

Examples:
  cowdisk serve vm.cow
  cowdisk serve vm.cow --detach
  cowdisk serve vm.cow --frontend nbd --nbd unix:/tmp/vm.sock
  cowdisk serve vm.cow@before-upgrade --read-only
  cowdisk serve vm.cow --temporary --frontend nbd -- sh -c 'nbdinfo \"$COWDISK_URI\"'")]
pub(crate) struct Args {
    /// IMAGE, or its snapshot IMAGE@NAME with --read-only or --temporary
    image: PathBuf,
    /// Write nothing, not even recovery
    #[arg(long, conflicts_with = "temporary")]
    read_only: bool,
    /// Let what is written vanish at the end
    #[arg(long)]
    temporary: bool,
    /// Name of the disk, by default the file's without its extension
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// How the disk is made available; auto: ublk where it can be used, else NBD
    #[arg(long, value_enum, default_value = "auto")]
    frontend: Frontend,
    /// Where the NBD server listens: unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDR", value_parser = address)]
    nbd: Option<Address>,
    /// Queues, each with a thread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: u16,
    /// Requests in progress per queue, or per NBD connection
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    depth: u16,
    /// Who copies data on ublk, and when; copy: the driver; get-data: the driver, when the daemon asks; user-copy: the daemon
    #[arg(long, value_enum, hide = true)]
    ublk_mode: Option<UblkMode>,
    /// Features of ublk that must be used, or must not: +NAME,-NAME
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, hide = true)]
    ublk_features: Option<FeatureChoice>,
    /// What becomes of a ublk device whose daemon dies or leaves, until the next `serve`: its requests wait, or fail
    /// (Linux 6.13), or the device is removed. Settled when the device is made
    #[arg(long, value_enum, value_name = "WHAT", default_value = "wait", conflicts_with = "temporary")]
    on_death: WhenDead,
    /// Memory for the caches
    #[arg(long, value_name = "SIZE", default_value_t = DEFAULT_CACHE_BYTES, value_parser = size::bytes)]
    cache_size: u64,
    /// The N of /dev/ublkbN
    #[arg(long, value_name = "N")]
    device_id: Option<u32>,
    /// Also if another machine that has the file system too has not closed the image. Never overrides a lock
    #[arg(long)]
    force: bool,
    /// Return when the disk is ready; a parent of the daemon starts it again if it dies
    #[arg(long, conflicts_with = "command")]
    detach: bool,
    /// Be that parent, with this number
    #[arg(long, hide = true, value_name = "N", conflicts_with_all = ["detach", "command"])]
    keep: Option<u64>,
    /// Be the daemon of that parent
    #[arg(long, hide = true, value_name = "N", conflicts_with_all = ["detach", "keep", "command"])]
    kept: Option<u64>,
    /// Serve while this command runs, with COWDISK_DEVICE or COWDISK_URI in its environment, and exit with its status
    #[arg(last = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Frontend {
    Auto,
    Ublk,
    Nbd,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhenDead {
    Wait,
    Fail,
    Remove,
}

#[derive(Clone, Copy, ValueEnum)]
enum UblkMode {
    Copy,
    GetData,
    UserCopy,
}

fn address(text: &str) -> Result<Address, String> {
    Address::parse(text).map_err(|e| e.message())
}

fn name(text: &str) -> Result<String, String> {
    match serve::is_disk_name(text) {
        true => Ok(text.to_owned()),
        false => Err("a name has up to 100 bytes, no `/` or control characters, and no `.` in front".into()),
    }
}

impl Args {
    fn options(self) -> ServeOptions {
        let mode = match (self.read_only, self.temporary) {
            (true, _) => Mode::ReadOnly,
            (_, true) => Mode::Temporary,
            _ => Mode::Write,
        };
        let frontend = match self.frontend {
            Frontend::Auto => FrontendChoice::Auto,
            Frontend::Ublk => FrontendChoice::Ublk,
            Frontend::Nbd => FrontendChoice::Nbd,
        };
        let copy = self.ublk_mode.map(|mode| match mode {
            UblkMode::Copy => CopyMode::AtFetch,
            UblkMode::GetData => CopyMode::GetData,
            UblkMode::UserCopy => CopyMode::UserCopy,
        });
        let on_death = match self.on_death {
            WhenDead::Wait => OnDeath::Wait,
            WhenDead::Fail => OnDeath::Fail,
            WhenDead::Remove => OnDeath::Remove,
        };
        ServeOptions {
            mode,
            copy,
            on_death,
            ublk_features: self.ublk_features.unwrap_or_default(),
            name: self.name,
            frontend,
            nbd: self.nbd,
            queues: self.queues,
            depth: self.depth,
            cache_bytes: self.cache_size,
            device_id: self.device_id,
            search: engine::search(),
            keeper: self.keep.or(self.kept),
            force: self.force,
            command: self.command,
            ..ServeOptions::new(self.image)
        }
    }
}

/// This process's arguments, with `new` in the place of the option `old`.
fn arguments(old: &str, new: &str) -> Vec<OsString> {
    let arguments = std::env::args_os().skip(1);
    arguments.map(|argument| if argument == old { new.into() } else { argument }).collect()
}

fn detach(out: &Output) -> Result<u8> {
    let keep = format!("--keep={}", serve::new_tag()?);
    let mut told = Ok(());
    // As the daemon printed it: for people, or as JSON.
    let code = serve::detach(&arguments("--detach", &keep), |line| told = out.line(line))?;
    told.map(|()| code)
}

fn keep(args: Args, number: u64, out: &Output) -> Result<u8> {
    let arguments = arguments(&format!("--keep={number}"), &format!("--kept={number}"));
    let mut told = Ok(());
    let ready = |line: &str| {
        told = out.line(line);
        !out.closed()
    };
    let code = serve::keep(&args.options(), &arguments, |line| out.as_is(line), ready)?;
    told.map(|()| code)
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    if args.detach {
        return detach(out);
    }
    if let Some(number) = args.keep {
        return keep(args, number, out);
    }
    let log = Log::new(|line| {
        // Nobody to tell: nothing to do about it.
        let _ = writeln!(std::io::stderr().lock(), "cowdisk: {}", printable(line));
    });
    serve::serve(&args.options(), &log, |place| {
        let told = match out.json() {
            true => out.object(&json!({ "ready": place })),
            false => out.line(format!("ready {}", printable(place))),
        };
        if let Err(e) = told {
            out.note(e.to_string());
        }
    })
}
