//! `cowdisk bench`

use std::path::PathBuf;

use cowdisk::error::{Error, Kind, Result};
use cowdisk::ops::{self, BenchOptions, BenchResult};
use cowdisk::storage::uring::Uring;
use serde::Serialize;

use crate::output::Output;
use crate::{engine, size};

/// Measure requests against an image in this process
///
/// The options are those of `qemu-img bench`. Without -w the image is only read.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cowdisk bench vm.cow -c 100000 -d 32 --random 1
  cowdisk bench -w test.cow -c 100000 -d 1 --random 1 --flush-interval 100
  cowdisk bench -w test.cow -c 100000 -d 8 --random 1 --flush-interval 1 --no-drain
  cowdisk bench test.cow -c 1000000 -d 32 --random 1 --queues 2")]
pub(crate) struct Args {
    /// An image, or its snapshot as IMAGE@NAME; -w changes what it holds
    image: PathBuf,
    /// Write: this overwrites what the disk holds
    #[arg(short)]
    write: bool,
    /// Number of requests
    #[arg(short, default_value_t = 75_000)]
    count: u64,
    /// Requests in flight
    #[arg(short, default_value_t = 64)]
    depth: usize,
    /// Bytes of a request
    #[arg(short, default_value = "4k", value_parser = size::sectors)]
    size: u64,
    /// Bytes from one request's start to the next one's [default: SIZE]
    #[arg(short = 'S', value_parser = size::sectors)]
    step: Option<u64>,
    /// Where the first request starts
    #[arg(short, default_value = "0", value_parser = size::sectors)]
    offset: u64,
    /// Random places, drawn from this seed
    #[arg(long, value_name = "SEED", conflicts_with_all = ["step", "offset"])]
    random: Option<u64>,
    /// Drain the queue and flush after so many writes
    #[arg(long, value_name = "N", default_value_t = 0)]
    flush_interval: u64,
    /// Do not drain: each of the DEPTH tasks flushes after so many writes of its own
    #[arg(long, requires = "flush_interval")]
    no_drain: bool,
    /// Queues, each with a thread and DEPTH requests in flight
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: usize,
}

#[derive(Serialize)]
struct Measured {
    requests: u64,
    bytes: u64,
    seconds: f64,
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    if args.flush_interval > 0 && !args.write {
        return Err(Error::new(Kind::Usage, "--flush-interval is for writes: -w"));
    }
    let image = args.image.clone();
    let options = BenchOptions {
        write: args.write,
        count: args.count,
        depth: args.depth,
        size: args.size,
        step: args.step.unwrap_or(args.size),
        offset: args.offset,
        random: args.random,
        flush_interval: args.flush_interval,
        no_drain: args.no_drain,
        queues: args.queues,
    };
    let result = engine::run(async move {
        let path = engine::locate(&image).await?;
        let open = if options.write { engine::to_write() } else { engine::to_read() };
        ops::bench(&Uring, &path, &open, &options).await
    })?;
    print(&measured(&result), out)?;
    Ok(0)
}

fn measured(result: &BenchResult) -> Measured {
    let seconds = result.elapsed.as_secs_f64();
    let quantile = |share| result.latency.quantile_us(share);
    Measured {
        requests: result.requests,
        bytes: result.bytes,
        seconds,
        iops: result.requests as f64 / seconds.max(1e-9),
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        p999_us: quantile(0.999),
    }
}

fn print(m: &Measured, out: &Output) -> Result<()> {
    if out.json() {
        return out.object(m);
    }
    let rate = size::human((m.bytes as f64 / m.seconds.max(1e-9)) as u64);
    out.line(format!("{} requests, {} in {:.3} s", m.requests, size::human(m.bytes), m.seconds))?;
    out.line(format!("{:.0} requests/s, {rate}/s", m.iops))?;
    out.line(format!("latency: {:.1} us half, {:.1} us 99 %, {:.1} us 99.9 %", m.p50_us, m.p99_us, m.p999_us))
}
