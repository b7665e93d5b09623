//! Parameters of a device: built from the disk's geometry, read back, compared.

use super::uapi::{ParamBasic, ParamDiscard, Params, attr, param};
use crate::device::Geometry;
use crate::units::SECTOR;
use crate::{Error, Kind, Result};

/// Largest discard: what `Documentation/block/ublk.rst` allows, in whole blocks. mkfs discards whole disks.
const MAX_DISCARD_SECTORS: u32 = (u32::MAX >> 9) & !7;
/// Largest write-zeroes, 256 MiB: with NOUNMAP it allocates, which takes time.
const MAX_ZEROES_SECTORS: u32 = 256 << 11;
/// Largest sector size or preferred request size: a page, on every machine.
const MAX_SHIFT: u8 = 12;

/// The parameters that announce `geometry` with requests of up to `max_io` bytes.
pub(super) fn build(geometry: &Geometry, max_io: u32) -> Result<Params> {
    let logical = shift(geometry.sector_size)?;
    let preferred = shift(geometry.block_size.clamp(geometry.sector_size, 1 << MAX_SHIFT))?;
    let sector_size = u64::from(geometry.sector_size);
    if geometry.size == 0 || !geometry.size.is_multiple_of(sector_size) {
        let message =
            format!("a disk of {} bytes has no whole number of {sector_size}-byte sectors", geometry.size);
        return Err(Error::new(Kind::Usage, message));
    }
    let basic = ParamBasic {
        attrs: attributes(geometry.read_only),
        logical_bs_shift: logical,
        physical_bs_shift: preferred,
        io_opt_shift: preferred,
        io_min_shift: preferred,
        max_sectors: max_io / SECTOR as u32,
        dev_sectors: geometry.size / SECTOR,
        ..ParamBasic::default()
    };
    #[expect(clippy::cast_possible_truncation, reason = "152 bytes")]
    let len = Params::SIZE as u32;
    let mut params = Params { len, types: param::BASIC, basic, ..Params::default() };
    if !geometry.read_only {
        params.types |= param::DISCARD;
        params.discard = discard(1 << preferred);
    }
    Ok(params)
}

/// Without VOLATILE_CACHE the kernel never sends a FLUSH, and every durability test passes on a disk that loses
/// data.
const fn attributes(read_only: bool) -> u32 {
    if read_only { attr::READ_ONLY } else { attr::VOLATILE_CACHE | attr::FUA }
}

fn discard(granularity: u32) -> ParamDiscard {
    ParamDiscard {
        discard_granularity: granularity,
        max_discard_sectors: MAX_DISCARD_SECTORS,
        max_write_zeroes_sectors: MAX_ZEROES_SECTORS,
        max_discard_segments: 1,
        ..ParamDiscard::default()
    }
}

fn shift(bytes: u32) -> Result<u8> {
    let shift = bytes.checked_ilog2().and_then(|shift| u8::try_from(shift).ok());
    match shift {
        Some(shift @ 9..=MAX_SHIFT) if bytes.is_power_of_two() => Ok(shift),
        _ => Err(Error::new(Kind::Usage, format!("ublk has no sectors of {bytes} bytes"))),
    }
}

/// Compares what GET_PARAMS gives with what SET_PARAMS was given: the driver drops what it does not know.
pub(super) fn check_read_back(sent: &Params, given: &Params) -> Result<()> {
    if given.types & sent.types != sent.types {
        let message = format!(
            "the ublk driver dropped parameters: sent types {:#x}, has {:#x}",
            sent.types, given.types
        );
        return Err(Error::new(Kind::Unsupported, message));
    }
    let discard_differs = sent.types & param::DISCARD != 0 && given.discard != sent.discard;
    if given.basic != sent.basic || discard_differs {
        let message = format!("the ublk driver changed parameters: sent {sent:?}, has {given:?}");
        return Err(Error::new(Kind::Unsupported, message));
    }
    Ok(())
}

/// Checks that a waiting device is the disk `geometry`: its users must not see another sector size, and not lose the end
/// of their disk. Of a disk that has grown meanwhile they go on seeing what they know.
pub(super) fn check_same_disk(device: &Params, geometry: &Geometry) -> Result<()> {
    let size = device.basic.dev_sectors.saturating_mul(SECTOR);
    let sector_size = 1u64 << device.basic.logical_bs_shift.min(63);
    let read_only = device.basic.attrs & attr::READ_ONLY != 0;
    let differs = if size > geometry.size {
        format!("it has {size} bytes and the disk {}", geometry.size)
    } else if sector_size != u64::from(geometry.sector_size) {
        format!("it has sectors of {sector_size} bytes and the disk of {}", geometry.sector_size)
    } else if !read_only && geometry.read_only {
        "it is writable and the disk is not".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Unsupported, format!("the waiting device is not this disk: {differs}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Geometry = Geometry { size: 1 << 30, sector_size: 512, read_only: false, block_size: 4096 };

    #[test]
    fn a_writable_disk_has_a_cache_to_flush() {
        let params = build(&DISK, 128 << 10).unwrap();
        assert_eq!(params.basic.attrs, 4 | 8);
        assert_eq!((params.basic.logical_bs_shift, params.basic.physical_bs_shift), (9, 12));
        assert_eq!((params.basic.io_min_shift, params.basic.io_opt_shift), (12, 12));
        assert_eq!((params.basic.max_sectors, params.basic.dev_sectors), (256, 1 << 21));
        assert_eq!((params.len, params.types), (152, 3));
        assert_eq!(params.discard.discard_granularity, 4096);
        assert_eq!(params.discard.max_discard_segments, 1);
        assert!(params.discard.max_discard_sectors <= u32::MAX >> 9);
        assert!(params.discard.max_write_zeroes_sectors <= u32::MAX >> 9);
    }

    #[test]
    fn a_read_only_disk_has_no_discard() {
        let params = build(&Geometry { read_only: true, ..DISK }, 128 << 10).unwrap();
        assert_eq!((params.basic.attrs, params.types), (1, 1));
    }

    #[test]
    fn sectors_of_4096_bytes() {
        let params = build(&Geometry { sector_size: 4096, ..DISK }, 1 << 20).unwrap();
        assert_eq!((params.basic.logical_bs_shift, params.basic.physical_bs_shift), (12, 12));
        assert_eq!(params.basic.max_sectors, 2048);
    }

    #[test]
    fn odd_geometries_are_refused() {
        for geometry in [
            Geometry { size: 0, ..DISK },
            Geometry { size: 1000, ..DISK },
            Geometry { size: 512, sector_size: 4096, ..DISK },
            Geometry { sector_size: 520, ..DISK },
            Geometry { sector_size: 8192, ..DISK },
            Geometry { sector_size: 0, ..DISK },
        ] {
            assert_eq!(build(&geometry, 128 << 10).unwrap_err().kind(), Kind::Usage, "{geometry:?}");
        }
    }

    #[test]
    fn a_driver_that_drops_the_discard_group_is_noticed() {
        let sent = build(&DISK, 128 << 10).unwrap();
        check_read_back(&sent, &Params { types: sent.types | param::DEVT, ..sent }).unwrap();
        assert!(check_read_back(&sent, &Params { types: param::BASIC, ..sent }).is_err());
        let mut cut = sent;
        cut.basic.attrs = 0;
        assert!(check_read_back(&sent, &cut).is_err());
    }

    #[test]
    fn a_device_that_is_larger_than_the_disk_is_not_taken_up() {
        let device = build(&DISK, 128 << 10).unwrap();
        check_same_disk(&device, &DISK).unwrap();
        let e = check_same_disk(&device, &Geometry { size: 1 << 29, ..DISK }).unwrap_err();
        assert!(e.to_string().contains("1073741824 bytes"), "{e}");
        // It was resized while it waited: its users keep what they have.
        check_same_disk(&device, &Geometry { size: 2 << 30, ..DISK }).unwrap();
        assert!(check_same_disk(&device, &Geometry { sector_size: 4096, ..DISK }).is_err());
        assert!(check_same_disk(&device, &Geometry { read_only: true, ..DISK }).is_err());
    }
}
