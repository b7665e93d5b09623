//! Parameters: every field that the server sets, as the driver has it; what a driver drops or refuses.

use cowdisk::device::Geometry;
use cowdisk::ublk::sim::{Machine, Profile};
use cowdisk::ublk::uapi::{ParamBasic, ParamDiscard, Params, admin, attr, param};

use super::life::{SIZE, options, served};
use super::model::Ram;
use super::profiles;
use super::raw::{Raw, info, params};

#[test]
fn every_field_of_both_groups_is_what_the_disk_says() {
    for profile in profiles() {
        let machine = Machine::new(profile, 20);
        let set = served(&machine, &Ram::new(SIZE, 20), &options(), |_, _| machine.params(0).unwrap());
        assert_eq!(set.types, param::BASIC | param::DISCARD);
        let basic = ParamBasic {
            attrs: attr::VOLATILE_CACHE | attr::FUA,
            logical_bs_shift: 9,
            physical_bs_shift: 12,
            io_opt_shift: 12,
            io_min_shift: 12,
            max_sectors: 32,
            chunk_sectors: 0,
            dev_sectors: 2048,
            virt_boundary_mask: 0,
        };
        let discard = ParamDiscard {
            discard_alignment: 0,
            discard_granularity: 4096,
            max_discard_sectors: (u32::MAX >> 9) & !7,
            max_write_zeroes_sectors: 256 << 11,
            max_discard_segments: 1,
            reserved0: 0,
        };
        assert_eq!((set.basic, set.discard), (basic, discard), "{profile:?}");
    }
}

#[test]
fn a_read_only_disk_and_large_sectors() {
    let machine = Machine::new(Profile::of(6, 0), 21);
    let geometry = Geometry { size: SIZE, sector_size: 4096, read_only: true, block_size: 4096 };
    let disk = Ram::new(SIZE, 21).with_geometry(geometry);
    let set = served(&machine, &disk, &options(), |_, _| machine.params(0).unwrap());
    assert_eq!((set.types, set.basic.attrs), (param::BASIC, attr::READ_ONLY));
    assert_eq!((set.basic.logical_bs_shift, set.basic.physical_bs_shift), (12, 12));
}

#[test]
fn unknown_groups_are_dropped_in_silence_and_bad_values_refused() {
    for profile in profiles() {
        let machine = Machine::new(profile, 22);
        let mut raw = Raw::new(&machine, profile.version >= cowdisk::ublk::sim::Version(6, 4));
        raw.add(info(0, 0)).unwrap();
        let unknown = Params { types: params().types | 1 << 20, ..params() };
        assert_eq!(raw.set_params(0, &unknown), 0);
        let back = raw.params(0).unwrap();
        assert_eq!(
            (back.types & !param::DEVT, back.basic, back.discard),
            (3, params().basic, params().discard)
        );
        let basic = |change: fn(&mut ParamBasic)| {
            let mut changed = params();
            change(&mut changed.basic);
            changed
        };
        let discard = |change: fn(&mut ParamDiscard)| {
            let mut changed = params();
            change(&mut changed.discard);
            changed
        };
        for bad in [
            Params { types: param::DISCARD, ..params() },
            Params { types: 0, ..params() },
            Params { len: 0, ..params() },
            Params { len: 153, ..params() },
            basic(|b| b.logical_bs_shift = 8),
            basic(|b| b.logical_bs_shift = 13),
            basic(|b| b.physical_bs_shift = 8),
            basic(|b| b.max_sectors = 17),
            discard(|d| d.discard_granularity = 0),
            discard(|d| d.max_discard_segments = 2),
        ] {
            assert_eq!(raw.set_params(0, &bad), -libc::EINVAL, "{bad:?}");
        }
        assert_eq!(raw.set_params(1, &params()), -libc::ENODEV);
        assert_eq!(raw.simple(admin::GET_PARAMS, 0, 0), -libc::EINVAL);
    }
}

#[test]
fn parameters_are_fixed_once_the_disk_is_there() {
    let machine = Machine::new(Profile::of(6, 12), 23);
    let mut raw = Raw::new(&machine, true);
    let _tags = raw.start(0, 0);
    assert_eq!(raw.set_params(0, &params()), -libc::EACCES);
    let devt = raw.params(0).unwrap().devt;
    assert!(devt.char_major > 0 && devt.disk_major > 0, "{devt:?}");
}
