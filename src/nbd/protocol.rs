//! The transmission phase of the NBD protocol: bytes <-> values, and what makes a request acceptable.
//!
//! All numbers are big-endian. Section names are those of the public protocol document
//! (NetworkBlockDevice/nbd, `doc/proto.md`).

use super::limits::{MAX_PAYLOAD, READ_PART};
use crate::device::{Errno, Geometry};

/// "Request message": length in bytes without payload.
pub const REQUEST_BYTES: usize = 28;
/// Room for any reply header: a structured chunk header and the offset of its data.
pub const REPLY_BYTES: usize = 28;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;

/// Command flag: durable before the reply. Valid with every command.
pub const CMD_FLAG_FUA: u16 = 1 << 0;
/// Command flag of WRITE_ZEROES: the space stays allocated.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// Command flag of READ: one content chunk at most.
pub const CMD_FLAG_DF: u16 = 1 << 2;

const REPLY_FLAG_DONE: u16 = 1 << 0;
const REPLY_TYPE_OFFSET_DATA: u16 = 1;
const REPLY_TYPE_ERROR: u16 = (1 << 15) + 1;

/// The error numbers of the protocol ("Error values"): the only ones a client ever gets.
pub mod error {
    /// Operation not permitted: the export is read-only.
    pub const EPERM: u32 = 1;
    /// Input/output error.
    pub const EIO: u32 = 5;
    /// Out of memory.
    pub const ENOMEM: u32 = 12;
    /// A request that breaks a rule.
    pub const EINVAL: u32 = 22;
    /// No space, or a write past the end of the disk.
    pub const ENOSPC: u32 = 28;
    /// A DF read too long for one chunk.
    pub const EOVERFLOW: u32 = 75;
    /// Not supported.
    pub const ENOTSUP: u32 = 95;
    /// The server is stopping.
    pub const ESHUTDOWN: u32 = 108;
}

/// "Transmission flags".
pub mod flags {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES and its NO_HOLE flag are understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag is understood; only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers the writes of all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// What a client asks for ("Request types").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// READ.
    Read,
    /// WRITE; the payload follows the header.
    Write,
    /// DISC: finish what runs, then close. It has no reply.
    Disconnect,
    /// FLUSH.
    Flush,
    /// TRIM.
    Trim,
    /// WRITE_ZEROES.
    WriteZeroes,
    /// Any other number.
    Unknown(u16),
}

impl From<u16> for Command {
    fn from(number: u16) -> Command {
        match number {
            CMD_READ => Command::Read,
            CMD_WRITE => Command::Write,
            CMD_DISC => Command::Disconnect,
            CMD_FLUSH => Command::Flush,
            CMD_TRIM => Command::Trim,
            CMD_WRITE_ZEROES => Command::WriteZeroes,
            other => Command::Unknown(other),
        }
    }
}

/// A request's header, decoded but not yet compared with the disk: see [`Request::check`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// What to do.
    pub command: Command,
    /// The client's name for the request, given back in the reply.
    pub cookie: u64,
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// A header that does not start with the request magic: the stream is out of step and cannot be used further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadMagic(pub u32);

/// Decodes a request header.
pub fn parse_request(bytes: &[u8; REQUEST_BYTES]) -> Result<Request, BadMagic> {
    let magic = be32(bytes, 0);
    if magic != REQUEST_MAGIC {
        return Err(BadMagic(magic));
    }
    Ok(Request {
        flags: be16(bytes, 4),
        command: be16(bytes, 6).into(),
        cookie: be64(bytes, 8),
        offset: be64(bytes, 16),
        length: be32(bytes, 24),
    })
}

fn array<const N: usize>(bytes: &[u8; REQUEST_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
fn be16(bytes: &[u8; REQUEST_BYTES], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}
fn be32(bytes: &[u8; REQUEST_BYTES], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}
fn be64(bytes: &[u8; REQUEST_BYTES], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

impl Request {
    /// The header's bytes, as a client sends them.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let number = match self.command {
            Command::Read => CMD_READ,
            Command::Write => CMD_WRITE,
            Command::Disconnect => CMD_DISC,
            Command::Flush => CMD_FLUSH,
            Command::Trim => CMD_TRIM,
            Command::WriteZeroes => CMD_WRITE_ZEROES,
            Command::Unknown(other) => other,
        };
        let mut bytes = [0; REQUEST_BYTES];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&number.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// True if the FUA flag is set.
    pub const fn fua(&self) -> bool {
        self.flags & CMD_FLAG_FUA != 0
    }
    /// True if WRITE_ZEROES may give the space back.
    pub const fn unmap(&self) -> bool {
        self.flags & CMD_FLAG_NO_HOLE == 0
    }
    /// Bytes that follow the header.
    pub const fn payload(&self) -> u32 {
        match self.command {
            Command::Write => self.length,
            _ => 0,
        }
    }

    /// Compares the request with the disk ("Error values", "Size constraints"); the error number if it is
    /// refused. A request that passes lies within the disk, is aligned to sectors and not empty.
    pub fn check(&self, disk: &Geometry, structured: bool) -> Result<(), u32> {
        let writes = match self.command {
            Command::Read => false,
            Command::Write | Command::Trim | Command::WriteZeroes => true,
            Command::Disconnect => return Ok(()),
            Command::Flush => return self.check_flush(),
            Command::Unknown(_) => return Err(error::EINVAL),
        };
        if writes && disk.read_only {
            return Err(error::EPERM);
        }
        self.check_flags(structured)?;
        let end = self.offset.checked_add(u64::from(self.length));
        if end.is_none_or(|end| end > disk.size) {
            let full = matches!(self.command, Command::Write | Command::WriteZeroes);
            return Err(if full { error::ENOSPC } else { error::EINVAL });
        }
        let sector = u64::from(disk.sector_size.max(1));
        if self.length == 0
            || !self.offset.is_multiple_of(sector)
            || !u64::from(self.length).is_multiple_of(sector)
        {
            return Err(error::EINVAL);
        }
        match self.command {
            Command::Read | Command::Write if self.length > MAX_PAYLOAD => Err(error::EINVAL),
            Command::Read if self.flags & CMD_FLAG_DF != 0 && self.length as usize > READ_PART => {
                Err(error::EOVERFLOW)
            }
            _ => Ok(()),
        }
    }

    fn check_flags(&self, structured: bool) -> Result<(), u32> {
        let known = match self.command {
            Command::Read if structured => CMD_FLAG_FUA | CMD_FLAG_DF,
            Command::WriteZeroes => CMD_FLAG_FUA | CMD_FLAG_NO_HOLE,
            _ => CMD_FLAG_FUA,
        };
        if self.flags & !known == 0 { Ok(()) } else { Err(error::EINVAL) }
    }

    fn check_flush(&self) -> Result<(), u32> {
        if self.flags & !CMD_FLAG_FUA != 0 || self.offset != 0 || self.length != 0 {
            return Err(error::EINVAL);
        }
        Ok(())
    }
}

/// The protocol's number for a failed request's errno: those that it does not know are EIO.
pub const fn wire_error(errno: Errno) -> u32 {
    match errno.0 {
        libc::EPERM | libc::EROFS | libc::EACCES => error::EPERM,
        libc::ENOMEM => error::ENOMEM,
        libc::EINVAL => error::EINVAL,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => error::ENOSPC,
        libc::EOPNOTSUPP => error::ENOTSUP,
        libc::ESHUTDOWN => error::ESHUTDOWN,
        _ => error::EIO,
    }
}

/// "Transmission flags" of a disk.
pub const fn transmission_flags(disk: &Geometry, structured: bool) -> u16 {
    let common = flags::HAS_FLAGS | flags::SEND_FLUSH | flags::SEND_FUA | flags::CAN_MULTI_CONN;
    let access = if disk.read_only { flags::READ_ONLY } else { flags::SEND_TRIM | flags::SEND_WRITE_ZEROES };
    let fragments = if structured { flags::SEND_DF } else { 0 };
    common | access | fragments
}

/// A reply's header; the data of the first two kinds follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// "Simple reply message": 0 or an error number.
    Simple {
        /// 0 is success; a READ's data follows.
        error: u32,
    },
    /// A chunk of type OFFSET_DATA.
    Data {
        /// Where the data lies on the disk, in bytes.
        offset: u64,
        /// Its length in bytes.
        length: u32,
        /// The last chunk of the reply.
        done: bool,
    },
    /// A chunk of type ERROR that ends the reply; it has no message.
    Failed {
        /// The error number.
        error: u32,
    },
}

impl Reply {
    /// Writes the header to the front of `out`; its length in bytes.
    pub fn encode(&self, cookie: u64, out: &mut [u8; REPLY_BYTES]) -> usize {
        match *self {
            Reply::Simple { error } => {
                out[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
                out[4..8].copy_from_slice(&error.to_be_bytes());
                out[8..16].copy_from_slice(&cookie.to_be_bytes());
                16
            }
            Reply::Data { offset, length, done } => {
                let flags = if done { REPLY_FLAG_DONE } else { 0 };
                // Parts are far below 4 GiB: the sum with the offset's eight bytes does not wrap.
                encode_chunk(out, flags, REPLY_TYPE_OFFSET_DATA, cookie, length + 8);
                out[20..28].copy_from_slice(&offset.to_be_bytes());
                28
            }
            Reply::Failed { error } => {
                encode_chunk(out, REPLY_FLAG_DONE, REPLY_TYPE_ERROR, cookie, 6);
                out[20..24].copy_from_slice(&error.to_be_bytes());
                out[24..26].copy_from_slice(&[0, 0]);
                26
            }
        }
    }
}

/// "Structured reply chunk message": the first 20 bytes.
fn encode_chunk(out: &mut [u8; REPLY_BYTES], flags: u16, kind: u16, cookie: u64, length: u32) {
    out[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&flags.to_be_bytes());
    out[6..8].copy_from_slice(&kind.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..20].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: Geometry = Geometry { size: 1 << 20, sector_size: 512, read_only: false, block_size: 4096 };

    fn request(command: Command, flags: u16, offset: u64, length: u32) -> Request {
        Request { flags, command, cookie: 1, offset, length }
    }

    #[test]
    fn a_request_is_read_from_the_documented_bytes() {
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0,
        ];
        let expected = Request {
            flags: CMD_FLAG_FUA,
            command: Command::Write,
            cookie: 0x0102_0304_0506_0708,
            offset: 4096,
            length: 512,
        };
        assert_eq!(parse_request(&bytes), Ok(expected));
        assert_eq!(expected.encode(), bytes);
    }

    proptest! {
        #[test]
        fn any_header_with_the_magic_decodes_and_encodes_back(tail in any::<[u8; 24]>()) {
            let mut bytes = [0; REQUEST_BYTES];
            bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            bytes[4..].copy_from_slice(&tail);
            let request = parse_request(&bytes).unwrap();
            prop_assert_eq!(request.encode(), bytes);
            if request.check(&DISK, true).is_ok() && request.command != Command::Disconnect {
                prop_assert!(request.offset + u64::from(request.length) <= DISK.size);
            }
        }
    }

    #[test]
    fn another_magic_is_refused() {
        assert_eq!(parse_request(&[0; REQUEST_BYTES]), Err(BadMagic(0)));
    }

    #[test]
    fn refusals_follow_the_error_table() {
        use Command::*;
        let read_only = Geometry { read_only: true, ..DISK };
        let big = Geometry { size: 1 << 40, sector_size: 4096, ..DISK };
        let cases = [
            (DISK, request(Read, 0, 0, 1 << 20), Ok(())),
            (DISK, request(Read, 0, 512, 1 << 20), Err(error::EINVAL)),
            (DISK, request(Write, 0, 512, 1 << 20), Err(error::ENOSPC)),
            (DISK, request(WriteZeroes, 0, u64::MAX, 512), Err(error::ENOSPC)),
            (DISK, request(Trim, 0, 1 << 20, 512), Err(error::EINVAL)),
            (DISK, request(Write, 0, 1, 512), Err(error::EINVAL)),
            (DISK, request(Write, 0, 0, 513), Err(error::EINVAL)),
            (DISK, request(Write, 0, 0, 0), Err(error::EINVAL)),
            (big, request(Write, 0, 512, 4096), Err(error::EINVAL)),
            (big, request(Read, 0, 0, MAX_PAYLOAD + 4096), Err(error::EINVAL)),
            (big, request(Trim, 0, 0, u32::MAX - 4095), Ok(())),
            (big, request(Read, CMD_FLAG_DF, 0, 65536), Ok(())),
            (big, request(Read, CMD_FLAG_DF, 0, 1 << 20), Err(error::EOVERFLOW)),
            (read_only, request(Write, 0, 0, 512), Err(error::EPERM)),
            (read_only, request(Trim, 0, 0, 512), Err(error::EPERM)),
            (read_only, request(Read, CMD_FLAG_FUA, 0, 512), Ok(())),
            (read_only, request(Flush, 0, 0, 0), Ok(())),
            (DISK, request(Flush, 0, 0, 512), Err(error::EINVAL)),
            (DISK, request(Write, CMD_FLAG_NO_HOLE, 0, 512), Err(error::EINVAL)),
            (DISK, request(WriteZeroes, CMD_FLAG_NO_HOLE | CMD_FLAG_FUA, 0, 512), Ok(())),
            (DISK, request(WriteZeroes, 1 << 4, 0, 512), Err(error::EINVAL)),
            (DISK, request(Unknown(5), 0, 0, 512), Err(error::EINVAL)),
        ];
        for (disk, request, expected) in cases {
            assert_eq!(request.check(&disk, true), expected, "{request:?}");
        }
        let fragment = request(Read, CMD_FLAG_DF, 0, 512);
        assert_eq!(fragment.check(&DISK, false), Err(error::EINVAL), "DF needs structured replies");
    }

    #[test]
    fn replies_have_the_documented_bytes() {
        let mut out = [0xff; REPLY_BYTES];
        let n = Reply::Simple { error: 5 }.encode(7, &mut out);
        assert_eq!(out[..n], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7]);
        let n = Reply::Data { offset: 512, length: 1024, done: true }.encode(7, &mut out);
        let header = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 4, 8];
        assert_eq!((&out[..20], &out[20..n]), (&header[..], &[0, 0, 0, 0, 0, 0, 2, 0][..]));
        let n = Reply::Failed { error: 5 }.encode(7, &mut out);
        let header = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 6];
        assert_eq!((&out[..20], &out[20..n]), (&header[..], &[0, 0, 0, 5, 0, 0][..]));
    }

    #[test]
    fn errnos_become_protocol_errors() {
        assert_eq!(wire_error(Errno(libc::EROFS)), error::EPERM);
        assert_eq!(wire_error(Errno(libc::EDQUOT)), error::ENOSPC);
        assert_eq!(wire_error(Errno(libc::EUCLEAN)), error::EIO);
        let flags = transmission_flags(&Geometry { read_only: true, ..DISK }, false);
        assert_eq!(flags, 0b1_0000_1111);
    }
}
