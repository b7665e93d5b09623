//! The kernel's interface, as `linux/ublk_cmd.h` declares it (up to 7.3): numbers, structures, bytes.
//!
//! The structures are written to and read from bytes field by field, so nothing here is unsafe; sizes and offsets
//! are checked at compile time. Numbers are in the machine's byte order, as the kernel has them.

mod numbers;

use std::mem::{offset_of, size_of};

pub use numbers::{Command, admin, attr, flag, io, io_flag, io_result, op, param, state};

/// A number or structure of the interface: a fixed count of bytes in the machine's order.
pub trait Abi: Copy {
    /// Writes the value; `bytes` has its size.
    fn put(&self, bytes: &mut [u8]);
    /// Reads a value; `bytes` has its size.
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! abi_numbers {
    ($($number:ty),*) => { $(
        impl Abi for $number {
            fn put(&self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_ne_bytes());
            }
            fn get(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<$number>()];
                own.copy_from_slice(bytes);
                <$number>::from_ne_bytes(own)
            }
        }
    )* };
}
abi_numbers!(u8, u16, u32, u64, i32);

impl<const N: usize> Abi for [u8; N] {
    fn put(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(self);
    }
    fn get(bytes: &[u8]) -> Self {
        let mut own = [0; N];
        own.copy_from_slice(bytes);
        own
    }
}

/// Declares a structure with its size and the offset of each field, both checked against the compiler's layout.
macro_rules! abi_struct {
    ($(#[$doc:meta])* $name:ident: $size:literal { $($(#[$field_doc:meta])* $at:literal $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty,)* }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            assert!(0 $(+ size_of::<$ty>())* == $size, "padding must be a field");
            $(assert!(offset_of!($name, $field) == $at);)*
        };

        impl $name {
            /// Bytes of the structure.
            pub const SIZE: usize = $size;

            /// The bytes that the kernel reads.
            pub fn to_bytes(&self) -> [u8; $size] {
                let mut bytes = [0; $size];
                self.put(&mut bytes);
                bytes
            }
            /// From bytes that the kernel wrote.
            pub fn from_bytes(bytes: &[u8; $size]) -> Self {
                Self::get(bytes)
            }
        }

        impl Abi for $name {
            fn put(&self, bytes: &mut [u8]) {
                $(self.$field.put(&mut bytes[$at..$at + size_of::<$ty>()]);)*
            }
            fn get(bytes: &[u8]) -> Self {
                Self { $($field: <$ty>::get(&bytes[$at..$at + size_of::<$ty>()]),)* }
            }
        }
    };
}

abi_struct! {
    /// `struct ublksrv_ctrl_cmd`: the payload of an admin command.
    CtrlCmd: 32 {
        /// The device; `u32::MAX` where there is none, or in ADD_DEV to have one chosen.
        0 dev_id: u32,
        /// [`NO_QUEUE`] if the command is not for a queue.
        4 queue_id: u16,
        /// Bytes at `addr`.
        6 len: u16,
        /// Buffer that the command reads or fills.
        8 addr: u64,
        /// Inline argument.
        16 data: u64,
        /// Bytes of the device path in front of the buffer; only unprivileged devices have one.
        24 dev_path_len: u16,
        /// 0.
        26 pad: u16,
        /// 0.
        28 reserved: u32,
    }
}

abi_struct! {
    /// `struct ublksrv_ctrl_dev_info`: a device.
    CtrlDevInfo: 64 {
        /// Queues; the driver lowers it to the number of CPUs.
        0 nr_hw_queues: u16,
        /// Tags of each queue.
        2 queue_depth: u16,
        /// One of [`state`].
        4 state: u16,
        /// Stride of the descriptors with [`flag::IO_DESC_SIZE`]; 0 before 7.3.
        6 io_desc_size: u16,
        /// Largest request, in bytes.
        8 max_io_buf_bytes: u32,
        /// The N of `/dev/ublkbN`.
        12 dev_id: u32,
        /// The server, as START_DEV or END_USER_RECOVERY named it; -1 without one.
        16 ublksrv_pid: i32,
        /// 0.
        20 pad1: u32,
        /// Bits of [`flag`].
        24 flags: u64,
        /// For the server; the driver keeps it over a recovery and never looks at it.
        32 ublksrv_flags: u64,
        /// Owner; set by the driver.
        40 owner_uid: u32,
        /// Group; set by the driver.
        44 owner_gid: u32,
        /// 0.
        48 reserved1: u64,
        /// 0.
        56 reserved2: u64,
    }
}

abi_struct! {
    /// `struct ublksrv_io_desc`: a request, in the mapping of its queue, at its tag.
    IoDesc: 24 {
        /// Operation ([`op`]) in the low eight bits, flags ([`io_flag`]) above.
        0 op_flags: u32,
        /// Length in sectors of 512 bytes, whatever the disk's sector size.
        4 nr_sectors: u32,
        /// First sector, of 512 bytes too.
        8 start_sector: u64,
        /// The tag's buffer, as it was given with the fetch.
        16 addr: u64,
    }
}

abi_struct! {
    /// `struct ublksrv_io_cmd`: the payload of a fetch or commit.
    IoCmd: 16 {
        /// Queue.
        0 q_id: u16,
        /// Tag.
        2 tag: u16,
        /// Bytes done or minus errno; in commits only.
        4 result: i32,
        /// Buffer of the tag for the next request.
        8 addr: u64,
    }
}

abi_struct! {
    /// `struct ublk_param_basic`.
    ParamBasic: 32 {
        /// Bits of [`attr`].
        0 attrs: u32,
        /// Logical sector size: 9 to the page size's shift.
        4 logical_bs_shift: u8,
        /// Physical sector size.
        5 physical_bs_shift: u8,
        /// Preferred request size.
        6 io_opt_shift: u8,
        /// Smallest request without penalty.
        7 io_min_shift: u8,
        /// Largest request, in sectors; at most `max_io_buf_bytes`.
        8 max_sectors: u32,
        /// Requests do not cross multiples of this; 0: none.
        12 chunk_sectors: u32,
        /// Size of the disk in sectors of 512 bytes.
        16 dev_sectors: u64,
        /// 0.
        24 virt_boundary_mask: u64,
    }
}

abi_struct! {
    /// `struct ublk_param_discard`.
    ParamDiscard: 20 {
        /// Offset of the first granule.
        0 discard_alignment: u32,
        /// Granule in bytes; not 0.
        4 discard_granularity: u32,
        /// Largest discard in sectors.
        8 max_discard_sectors: u32,
        /// Largest write-zeroes in sectors.
        12 max_write_zeroes_sectors: u32,
        /// 1.
        16 max_discard_segments: u16,
        /// 0.
        18 reserved0: u16,
    }
}

abi_struct! {
    /// `struct ublk_param_devt`: device numbers, filled by the driver.
    ParamDevt: 16 {
        /// Of `/dev/ublkcN`.
        0 char_major: u32,
        /// Of `/dev/ublkcN`.
        4 char_minor: u32,
        /// Of `/dev/ublkbN`; 0 before it is started.
        8 disk_major: u32,
        /// Of `/dev/ublkbN`.
        12 disk_minor: u32,
    }
}

abi_struct! {
    /// `struct ublk_params`. The groups this server does not use are kept as bytes.
    Params: 152 {
        /// Bytes of the structure that the sender knows.
        0 len: u32,
        /// Bits of [`param`]: which groups are valid.
        4 types: u32,
        /// Always needed.
        8 basic: ParamBasic,
        /// Discard and write-zeroes.
        40 discard: ParamDiscard,
        /// Read-only.
        60 devt: ParamDevt,
        /// `struct ublk_param_zoned`.
        76 zoned: [u8; 32],
        /// `struct ublk_param_dma_align`.
        108 dma_align: [u8; 8],
        /// Padding of the header's natural layout falls inside the next two groups.
        116 segment_pad: [u8; 4],
        /// `struct ublk_param_segment`.
        120 segment: [u8; 16],
        /// `struct ublk_param_integrity`.
        136 integrity: [u8; 16],
    }
}

/// `queue_id` of commands that are not for a queue.
pub const NO_QUEUE: u16 = u16::MAX;
/// `dev_id` of commands without a device, and of ADD_DEV to have one chosen.
pub const NO_DEVICE: u32 = u32::MAX;
/// Tags of a queue.
pub const MAX_QUEUE_DEPTH: u16 = 4096;
/// Queues of a device.
pub const MAX_NR_QUEUES: u16 = 4096;
/// Bytes of one request.
pub const MAX_IO_BYTES: u32 = 32 << 20;
/// Where the data of the request that `tag` of `queue` has lies in the character device ([`flag::USER_COPY`]):
/// `UBLKSRV_IO_BUF_OFFSET`, then the queue from bit 41 on, the tag from bit 25, and the offset in the data.
pub const fn user_copy_position(queue: u16, tag: u16) -> u64 {
    0x8000_0000 + ((queue as u64) << 41) + ((tag as u64) << 25)
}
/// `struct ublk_auto_buf_reg`, as a command's address: the entry of the ring's buffer table, and that a request whose pages
/// cannot be put there comes all the same, with [`io_flag::NEED_REG_BUF`] (`UBLK_AUTO_BUF_REG_FALLBACK`).
pub const fn auto_buf_reg(entry: u16) -> u64 {
    entry as u64 | 1 << 16
}
/// Bytes of the answer to GET_FEATURES.
pub const FEATURES_LEN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_survive_their_bytes() {
        let info = CtrlDevInfo {
            nr_hw_queues: 2,
            queue_depth: 64,
            state: state::QUIESCED,
            max_io_buf_bytes: 131_072,
            dev_id: 7,
            ublksrv_pid: -1,
            flags: flag::USER_RECOVERY | flag::QUIESCE,
            ublksrv_flags: 0x0123_4567_89ab_cdef,
            ..CtrlDevInfo::default()
        };
        let bytes = info.to_bytes();
        assert_eq!(CtrlDevInfo::from_bytes(&bytes), info);
        assert_eq!(bytes[16..20], (-1i32).to_ne_bytes());
        assert_eq!(bytes[32..40], 0x0123_4567_89ab_cdefu64.to_ne_bytes());
    }

    #[test]
    fn the_data_of_every_tag_has_a_place_of_its_own() {
        assert_eq!(user_copy_position(0, 0), 0x8000_0000);
        assert_eq!(user_copy_position(0, 1), 0x8200_0000);
        assert_eq!(user_copy_position(1, 0), 0x0200_8000_0000);
        let last = user_copy_position(MAX_NR_QUEUES - 1, MAX_QUEUE_DEPTH - 1) + u64::from(MAX_IO_BYTES);
        assert!(i64::try_from(last).is_ok());
    }

    #[test]
    fn an_entry_is_named_in_the_address() {
        // index u16, flags u8, the rest 0.
        assert_eq!(auto_buf_reg(0x1234).to_le_bytes(), [0x34, 0x12, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_request_is_read_from_its_descriptor() {
        let mut bytes = [0; 24];
        bytes[0..4].copy_from_slice(&(op::WRITE | io_flag::FUA).to_ne_bytes());
        bytes[4..8].copy_from_slice(&8u32.to_ne_bytes());
        bytes[8..16].copy_from_slice(&(1u64 << 40).to_ne_bytes());
        let desc = IoDesc::from_bytes(&bytes);
        assert_eq!((desc.op_flags, desc.nr_sectors, desc.start_sector), (0x2001, 8, 1 << 40));
    }

    #[test]
    fn nested_groups_lie_where_the_header_has_them() {
        let params = Params {
            len: 152,
            basic: ParamBasic { dev_sectors: 0x1122, ..ParamBasic::default() },
            discard: ParamDiscard { max_discard_segments: 1, ..ParamDiscard::default() },
            devt: ParamDevt { disk_minor: 9, ..ParamDevt::default() },
            ..Params::default()
        };
        let bytes = params.to_bytes();
        assert_eq!(bytes[24..32], 0x1122u64.to_ne_bytes());
        assert_eq!(bytes[56..58], 1u16.to_ne_bytes());
        assert_eq!(bytes[72..76], 9u32.to_ne_bytes());
    }
}
