//! The `cowdisk` command: one file per subcommand over a function of the library; printing in [`output`].

mod bench;
mod check;
mod create;
mod delete;
mod doctor;
mod engine;
mod fork;
mod info;
mod list;
mod map;
mod output;
mod plan;
mod rebase;
mod resize;
mod rollback;
mod serve;
mod size;
mod snapshot;
mod status;
mod stop;
mod udev;

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cowdisk::error::{Error, Kind, Result};

use output::Output;

/// Exit status for wrong usage.
pub(crate) const USAGE: u8 = 64;
/// Exit status for something in use: try again.
pub(crate) const BUSY: u8 = 75;

#[derive(Parser)]
#[command(name = "cowdisk", version, about, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "\
Examples:
  cowdisk create vm.cow --size 20G
  cowdisk create vm.cow --base debian.raw --base-format raw
  cowdisk serve vm.cow
  cowdisk snapshot vm.cow@before-upgrade
  cowdisk rollback vm.cow@before-upgrade
  cowdisk fork vm.cow@before-upgrade test.cow
  cowdisk delete vm.cow@before-upgrade
  cowdisk info vm.cow@before-upgrade

IMAGE is a path; IMAGE@NAME is its snapshot NAME. Exit status: 0, 1 failure, 64 wrong usage, 75 in use.")]
struct Cli {
    /// Print one JSON object, and errors as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(create::Args),
    Fork(fork::Args),
    Serve(serve::Args),
    Stop(stop::Args),
    Status(status::Args),
    Info(info::Args),
    List(list::Args),
    Map(map::Args),
    Snapshot(snapshot::Args),
    Rollback(rollback::Args),
    Delete(delete::Args),
    Rebase(rebase::Args),
    Resize(resize::Args),
    Check(check::Args),
    Bench(bench::Args),
    Doctor(doctor::Args),
    Udev(udev::Args),
}

fn main() -> ExitCode {
    // A chain that is too long for the limit that stays says so when it is opened.
    let _ = cowdisk::runtime::files::raise_open_files();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return ExitCode::from(refuse(&e)),
    };
    let out = Output::new(cli.json);
    let code = run(cli.command, &out).unwrap_or_else(|e| out.fail(&e));
    ExitCode::from(code)
}

fn run(command: Command, out: &Output) -> Result<u8> {
    match command {
        Command::Create(args) => create::run(args, out),
        Command::Fork(args) => fork::run(args, out),
        Command::Serve(args) => serve::run(args, out),
        Command::Stop(args) => stop::run(args, out),
        Command::Status(args) => status::run(args, out),
        Command::Info(args) => info::run(args, out),
        Command::List(args) => list::run(args, out),
        Command::Map(args) => map::run(args, out),
        Command::Snapshot(args) => snapshot::run(args, out),
        Command::Rollback(args) => rollback::run(args, out),
        Command::Delete(args) => delete::run(args, out),
        Command::Rebase(args) => rebase::run(args, out),
        Command::Resize(args) => resize::run(args, out),
        Command::Check(args) => check::run(args, out),
        Command::Bench(args) => bench::run(args, out),
        Command::Doctor(args) => doctor::run(args, out),
        Command::Udev(args) => udev::run(args, out),
    }
}

/// Prints what the command line parser has to say: help and version, or an error.
fn refuse(error: &clap::Error) -> u8 {
    let json = std::env::args_os().take_while(|a| a != "--").any(|a| a == OsStr::new("--json"));
    if error.use_stderr() && json {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        let message = first.strip_prefix("error: ").unwrap_or(first);
        return Output::new(true).fail(&Error::new(Kind::Usage, message));
    }
    // A closed pipe is success.
    let _ = error.print();
    if error.use_stderr() { USAGE } else { 0 }
}
