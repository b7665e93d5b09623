//! What a process takes of the machine's memory.

use std::fs;

/// Bytes, as `/proc/PID/smaps_rollup` has them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Memory {
    /// Of this process alone: what is free again when it ends. The program's code, which all share, is not in it.
    pub private: u64,
    /// With its share of what several have.
    pub pss: u64,
}

pub fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    };
    Memory { private: field("Private_Clean:") + field("Private_Dirty:"), pss: field("Pss:") }
}

/// Files that the process has open.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
