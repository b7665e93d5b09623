//! The handshake phase of the NBD protocol: bytes <-> values.

use crate::device::Geometry;

use super::limits::{MAX_PAYLOAD, MAX_STRING};

/// "Newstyle negotiation": what the server says first.
pub const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\0\x03";
/// Magic in front of each option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
/// Magic in front of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Length of an option's header in bytes.
pub const OPTION_BYTES: usize = 16;

/// "Client flags": fixed newstyle.
pub const CLIENT_FIXED_NEWSTYLE: u32 = 1 << 0;
/// "Client flags": no zeros after EXPORT_NAME's reply.
pub const CLIENT_NO_ZEROES: u32 = 1 << 1;
/// Zeros after EXPORT_NAME's reply for clients that did not say NO_ZEROES.
pub const EXPORT_NAME_ZEROES: usize = 124;

/// "Option types".
pub mod option {
    /// Choose an export, the old way.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// Name all exports.
    pub const LIST: u32 = 3;
    /// Facts of an export.
    pub const INFO: u32 = 6;
    /// Facts of an export, then use it.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
}

/// "Option reply types".
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export.
    pub const SERVER: u32 = 2;
    /// One fact.
    pub const INFO: u32 = 3;
    const ERROR: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR + 1;
    /// The option's data is malformed.
    pub const ERR_INVALID: u32 = ERROR + 3;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = ERROR + 9;
}

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

/// An option's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHeader {
    /// Its number.
    pub option: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

/// Decodes an option's header; `None` if the magic is wrong.
pub fn parse_option(bytes: &[u8; OPTION_BYTES]) -> Option<OptionHeader> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (option, rest) = rest.split_first_chunk::<4>()?;
    let (length, _) = rest.split_first_chunk::<4>()?;
    (u64::from_be_bytes(*magic) == OPTION_MAGIC)
        .then(|| OptionHeader { option: u32::from_be_bytes(*option), length: u32::from_be_bytes(*length) })
}

/// The data of INFO and GO.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InfoRequest {
    /// The export's name.
    pub name: String,
    /// The client asks for the export's name as the server calls it.
    pub wants_name: bool,
    /// The client asks for the description.
    pub wants_description: bool,
}

/// Decodes the data of INFO and GO; `None` if lengths do not fit exactly or the name is not UTF-8.
pub fn parse_info(data: &[u8]) -> Option<InfoRequest> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let name = parse_name(rest.get(..length)?)?;
    let (count, list) = rest.get(length..)?.split_first_chunk::<2>()?;
    if list.len() != usize::from(u16::from_be_bytes(*count)) * 2 {
        return None;
    }
    let wants = |kind: u16| list.chunks_exact(2).any(|item| item == kind.to_be_bytes());
    Some(InfoRequest { name, wants_name: wants(INFO_NAME), wants_description: wants(INFO_DESCRIPTION) })
}

/// An export's name as a client sends it; `None` if it is too long or not UTF-8.
pub fn parse_name(bytes: &[u8]) -> Option<String> {
    if bytes.len() > MAX_STRING {
        return None;
    }
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// Adds a reply to `out`. Data is bounded by the strings of an export, so its length fits.
pub fn push_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    let length: usize = data.iter().map(|part| part.len()).sum();
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    for part in data {
        out.extend_from_slice(part);
    }
}

/// Adds LIST's reply for one export.
pub fn push_server(out: &mut Vec<u8>, name: &str, description: &str) {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
    let data: [&[u8]; 3] = [&length, name.as_bytes(), description.as_bytes()];
    push_reply(out, option::LIST, reply::SERVER, &data);
}

/// Adds the facts of an export: size and flags, size constraints, and what else `request` asks for. The size
/// constraints are sent always: they are not the protocol's defaults.
pub fn push_facts(
    out: &mut Vec<u8>,
    option: u32,
    request: &InfoRequest,
    description: &str,
    (disk, flags): (&Geometry, u16),
) {
    let mut fact = |kind: u16, data: &[&[u8]]| {
        let kind = kind.to_be_bytes();
        let mut all: Vec<&[u8]> = vec![&kind];
        all.extend_from_slice(data);
        push_reply(out, option, reply::INFO, &all);
    };
    fact(INFO_EXPORT, &[&disk.size.to_be_bytes(), &flags.to_be_bytes()]);
    let [minimum, preferred, maximum] = block_sizes(disk).map(u32::to_be_bytes);
    fact(INFO_BLOCK_SIZE, &[&minimum, &preferred, &maximum]);
    if request.wants_name {
        fact(INFO_NAME, &[request.name.as_bytes()]);
    }
    if request.wants_description && !description.is_empty() {
        fact(INFO_DESCRIPTION, &[description.as_bytes()]);
    }
}

/// "Size constraints" in bytes: smallest block, preferred block, largest payload.
pub fn block_sizes(disk: &Geometry) -> [u32; 3] {
    let minimum = disk.sector_size.max(1);
    let floor = minimum.max(512);
    let usable = disk.block_size.is_power_of_two() && (floor..=MAX_PAYLOAD).contains(&disk.block_size);
    let preferred = if usable { disk.block_size } else { floor.max(4096) };
    [minimum, preferred, MAX_PAYLOAD]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info(name: &[u8], kinds: &[u16]) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        data.extend(name);
        data.extend(u16::try_from(kinds.len()).unwrap().to_be_bytes());
        data.extend(kinds.iter().flat_map(|k| k.to_be_bytes()));
        data
    }

    #[test]
    fn an_option_header_needs_its_magic() {
        let mut bytes = *b"IHAVEOPT\0\0\0\x07\0\0\x01\0";
        assert_eq!(parse_option(&bytes), Some(OptionHeader { option: 7, length: 256 }));
        bytes[0] ^= 1;
        assert_eq!(parse_option(&bytes), None);
        assert_eq!(OPTION_MAGIC.to_be_bytes(), GREETING[8..16]);
    }

    #[test]
    fn info_requests_fit_exactly_or_not_at_all() {
        let data = info(b"@s1", &[1, 3, 77]);
        let parsed = parse_info(&data).unwrap();
        assert_eq!((parsed.name.as_str(), parsed.wants_name, parsed.wants_description), ("@s1", true, false));
        for cut in 0..data.len() {
            assert_eq!(parse_info(&data[..cut]), None, "cut at {cut}");
        }
        let longer: Vec<u8> = data.iter().copied().chain([0]).collect();
        assert_eq!(parse_info(&longer), None);
        assert_eq!(parse_info(&info(b"\xff\xfe", &[])), None);
        assert_eq!(parse_info(&[0xff; 12]), None);
        assert_eq!(parse_info(&info(&[b'a'; MAX_STRING + 1], &[])), None);
    }

    proptest! {
        #[test]
        fn no_bytes_upset_the_parser(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            parse_info(&data);
        }
    }

    #[test]
    fn facts_have_the_documented_bytes() {
        let disk = Geometry { size: 1 << 30, sector_size: 512, read_only: false, block_size: 4096 };
        let request = parse_info(&info(b"", &[2])).unwrap();
        let mut out = Vec::new();
        push_facts(&mut out, option::GO, &request, "hi", (&disk, 3));
        let head = [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 12];
        assert_eq!(out[..20], head);
        assert_eq!(out[20..32], [0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 3]);
        assert_eq!(out[52..66], [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]);
        assert_eq!(out[86..], [0, 2, b'h', b'i']);
    }

    #[test]
    fn block_sizes_keep_to_the_rules() {
        let disk = |sector_size, block_size| Geometry { size: 0, sector_size, read_only: false, block_size };
        assert_eq!(block_sizes(&disk(512, 0)), [512, 4096, MAX_PAYLOAD]);
        assert_eq!(block_sizes(&disk(4096, 512)), [4096, 4096, MAX_PAYLOAD]);
        assert_eq!(block_sizes(&disk(512, 65536)), [512, 65536, MAX_PAYLOAD]);
    }
}
