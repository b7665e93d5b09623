//! Each feature that the server makes use of, insisted on and left out: what it does with it, what it does instead, and
//! that its users see no difference.

use std::rc::Rc;

use cowdisk::Kind;
use cowdisk::storage::sim::Rng;
use cowdisk::ublk::driver::Driver;
use cowdisk::ublk::sim::{Machine, Profile, Server, Version};
use cowdisk::ublk::uapi::{Command, admin, flag};
use cowdisk::ublk::{CopyMode, Device, OnDeath, RecoverOptions, StartOptions, State, device_info_on};

use super::life::{SIZE, done, options};
use super::model::Ram;
use super::profiles;

fn with(choice: &str) -> StartOptions {
    StartOptions { features: choice.parse().unwrap(), ..options() }
}

/// A whole life, with users: start, requests, a leave, a recovery, more requests, a refused stop, a stop by force.
fn whole_life(machine: &Machine, disk: &Ram, options: &StartOptions) {
    let mut data = [0; 32 << 10];
    let mut rng = Rng::new(machine.seed());
    data.chunks_mut(8).for_each(|bytes| bytes.copy_from_slice(&rng.draw().to_ne_bytes()));
    let first = machine.boot();
    let leaves = first.run(|server| {
        let mut device = Device::start_on(server, disk, options).unwrap();
        assert!(machine.has_read_partitions(0), "{options:?}");
        let block = Rc::new(machine.open(0).unwrap());
        let user = block.clone();
        done(server, machine, async move { user.write(4096, &data, 0).await }).unwrap();
        check(server, machine, &block, data);
        assert_eq!(device.stop(false).unwrap_err().kind(), Kind::InUse);
        if device.outlives_its_server() {
            device.leave_waiting().unwrap();
            return true;
        }
        device.stop(true).unwrap();
        false
    });
    first.exit();
    if leaves == Some(true) {
        let second = machine.boot();
        let took = second.run(|server| {
            let features = options.features;
            let of = RecoverOptions { device_id: 0, tag: 9, features };
            let mut device = Device::recover_on(server, disk, &of).unwrap();
            check(server, machine, &Rc::new(machine.open(0).unwrap()), data);
            device.stop(true).unwrap();
        });
        took.unwrap();
        second.exit();
    }
    machine.run(100_000);
    assert_eq!((machine.broken_rules(), machine.counts().refused), (vec![], 0));
    assert_eq!(machine.device(0), None);
}

fn check(server: &Server, machine: &Machine, block: &Rc<cowdisk::ublk::sim::SimBlock>, data: [u8; 32 << 10]) {
    let user = block.clone();
    let read = done(server, machine, async move { user.read(4096, 32 << 10).await });
    assert!(read.is_ok_and(|bytes| bytes == data));
}

/// Commands of one kind that a life has sent, raw and encoded.
fn sent(choice: &str, on_death: OnDeath, command: Command) -> (u64, u64) {
    let machine = Machine::new(Profile::of(7, 0), 70);
    let options = StartOptions { on_death, ..with(choice) };
    whole_life(&machine, &Ram::new(SIZE, 70), &options);
    machine.sent(command)
}

#[test]
fn each_feature_alone_on_and_off_on_every_driver() {
    let names = [
        "USER_RECOVERY",
        "USER_RECOVERY_REISSUE",
        "CMD_IOCTL_ENCODE",
        "UPDATE_SIZE",
        "URING_CMD_COMP_IN_TASK",
        "NEED_GET_DATA",
        "USER_COPY",
        "AUTO_BUF_REG",
        "QUIESCE",
        "SAFE_STOP_DEV",
        "NO_AUTO_PART_SCAN",
        "GET_DEV_INFO2",
        "DEL_DEV_ASYNC",
    ];
    let (mut on, mut lacking) = (0, 0);
    for profile in profiles() {
        for (seed, name) in (0..).zip(names) {
            let disk = Ram::new(SIZE, seed);
            whole_life(&Machine::new(profile, seed), &disk, &with(&format!("-{name}")));
            let Ok(forced) = format!("+{name}").parse() else { continue };
            let machine = Machine::new(profile, seed);
            let options = StartOptions { features: forced, ..options() };
            if profile.features() & forced.on.0 == forced.on.0 {
                whole_life(&machine, &disk, &options);
                on += 1;
            } else {
                let server = machine.boot();
                let e = server.run(|server| Device::start_on(server, &disk, &options).unwrap_err()).unwrap();
                assert_eq!(e.kind(), Kind::Unsupported, "{e}");
                assert!(e.to_string().contains(name), "{e}");
                assert_eq!(machine.device(0), None);
                lacking += 1;
            }
        }
    }
    println!(
        "ublk: {} features left out, {on} insisted on and had, {lacking} lacking, on 7 drivers",
        7 * names.len()
    );
    assert!(on > 30 && lacking > 10);
}

#[test]
fn what_is_left_out_is_not_sent_and_what_replaces_it_is() {
    use OnDeath::{Remove, Wait};
    let none = (0, 0);
    assert!(sent("-CMD_IOCTL_ENCODE", Wait, admin::ADD_DEV).0 > 0);
    assert_eq!(sent("-CMD_IOCTL_ENCODE", Wait, admin::ADD_DEV).1, 0);
    assert!(sent("+QUIESCE", Wait, admin::QUIESCE_DEV).1 > 0);
    assert_eq!(sent("-QUIESCE", Wait, admin::QUIESCE_DEV), none);
    assert!(sent("+SAFE_STOP_DEV", Wait, admin::TRY_STOP_DEV).1 > 0);
    assert_eq!(sent("-SAFE_STOP_DEV", Wait, admin::TRY_STOP_DEV), none);
    assert!(sent("+USER_COPY", Remove, admin::DEL_DEV_ASYNC).1 > 0);
    assert_eq!(sent("+USER_COPY", Remove, admin::DEL_DEV).1, 0);
    assert_eq!(sent("-DEL_DEV_ASYNC", Wait, admin::DEL_DEV_ASYNC), none);
    assert!(sent("-DEL_DEV_ASYNC", Wait, admin::DEL_DEV).1 > 0);
    assert_eq!(sent("-USER_RECOVERY", Wait, admin::START_USER_RECOVERY), none);
    assert!(sent("+USER_RECOVERY", Wait, admin::START_USER_RECOVERY).1 > 0);
}

#[test]
fn a_size_that_the_driver_is_not_told_stays_as_it_was() {
    let machine = Machine::new(Profile::of(7, 0), 75);
    let server = machine.boot();
    server.run(|server| {
        let disk = Ram::new(SIZE, 75);
        let mut device = Device::start_on(server, &disk, &with("-UPDATE_SIZE")).unwrap();
        assert_eq!(device.update_size(2 * SIZE).unwrap_err().kind(), Kind::Unsupported);
        assert_eq!(device.may_shrink().unwrap_err().kind(), Kind::InUse);
        device.stop(true).unwrap();
    });
    assert_eq!(machine.sent(admin::UPDATE_SIZE), (0, 0));
}

/// GET_DEV_INFO2 is for questions of processes that know nothing of the device; the server that makes it needs none.
#[test]
fn a_device_is_asked_for_by_its_path_where_the_driver_has_that() {
    for profile in profiles() {
        let machine = Machine::new(profile, 71);
        let server = machine.boot();
        server.run(|server| {
            let disk = Ram::new(SIZE, 71);
            let mut device = Device::start_on(server, &disk, &options()).unwrap();
            assert_eq!(device_info_on(server, 0).unwrap().state, State::Live);
            device.stop(true).unwrap();
        });
        let by_path = machine.sent(admin::GET_DEV_INFO2) != (0, 0);
        assert_eq!(by_path, profile.version >= Version(6, 5), "{profile:?}");
    }
}

/// Each policy makes one of the legal sets of recovery flags; the fourth set comes by leaving REISSUE out.
#[test]
fn the_four_legal_sets_of_recovery_flags() {
    let bits = flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE | flag::USER_RECOVERY_FAIL_IO;
    let wait = flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE;
    let fail = flag::USER_RECOVERY | flag::USER_RECOVERY_FAIL_IO;
    for (on_death, choice, wanted) in [
        (OnDeath::Remove, "-USER_COPY", 0),
        (OnDeath::Wait, "-USER_RECOVERY_REISSUE", flag::USER_RECOVERY),
        (OnDeath::Wait, "-USER_COPY", wait),
        (OnDeath::Fail, "-USER_COPY", fail),
    ] {
        let machine = Machine::new(Profile::of(7, 0), 72);
        let server = machine.boot();
        let options = StartOptions { on_death, ..with(choice) };
        let given = server.run(|server| {
            let mut device = Device::start_on(server, &Ram::new(SIZE, 72), &options).unwrap();
            let given = device.features();
            device.stop(true).unwrap();
            given
        });
        assert_eq!(given.map(|given| given.0 & bits), Some(wanted), "{on_death:?} {choice}");
        whole_life(&Machine::new(Profile::of(7, 0), 73), &Ram::new(SIZE, 73), &options);
    }
}

/// What a waiting device was made without cannot be insisted on when it is taken up, and leaves it waiting.
#[test]
fn a_waiting_device_keeps_its_features() {
    let machine = Machine::new(Profile::of(7, 0), 74);
    let disk = Ram::new(SIZE, 74);
    let first = machine.boot();
    first.run(|server| drop(Device::start_on(server, &disk, &with("-USER_COPY")).unwrap()));
    first.exit();
    machine.run(1000);
    let of = |choice: &str| RecoverOptions { device_id: 0, tag: 9, features: choice.parse().unwrap() };
    let second = machine.boot();
    second.run(|server| {
        let e = Device::recover_on(server, &disk, &of("+USER_COPY")).unwrap_err();
        assert_eq!(e.kind(), Kind::Unsupported, "{e}");
        assert_eq!(server.devices(), [0]);
        let mut device = Device::recover_on(server, &disk, &of("+QUIESCE")).unwrap();
        assert_eq!(device.copy_mode(), CopyMode::AtFetch);
        device.stop(true).unwrap();
    });
    assert_eq!(machine.device(0), None);
}
