//! The numbers of the interface: commands, results, flags, states, operations.

use super::{CtrlCmd, IoCmd};

/// A command of the interface: its name for messages, its number, and its ioctl-style encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    /// As in the header, without prefix.
    pub name: &'static str,
    /// The legacy number; kernels may be built without it.
    pub raw: u32,
    /// The number in ioctl encoding, from 6.4.
    pub encoded: u32,
}

impl Command {
    /// `_IOR('u', …)` (2) or `_IOWR('u', …)` (3) over a payload of `size` bytes.
    const fn new(name: &'static str, direction: u32, raw: u32, size: usize) -> Command {
        assert!(raw < 256 && size < 1 << 14);
        #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
        let encoded = direction << 30 | (size as u32) << 16 | (b'u' as u32) << 8 | raw;
        Command { name, raw, encoded }
    }
    const fn get(name: &'static str, raw: u32) -> Command {
        Command::new(name, 2, raw, CtrlCmd::SIZE)
    }
    const fn set(name: &'static str, raw: u32) -> Command {
        Command::new(name, 3, raw, CtrlCmd::SIZE)
    }
    const fn io(name: &'static str, raw: u32) -> Command {
        Command::new(name, 3, raw, IoCmd::SIZE)
    }
}

/// Admin commands (`UBLK_U_CMD_*`), sent to `/dev/ublk-control`.
pub mod admin {
    use super::Command;

    /// The CPUs whose requests a queue gets.
    pub const GET_QUEUE_AFFINITY: Command = Command::get("GET_QUEUE_AFFINITY", 0x01);
    /// [`super::super::CtrlDevInfo`] of a device.
    pub const GET_DEV_INFO: Command = Command::get("GET_DEV_INFO", 0x02);
    /// Makes a device. Unknown flags are cleared in silence, queues and depth lowered.
    pub const ADD_DEV: Command = Command::set("ADD_DEV", 0x04);
    /// Removes a device; waits for the last reference to its character device.
    pub const DEL_DEV: Command = Command::set("DEL_DEV", 0x05);
    /// Makes the disk appear; waits until every tag of every queue is fetched.
    pub const START_DEV: Command = Command::set("START_DEV", 0x06);
    /// Removes the disk; waits for requests in flight.
    pub const STOP_DEV: Command = Command::set("STOP_DEV", 0x07);
    /// Sets [`super::super::Params`], before START_DEV. Unknown types are cleared in silence.
    pub const SET_PARAMS: Command = Command::set("SET_PARAMS", 0x08);
    /// Reads [`super::super::Params`].
    pub const GET_PARAMS: Command = Command::get("GET_PARAMS", 0x09);
    /// Makes a waiting device ready for new fetches (6.1).
    pub const START_USER_RECOVERY: Command = Command::set("START_USER_RECOVERY", 0x10);
    /// Lets requests flow again once every tag is fetched (6.1).
    pub const END_USER_RECOVERY: Command = Command::set("END_USER_RECOVERY", 0x11);
    /// As GET_DEV_INFO, with the device's path, for unprivileged devices (6.3).
    pub const GET_DEV_INFO2: Command = Command::get("GET_DEV_INFO2", 0x12);
    /// The feature bits that the driver knows (6.5).
    pub const GET_FEATURES: Command = Command::get("GET_FEATURES", 0x13);
    /// DEL_DEV that does not wait (6.9).
    pub const DEL_DEV_ASYNC: Command = Command::get("DEL_DEV_ASYNC", 0x14);
    /// A new size in sectors (6.16).
    pub const UPDATE_SIZE: Command = Command::set("UPDATE_SIZE", 0x15);
    /// Takes the idle tags away from the server, in milliseconds at most (6.16).
    pub const QUIESCE_DEV: Command = Command::set("QUIESCE_DEV", 0x16);
    /// STOP_DEV that fails with EBUSY while somebody has the disk open (7.0).
    pub const TRY_STOP_DEV: Command = Command::set("TRY_STOP_DEV", 0x17);
    /// Registers shared memory (7.1).
    pub const REG_BUF: Command = Command::set("REG_BUF", 0x18);
    /// Forgets it (7.1).
    pub const UNREG_BUF: Command = Command::set("UNREG_BUF", 0x19);
}

/// Commands of a queue (`UBLK_U_IO_*`), sent to `/dev/ublkcN`.
pub mod io {
    use super::Command;

    /// Asks for the first request of a tag.
    pub const FETCH_REQ: Command = Command::io("FETCH_REQ", 0x20);
    /// Ends a request and asks for the tag's next one.
    pub const COMMIT_AND_FETCH_REQ: Command = Command::io("COMMIT_AND_FETCH_REQ", 0x21);
    /// Names the buffer of a write after it is known.
    pub const NEED_GET_DATA: Command = Command::io("NEED_GET_DATA", 0x22);
    /// Puts a request's pages into the ring's buffer table (6.15).
    pub const REGISTER_IO_BUF: Command = Command::io("REGISTER_IO_BUF", 0x23);
    /// Takes them out (6.15).
    pub const UNREGISTER_IO_BUF: Command = Command::io("UNREGISTER_IO_BUF", 0x24);
}

/// Results of fetches.
pub mod io_result {
    /// There is a request.
    pub const OK: i32 = 0;
    /// The buffer of a write is asked for.
    pub const NEED_GET_DATA: i32 = 1;
    /// The tag is no longer served here: do not fetch again.
    pub const ABORT: i32 = -libc::ENODEV;
}

/// Features (`UBLK_F_*`).
pub mod flag {
    /// The server moves pages without seeing them.
    pub const SUPPORT_ZERO_COPY: u64 = 1 << 0;
    /// Forced by the driver.
    pub const URING_CMD_COMP_IN_TASK: u64 = 1 << 1;
    /// See [`super::io::NEED_GET_DATA`].
    pub const NEED_GET_DATA: u64 = 1 << 2;
    /// The disk outlives its server.
    pub const USER_RECOVERY: u64 = 1 << 3;
    /// Requests in flight are delivered again to the next server.
    pub const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// Made by an ordinary user.
    pub const UNPRIVILEGED_DEV: u64 = 1 << 5;
    /// Ioctl-encoded commands.
    pub const CMD_IOCTL_ENCODE: u64 = 1 << 6;
    /// Data by pread and pwrite.
    pub const USER_COPY: u64 = 1 << 7;
    /// Zoned.
    pub const ZONED: u64 = 1 << 8;
    /// Without a server requests fail instead of waiting.
    pub const USER_RECOVERY_FAIL_IO: u64 = 1 << 9;
    /// See [`super::admin::UPDATE_SIZE`].
    pub const UPDATE_SIZE: u64 = 1 << 10;
    /// Pages are registered without a command.
    pub const AUTO_BUF_REG: u64 = 1 << 11;
    /// See [`super::admin::QUIESCE_DEV`].
    pub const QUIESCE: u64 = 1 << 12;
    /// A tag belongs to a thread, not a queue.
    pub const PER_IO_DAEMON: u64 = 1 << 13;
    /// Buffers may be registered by other threads.
    pub const BUF_REG_OFF_DAEMON: u64 = 1 << 14;
    /// Batched commands.
    pub const BATCH_IO: u64 = 1 << 15;
    /// Integrity data.
    pub const INTEGRITY: u64 = 1 << 16;
    /// See [`super::admin::TRY_STOP_DEV`].
    pub const SAFE_STOP_DEV: u64 = 1 << 17;
    /// No partition scan at start.
    pub const NO_AUTO_PART_SCAN: u64 = 1 << 18;
    /// Shared-memory zero copy.
    pub const SHMEM_ZC: u64 = 1 << 19;
    /// Descriptors have [`super::super::CtrlDevInfo::io_desc_size`] bytes.
    pub const IO_DESC_SIZE: u64 = 1 << 20;
}

/// States of a device (`UBLK_S_DEV_*`).
pub mod state {
    /// Without a disk: not started, or stopped.
    pub const DEAD: u16 = 0;
    /// Served.
    pub const LIVE: u16 = 1;
    /// Without a server; requests wait.
    pub const QUIESCED: u16 = 2;
    /// Without a server; requests fail.
    pub const FAIL_IO: u16 = 3;
}

/// Operations (`UBLK_IO_OP_*`), the low eight bits of `op_flags`.
pub mod op {
    /// Read.
    pub const READ: u32 = 0;
    /// Write.
    pub const WRITE: u32 = 1;
    /// Make acknowledged writes durable.
    pub const FLUSH: u32 = 2;
    /// Give space back.
    pub const DISCARD: u32 = 3;
    /// Declared, never sent.
    pub const WRITE_SAME: u32 = 4;
    /// Zeroes.
    pub const WRITE_ZEROES: u32 = 5;
    /// The bits of an operation.
    pub const MASK: u32 = 0xff;
}

/// Request flags (`UBLK_IO_F_*`): bits of `op_flags`.
pub mod io_flag {
    /// Hint: no retries.
    pub const FAILFAST_DEV: u32 = 1 << 8;
    /// Hint.
    pub const FAILFAST_TRANSPORT: u32 = 1 << 9;
    /// Hint.
    pub const FAILFAST_DRIVER: u32 = 1 << 10;
    /// Hint: metadata of a filesystem.
    pub const META: u32 = 1 << 11;
    /// Durable when acknowledged.
    pub const FUA: u32 = 1 << 13;
    /// Write-zeroes must keep the space.
    pub const NOUNMAP: u32 = 1 << 15;
    /// Hint: swap.
    pub const SWAP: u32 = 1 << 16;
    /// Automatic registration failed.
    pub const NEED_REG_BUF: u32 = 1 << 17;
    /// There is integrity data.
    pub const INTEGRITY: u32 = 1 << 18;
    /// The data lies in shared memory.
    pub const SHMEM_ZC: u32 = 1 << 19;
}

/// Attributes of [`super::ParamBasic`] (`UBLK_ATTR_*`).
pub mod attr {
    /// Writes are refused.
    pub const READ_ONLY: u32 = 1 << 0;
    /// It has heads that move.
    pub const ROTATIONAL: u32 = 1 << 1;
    /// Without it the kernel never sends a FLUSH.
    pub const VOLATILE_CACHE: u32 = 1 << 2;
    /// FUA arrives as a flag; ignored without `VOLATILE_CACHE`.
    pub const FUA: u32 = 1 << 3;
}

/// Groups of [`super::Params`] (`UBLK_PARAM_TYPE_*`).
pub mod param {
    /// [`super::super::ParamBasic`].
    pub const BASIC: u32 = 1 << 0;
    /// [`super::super::ParamDiscard`].
    pub const DISCARD: u32 = 1 << 1;
    /// [`super::super::ParamDevt`].
    pub const DEVT: u32 = 1 << 2;
    /// Zones.
    pub const ZONED: u32 = 1 << 3;
    /// Memory alignment.
    pub const DMA_ALIGN: u32 = 1 << 4;
    /// Segment limits.
    pub const SEGMENT: u32 = 1 << 5;
    /// Integrity.
    pub const INTEGRITY: u32 = 1 << 6;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_numbers_of_the_header() {
        let table = [
            (admin::GET_QUEUE_AFFINITY, 0x8020_7501),
            (admin::GET_DEV_INFO, 0x8020_7502),
            (admin::ADD_DEV, 0xc020_7504),
            (admin::DEL_DEV, 0xc020_7505),
            (admin::START_DEV, 0xc020_7506),
            (admin::STOP_DEV, 0xc020_7507),
            (admin::SET_PARAMS, 0xc020_7508),
            (admin::GET_PARAMS, 0x8020_7509),
            (admin::START_USER_RECOVERY, 0xc020_7510),
            (admin::END_USER_RECOVERY, 0xc020_7511),
            (admin::GET_DEV_INFO2, 0x8020_7512),
            (admin::GET_FEATURES, 0x8020_7513),
            (admin::DEL_DEV_ASYNC, 0x8020_7514),
            (admin::UPDATE_SIZE, 0xc020_7515),
            (admin::QUIESCE_DEV, 0xc020_7516),
            (admin::TRY_STOP_DEV, 0xc020_7517),
            (admin::REG_BUF, 0xc020_7518),
            (admin::UNREG_BUF, 0xc020_7519),
            (io::FETCH_REQ, 0xc010_7520),
            (io::COMMIT_AND_FETCH_REQ, 0xc010_7521),
            (io::NEED_GET_DATA, 0xc010_7522),
            (io::REGISTER_IO_BUF, 0xc010_7523),
            (io::UNREGISTER_IO_BUF, 0xc010_7524),
        ];
        for (command, encoded) in table {
            assert_eq!(command.encoded, encoded, "{}", command.name);
            assert_eq!(command.raw, encoded & 0xff, "{}", command.name);
        }
    }
}
