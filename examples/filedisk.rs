//! A plain file as `/dev/ublkbN`, without the engine: shows the ublk frontend by itself.
//!
//!     filedisk FILE STATE [--size BYTES] [--queues N] [--depth N] [--max-io BYTES] [--sector-size N] [--read-only]
//!     filedisk --remove STATE [--force]
//!     filedisk --list
//!
//! STATE is a file that holds the tag of the device's start while it exists: with it the same command takes a waiting
//! device up again. SIGTERM: removes the device, or leaves it waiting if somebody has it open. SIGUSR1: prints the
//! counters.
#![expect(unsafe_code, reason = "waiting for signals")]
#![expect(clippy::print_stdout, reason = "a command")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser;
use cowdisk::device::{Disk, Errno, Geometry, Queue};
use cowdisk::storage::uring::{Uring, UringFile};
use cowdisk::storage::{Done, File, IoBuf, IoVecs, Lock, OpenHow, Storage, read_exact, write_all};
use cowdisk::ublk::{self, Device, DeviceInfo, RecoverOptions, StartOptions, State};
use cowdisk::{Kind, error};

#[derive(Parser)]
struct Options {
    #[arg(long)]
    list: bool,
    #[arg(long, value_name = "STATE")]
    remove: Option<PathBuf>,
    #[arg(long)]
    force: bool,
    file: Option<PathBuf>,
    state: Option<PathBuf>,
    #[arg(long, default_value_t = 256 << 20)]
    size: u64,
    #[arg(long, default_value_t = 1)]
    queues: u16,
    #[arg(long, default_value_t = 64)]
    depth: u16,
    #[arg(long, default_value_t = 128 << 10)]
    max_io: u32,
    #[arg(long, default_value_t = 512)]
    sector_size: u32,
    #[arg(long)]
    read_only: bool,
    #[arg(long)]
    id: Option<u32>,
}

/// A file that is the disk, byte for byte.
#[derive(Clone)]
struct FileDisk {
    file: UringFile,
    geometry: Geometry,
}

fn errno(error: &std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

fn done(done: Done) -> Result<(), Errno> {
    done.result.map(drop).map_err(|e| errno(&e))
}

impl FileDisk {
    async fn sync_if(&self, wanted: bool) -> Result<(), Errno> {
        if wanted { done(self.file.sync_data().await) } else { Ok(()) }
    }
}

impl Queue for FileDisk {
    async fn read(&self, pos: u64, buf: IoBuf) -> Result<(), Errno> {
        read_exact(&self.file, buf, pos).await.map_err(|e| errno(&e))
    }
    async fn write(&self, pos: u64, buf: IoBuf, fua: bool) -> Result<(), Errno> {
        write_all(&self.file, IoVecs::one(buf), pos).await.0.map_err(|e| errno(&e))?;
        self.sync_if(fua).await
    }
    async fn flush(&self) -> Result<(), Errno> {
        self.sync_if(true).await
    }
    async fn discard(&self, pos: u64, len: u64, fua: bool) -> Result<(), Errno> {
        done(self.file.punch(pos, len).await)?;
        self.sync_if(fua).await
    }
    async fn write_zeroes(&self, pos: u64, len: u64, unmap: bool, fua: bool) -> Result<(), Errno> {
        done(self.file.punch(pos, len).await)?;
        if !unmap {
            done(self.file.allocate(pos, len).await)?;
        }
        self.sync_if(fua).await
    }
}

impl Disk for FileDisk {
    type Queue = FileDisk;
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn queue(&self, _index: usize) -> Rc<FileDisk> {
        Rc::new(self.clone())
    }
}

/// Opens or makes the file. Its lock is free only when the last write of a dead server has landed.
fn open(options: &Options, path: &Path) -> Result<FileDisk, Box<dyn Error>> {
    let how = OpenHow { write: true, direct: true, regular_only: true };
    let file = if path.exists() { Uring.open(path, how)? } else { Uring.create(path, 0o600)? };
    let end = Instant::now() + Duration::from_secs(30);
    while !file.try_lock(Lock::Exclusive)? {
        if Instant::now() > end {
            return Err("another process has the file".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    if file.meta()?.len < options.size {
        file.set_len(options.size)?;
    }
    let (size, sector_size, read_only) = (options.size, options.sector_size, options.read_only);
    let geometry = Geometry { size, sector_size, read_only, block_size: 4096 };
    Ok(FileDisk { file, geometry })
}

/// The tag of the start that STATE records, and its device.
fn recorded(state: &Path) -> error::Result<Option<DeviceInfo>> {
    let text = std::fs::read_to_string(state).unwrap_or_default();
    text.trim().parse().map_or(Ok(None), ublk::find_device)
}

/// Takes up the device that STATE names, if it waits; starts a new one otherwise.
fn serve(disk: &FileDisk, options: &Options, state: &Path) -> error::Result<Device> {
    if let Some(DeviceInfo { id, tag, state, .. }) = recorded(state)? {
        if state != State::Dead {
            let begin = Instant::now();
            let device =
                Device::recover(disk, &RecoverOptions { device_id: id, tag, ..RecoverOptions::default() })?;
            eprintln!("recovered in {} ms", begin.elapsed().as_millis());
            return Ok(device);
        }
        // Its server died before the disk was there.
        ublk::remove_waiting(id, tag, false)?;
    }
    let mut random = [0; 8];
    Uring.random(&mut random).map_err(|e| cowdisk::Error::io("random", e))?;
    let tag = u64::from_ne_bytes(random);
    // Before the start, so that the device is found whenever this process dies.
    std::fs::write(state, format!("{tag}\n")).map_err(|e| cowdisk::Error::io("write", e).at(state))?;
    let &Options { queues, depth, max_io, id: device_id, .. } = options;
    let start = StartOptions { device_id, queues, depth, max_io, tag, ..StartOptions::default() };
    Device::start(disk, &start)
}

/// The signals of this program, kept from interrupting anything; to be called before any thread exists.
fn block_signals() -> libc::sigset_t {
    // SAFETY: the set is initialized by sigemptyset before it is read; the calls take live pointers.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    }
}

/// The next signal, or `None` after a while.
fn next_signal(set: &libc::sigset_t) -> Option<i32> {
    let timeout = libc::timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    // SAFETY: live pointers; no information about the sender is asked for.
    let signal = unsafe { libc::sigtimedwait(set, std::ptr::null_mut(), &timeout) };
    (signal > 0).then_some(signal)
}

fn run_disk(options: &Options, file: &Path, state: &Path) -> Result<(), Box<dyn Error>> {
    let signals = block_signals();
    let disk = open(options, file)?;
    let mut device = serve(&disk, options, state)?;
    for warning in device.warnings() {
        eprintln!("warning: {warning}");
    }
    eprintln!("features: {:?}", device.features());
    println!("ready {}", device.node().display());
    loop {
        match next_signal(&signals) {
            Some(libc::SIGUSR1) => println!("{:?}", device.stats()),
            None if !device.ended() => {}
            _ => break,
        }
    }
    let begin = Instant::now();
    match device.stop(false) {
        Ok(()) => std::fs::remove_file(state)?,
        Err(e) if e.kind() == Kind::InUse => {
            eprintln!("{e}");
            device.leave_waiting()?;
            println!("waiting");
        }
        Err(e) => return Err(e.into()),
    }
    eprintln!("ended in {} ms", begin.elapsed().as_millis());
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if options.list {
        for device in ublk::list_devices()? {
            println!("{device:?}");
        }
        return Ok(());
    }
    if let Some(state) = &options.remove {
        let device = recorded(state)?.ok_or("there is no device of that start")?;
        return Ok(ublk::remove_waiting(device.id, device.tag, options.force)?);
    }
    match (&options.file, &options.state) {
        (Some(file), Some(state)) => run_disk(&options, file, state),
        _ => Err("FILE and STATE are needed".into()),
    }
}
