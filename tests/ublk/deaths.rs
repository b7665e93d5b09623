//! "When the server dies": what becomes of requests in flight, of new ones, and of the device, with each set of recovery
//! flags; and who may take it up.

use std::rc::Rc;

use cowdisk::Kind;
use cowdisk::ublk::driver::Driver;
use cowdisk::ublk::sim::{Machine, Profile, Version};
use cowdisk::ublk::uapi::{CtrlDevInfo, admin, flag, state};
use cowdisk::ublk::{
    Device, OnDeath, RecoverOptions, StartOptions, State, device_info_on, remove_waiting_on,
};

use super::life::{done, options, served};
use super::model::Ram;
use super::profiles;
use super::raw::Raw;

const HOLD: u64 = flag::USER_RECOVERY;
const REISSUE: u64 = flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE;
const FAIL: u64 = flag::USER_RECOVERY | flag::USER_RECOVERY_FAIL_IO;

/// How a read ended; `None`: it has not.
type End = Option<Result<Vec<u8>, i32>>;

/// A device of `flags` whose server dies with a request; the ends of that one, and of one that came later, if they
/// have ended; and the device's state.
fn death(profile: Profile, flags: u64) -> (Machine, [End; 2], State) {
    let machine = Machine::new(profile, 50 + flags);
    let mut raw = Raw::new(&machine, profile.version >= Version(6, 4));
    let mut tags = raw.start(0, flags);
    let block = Rc::new(machine.open(0).unwrap());
    let read = |pos| {
        let block = block.clone();
        machine.user(async move { block.read(pos, 512).await })
    };
    let in_flight = read(0);
    let (_, got) = tags.next();
    assert_eq!(got, 0);
    raw.server.exit();
    drop(tags);
    machine.run(1000);
    let later = read(512);
    machine.run(1000);
    let state = machine.device(0).unwrap().state;
    (machine, [in_flight.try_take(), later.try_take()], state)
}

#[test]
fn the_table_of_deaths() {
    let error = || Some(Err(libc::EIO));
    for profile in profiles() {
        let (_, ends, state) = death(profile, 0);
        assert_eq!((ends, state), ([error(), error()], State::Dead), "{profile:?}");
        if profile.version < Version(6, 1) {
            continue;
        }
        let (_, ends, state) = death(profile, HOLD);
        assert_eq!((ends, state), ([error(), None], State::Quiesced), "{profile:?}");
        let (_, ends, state) = death(profile, REISSUE);
        assert_eq!((ends, state), ([None, None], State::Quiesced), "{profile:?}");
        if profile.version >= Version(6, 13) {
            let (_, ends, state) = death(profile, FAIL);
            assert_eq!((ends, state), ([error(), error()], State::FailIo), "{profile:?}");
        }
    }
}

/// The next server takes up what waits; without REISSUE only what was not in flight is left.
#[test]
fn what_waits_is_served_by_the_next_one() {
    for (flags, wanted) in [(HOLD, 1), (REISSUE, 2)] {
        for profile in profiles().filter(|profile| profile.version >= Version(6, 1)) {
            let (machine, _, _) = death(profile, flags);
            let before = machine.counts();
            let server = machine.boot();
            let disk = Ram::new(1 << 20, 1);
            server
                .run(|server| {
                    let wrong = RecoverOptions { device_id: 0, tag: 78, ..RecoverOptions::default() };
                    assert_eq!(Device::recover_on(server, &disk, &wrong).unwrap_err().kind(), Kind::NotFound);
                    let other = Ram::new(1 << 19, 1);
                    let right = RecoverOptions { device_id: 0, tag: 77, ..RecoverOptions::default() };
                    let e = Device::recover_on(server, &other, &right).unwrap_err();
                    assert_eq!(e.kind(), Kind::Unsupported, "{e}");
                    let mut device = Device::recover_on(server, &disk, &right).unwrap();
                    server.work(1000);
                    assert_eq!(device_info_on(server, 0).unwrap().state, State::Live);
                    device.stop(true).unwrap();
                })
                .unwrap();
            let counts = machine.counts();
            assert_eq!(counts.requests, counts.ended);
            assert!(counts.delivered - before.delivered >= wanted);
            assert_eq!(counts.reissued, wanted - 1);
        }
    }
}

/// A server that died over a resize: the next one tells the users of the size, where the driver can.
#[test]
fn a_disk_that_has_grown_meanwhile_is_as_large_when_it_is_taken_up() {
    for profile in profiles().filter(|profile| profile.version >= Version(6, 1)) {
        let can = profile.features() & flag::UPDATE_SIZE != 0;
        let flags = if can { REISSUE | flag::UPDATE_SIZE } else { REISSUE };
        let (machine, _, _) = death(profile, flags);
        let server = machine.boot();
        let grown = Ram::new(1 << 21, 1);
        server
            .run(|server| {
                let options = RecoverOptions { device_id: 0, tag: 77, ..RecoverOptions::default() };
                let mut device = Device::recover_on(server, &grown, &options).unwrap();
                let seen = machine.params(0).unwrap().basic.dev_sectors * 512;
                assert_eq!(seen, if can { 1 << 21 } else { 1 << 20 }, "{profile:?}");
                assert_eq!(device.warnings().iter().any(|text| text.starts_with("size: ")), !can);
                server.work(1000);
                device.stop(true).unwrap();
            })
            .unwrap();
    }
}

/// Requests fail while nobody serves the disk, and succeed again when somebody does.
#[test]
fn a_disk_that_fails_without_a_server_is_taken_up_again() {
    for profile in profiles() {
        let machine = Machine::new(profile, 62);
        let disk = Ram::new(1 << 20, 1);
        let options = StartOptions { on_death: OnDeath::Fail, ..options() };
        let has = profile.features() & flag::USER_RECOVERY_FAIL_IO != 0;
        let server = machine.boot();
        let started = server.run(|server| Device::start_on(server, &disk, &options)).unwrap();
        if !has {
            let e = started.unwrap_err();
            assert_eq!(
                (e.kind(), e.hint_text()),
                (Kind::Unsupported, Some("--on-death remove")),
                "{profile:?}"
            );
            assert_eq!(machine.device(0), None, "nothing is left of it");
            continue;
        }
        let device = started.unwrap();
        assert!(device.outlives_its_server());
        server.exit();
        machine.run(1000);
        assert_eq!(machine.device(0).map(|device| device.state), Some(State::FailIo));
        let block = Rc::new(machine.open(0).unwrap());
        let user = block.clone();
        let next = machine.boot();
        let left = next.run(|next| {
            let read = done(next, &machine, async move { user.read(0, 512).await });
            assert_eq!(read, Err(libc::EIO));
            let of = RecoverOptions { device_id: 0, tag: 9, ..RecoverOptions::default() };
            let device = Device::recover_on(next, &disk, &of).unwrap();
            let user = block.clone();
            assert!(done(next, &machine, async move { user.read(0, 512).await }).is_ok());
            device.leave_waiting()
        });
        left.unwrap().unwrap();
        next.exit();
        machine.run(1000);
        assert_eq!(machine.device(0).map(|device| device.state), Some(State::FailIo));
        drop(block);
        machine.boot().run(|last| remove_waiting_on(last, 0, 9, false)).unwrap().unwrap();
        assert_eq!((machine.device(0), machine.broken_rules()), (None, vec![]));
    }
}

/// EBUSY until the driver has noticed; after that EINVAL, ENODEV or 0.
#[test]
fn recovery_waits_for_the_old_server() {
    for profile in profiles().filter(|profile| profile.version >= Version(6, 1)) {
        let machine = Machine::new(profile, 60);
        let encoded = profile.version >= Version(6, 4);
        let mut raw = Raw::new(&machine, encoded);
        let tags = raw.start(0, REISSUE);
        let mut next = Raw::new(&machine, encoded);
        assert_eq!(next.simple(admin::START_USER_RECOVERY, 0, 0), -libc::EBUSY);
        assert_eq!(next.simple(admin::START_USER_RECOVERY, 1, 0), -libc::ENODEV);
        raw.server.exit();
        assert_eq!(next.simple(admin::START_USER_RECOVERY, 0, 0), -libc::EBUSY, "nothing was noticed yet");
        drop(tags);
        machine.run(1000);
        assert_eq!(next.info(0).unwrap().state, state::QUIESCED);
        assert_eq!(next.simple(admin::START_USER_RECOVERY, 0, 0), 0);
        let mut tags = next.open(0);
        let pid = u64::from(next.server.pid());
        assert_eq!(next.try_send(admin::END_USER_RECOVERY, 0, pid, &mut []), None, "it waits for fetches");
        tags.fetch_all();
        next.server.work(100);
        assert_eq!(
            next.info(0).unwrap(),
            CtrlDevInfo { state: state::LIVE, ublksrv_pid: pid as i32, ..next.info(0).unwrap() }
        );
        assert_eq!(next.simple(admin::END_USER_RECOVERY, 0, pid), -libc::EBUSY);
        next.add(super::raw::info(1, 0)).unwrap();
        assert_eq!(next.simple(admin::START_USER_RECOVERY, 1, 0), -libc::EINVAL, "made without recovery");
    }
}

/// Without recovery (6.0, or by choice) the disk goes with its server, and the same command makes a new one.
#[test]
fn without_recovery_the_disk_goes_with_its_server() {
    for profile in profiles() {
        let machine = Machine::new(profile, 61);
        let disk = Ram::new(1 << 20, 1);
        let options = StartOptions { on_death: OnDeath::Remove, ..options() };
        let server = machine.boot();
        let block = server
            .run(|server| {
                let device = Device::start_on(server, &disk, &options).unwrap();
                assert!(!device.outlives_its_server() && device.leave_waiting().is_err());
                Rc::new(machine.open(0).unwrap())
            })
            .unwrap();
        server.exit();
        machine.run(1000);
        assert_eq!(machine.device(0).map(|device| device.state), Some(State::Dead));
        let user = block.clone();
        let next = machine.boot();
        next.run(|next| {
            assert!(done(next, &machine, async move { user.read(0, 512).await }).is_err());
            let of = RecoverOptions { device_id: 0, tag: 9, ..RecoverOptions::default() };
            assert_eq!(Device::recover_on(next, &disk, &of).unwrap_err().kind(), Kind::NotFound);
            drop(block);
            machine.run(1000);
            remove_waiting_on(next, 0, 9, false).unwrap();
            assert_eq!(next.devices(), Vec::<u32>::new());
        })
        .unwrap();
        served(&machine, &disk, &options, |_, _| ());
    }
}
