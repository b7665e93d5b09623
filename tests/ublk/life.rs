//! The life of a device as its server leads it: which commands it sends to which driver, and what it makes of errors.

use std::rc::Rc;

use cowdisk::Kind;
use cowdisk::device::Geometry;
use cowdisk::storage::sim::JoinHandle;
use cowdisk::ublk::sim::{Machine, Profile, Server, SimBlock};
use cowdisk::ublk::uapi::{Command, admin, flag, io};
use cowdisk::ublk::{
    CopyMode, Device, RecoverOptions, StartOptions, State, device_info_on, list_devices_on, remove_waiting_on,
};

use super::model::Ram;
use super::profiles;

pub const SIZE: u64 = 1 << 20;

pub fn options() -> StartOptions {
    StartOptions { queues: 2, depth: 4, max_io: 16 << 10, tag: 9, ..StartOptions::default() }
}

/// Runs `act` with a served disk, then stops it.
pub fn served<T>(
    machine: &Machine,
    disk: &Ram,
    options: &StartOptions,
    act: impl FnOnce(&Server, &mut Device<Server>) -> T,
) -> T {
    let server = machine.boot();
    let run = |server: &Server| {
        let mut device = Device::start_on(server, disk, options).unwrap();
        let value = act(server, &mut device);
        device.stop(true).unwrap();
        value
    };
    let value = server.run(run).expect("nobody killed it");
    server.exit();
    assert!(machine.broken_rules().is_empty(), "{:?}", machine.broken_rules());
    assert_eq!(machine.counts().refused, 0);
    value
}

/// Waits for what a user does.
pub fn done<T: 'static>(server: &Server, machine: &Machine, task: impl Future<Output = T> + 'static) -> T {
    let user = machine.user(task);
    loop {
        if let Some(value) = user.try_take() {
            return value;
        }
        server.work(1);
    }
}

const EIGHT: [Command; 8] = [
    admin::GET_QUEUE_AFFINITY,
    admin::GET_DEV_INFO,
    admin::ADD_DEV,
    admin::DEL_DEV,
    admin::START_DEV,
    admin::STOP_DEV,
    admin::SET_PARAMS,
    admin::GET_PARAMS,
];
const THREE: [Command; 3] = [io::FETCH_REQ, io::COMMIT_AND_FETCH_REQ, io::NEED_GET_DATA];

/// Starts, writes, reads, looks, stops.
fn whole_life(profile: Profile) -> Machine {
    let machine = Machine::new(profile, 1);
    let options = StartOptions { copy: Some(CopyMode::GetData), ..options() };
    let disk = Ram::new(SIZE, 1);
    let server = machine.boot();
    let run = |server: &Server| {
        assert_eq!(machine.device(0), None);
        let mut device = Device::start_on(server, &disk, &options).unwrap();
        let info = device_info_on(server, 0).unwrap();
        assert_eq!((info.state, info.pid), (State::Live, Some(i32::try_from(server_pid(server)).unwrap())));
        assert_eq!((info.queues, info.depth, info.max_io), (2, 4, 16 << 10));
        let block = machine.open(0).unwrap();
        let read = done(server, &machine, async move {
            block.write(4096, &[7; 8192], 0).await.unwrap();
            block.read(4096, 8192).await
        });
        assert_eq!(read, Ok(vec![7; 8192]));
        device.stop(false).unwrap();
        assert_eq!(machine.device(0), None);
        assert!(list_devices_on(server).unwrap().is_empty());
    };
    server.run(run).unwrap();
    assert_eq!((machine.counts().refused, machine.broken_rules()), (0, vec![]));
    machine
}

fn server_pid(server: &Server) -> u32 {
    cowdisk::ublk::driver::Driver::pid(server)
}

#[test]
fn a_driver_of_6_0_gets_raw_numbers_and_nothing_newer() {
    let machine = whole_life(Profile::of(6, 0));
    for command in EIGHT.into_iter().chain(THREE) {
        let (raw, encoded) = machine.sent(command);
        assert!(raw > 0 && encoded == 0, "{}: {raw} raw, {encoded} encoded", command.name);
    }
    // Only the question which driver it is goes out in the new form.
    assert_eq!(machine.sent(admin::GET_FEATURES), (0, 3));
    for newer in [admin::START_USER_RECOVERY, admin::DEL_DEV_ASYNC, admin::QUIESCE_DEV, admin::TRY_STOP_DEV] {
        assert_eq!(machine.sent(newer), (0, 0), "{}", newer.name);
    }
}

#[test]
fn a_driver_from_6_5_on_gets_encoded_numbers_with_or_without_the_raw_ones() {
    for raw_numbers in [true, false] {
        for minor in [5, 12, 16] {
            let machine = whole_life(Profile { raw_numbers, ..Profile::of(6, minor) });
            for command in EIGHT.into_iter().chain(THREE) {
                // It is asked by the device's path, too, which is a command of its own.
                let asks = command == admin::GET_DEV_INFO;
                let (raw, encoded) = machine.sent(if asks { admin::GET_DEV_INFO2 } else { command });
                assert!(raw == 0 && encoded > 0, "6.{minor} {}: {raw} raw", command.name);
            }
        }
    }
}

/// 6.4 has the encoding and no GET_FEATURES: whether it was built without raw numbers shows only in a try.
#[test]
fn a_driver_of_6_4_is_served_however_it_was_built() {
    let machine = whole_life(Profile::of(6, 4));
    assert!(machine.sent(admin::ADD_DEV).0 > 0);
    let machine = whole_life(Profile { raw_numbers: false, ..Profile::of(6, 4) });
    assert_eq!(machine.sent(admin::ADD_DEV).0, 0);
}

#[test]
fn what_is_negotiated_is_what_the_driver_has() {
    for profile in profiles() {
        let machine = Machine::new(profile, 2);
        let features = served(&machine, &Ram::new(SIZE, 2), &options(), |_, device| device.features());
        for (bit, name) in [
            (flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE, "recovery"),
            (flag::CMD_IOCTL_ENCODE, "encoding"),
            (flag::QUIESCE, "quiesce"),
            (flag::UPDATE_SIZE, "another size"),
            (flag::SAFE_STOP_DEV, "safe stop"),
            (flag::URING_CMD_COMP_IN_TASK, "completion in task context"),
        ] {
            assert_eq!(features.has(bit), profile.features() & bit == bit, "{profile:?}: {name}");
        }
        assert!(!features.has(flag::NEED_GET_DATA) && !features.has(flag::SUPPORT_ZERO_COPY));
    }
}

#[test]
fn users_are_told_of_another_size_where_the_driver_can() {
    for profile in profiles() {
        let machine = Machine::new(profile, 11);
        let can = profile.features() & flag::UPDATE_SIZE != 0;
        served(&machine, &Ram::new(SIZE, 11), &options(), |_, device| {
            // Nobody has it open.
            let shrinks = device.may_shrink();
            assert_eq!(shrinks.as_ref().map_err(|e| e.kind()), if can { Ok(&()) } else { Err(Kind::InUse) });
            let block = machine.open(0).unwrap();
            assert_eq!(device.may_shrink().unwrap_err().kind(), Kind::InUse);
            for size in [2 * SIZE, SIZE / 2] {
                let told = device.update_size(size).map_err(|e| e.kind());
                assert_eq!(told, if can { Ok(()) } else { Err(Kind::Unsupported) });
                let seen = machine.params(0).unwrap().basic.dev_sectors * 512;
                assert_eq!(seen, if can { size } else { SIZE });
            }
            drop(block);
        });
        let sent = machine.sent(admin::UPDATE_SIZE);
        assert_eq!(sent.0 + sent.1, if can { 2 } else { 0 }, "{profile:?}");
    }
}

/// Who copies, where the driver can do what was wanted; otherwise it copies by itself, and the start says so.
#[test]
fn data_is_copied_as_wanted_where_the_driver_has_that() {
    for profile in profiles() {
        for copy in [CopyMode::AtFetch, CopyMode::GetData, CopyMode::UserCopy] {
            let machine = Machine::new(profile, 3);
            let (disk, options) = (Ram::new(SIZE, 3), StartOptions { copy: Some(copy), ..options() });
            let has = copy != CopyMode::UserCopy || profile.features() & flag::USER_COPY != 0;
            served(&machine, &disk, &options, |server, device| {
                assert_eq!(device.copy_mode(), if has { copy } else { CopyMode::AtFetch }, "{profile:?}");
                assert_eq!(device.warnings().len(), usize::from(!has));
                let block = machine.open(0).unwrap();
                let read = done(server, &machine, async move {
                    block.write(0, &[3; 40 << 10], 0).await.unwrap();
                    block.read(0, 40 << 10).await
                });
                assert_eq!(read, Ok(vec![3; 40 << 10]));
            });
            let counts = machine.counts();
            // In pieces of 16 KiB, and the look for partitions is a read.
            let (asked, copied) = (copy == CopyMode::GetData, has && copy == CopyMode::UserCopy);
            assert_eq!(counts.get_data, if asked { 3 } else { 0 });
            assert!(if copied { counts.user_copies >= 6 } else { counts.user_copies == 0 });
        }
    }
}

/// Sixteen users with requests of half the pool, so that most of them wait for room: each writes and reads back.
fn crowd(machine: &Machine) -> Vec<JoinHandle<bool>> {
    let block = Rc::new(machine.open(0).unwrap());
    let user = |n: u8| {
        let (block, pos) = (block.clone(), u64::from(n) * SHARE);
        machine.user(async move {
            block.write(pos, &vec![n + 1; SHARE as usize], 0).await.unwrap();
            block.read(pos, SHARE).await.is_ok_and(|bytes| bytes.iter().all(|byte| *byte == n + 1))
        })
    };
    (0..16).map(user).collect()
}

const SHARE: u64 = 1 << 20;

fn crowded() -> StartOptions {
    StartOptions { queues: 1, depth: 16, max_io: SHARE as u32, copy: Some(CopyMode::UserCopy), ..options() }
}

#[test]
fn requests_wait_for_room_in_the_pool() {
    let machine = Machine::new(Profile::of(7, 0), 8);
    let disk = Ram::new(16 * SHARE, 8);
    served(&machine, &disk, &crowded(), |server, _| {
        let users = crowd(&machine);
        let mut most = 0;
        while !users.iter().all(JoinHandle::is_finished) {
            server.work(1);
            most = most.max(disk.running());
        }
        assert!(users.iter().all(|user| user.try_take() == Some(true)));
        assert_eq!(most, 2);
    });
}

/// A server that leaves, with QUIESCE_DEV or without, ends what waits for room; one that dies loses none of it.
#[test]
fn requests_that_wait_for_room_outlive_the_server() {
    for (seed, profile) in (0..).zip([Profile::of(6, 12), Profile::of(6, 16), Profile::of(7, 0)]) {
        for leaves in [true, false] {
            let machine = Machine::new(profile, seed);
            let disk = Ram::new(16 * SHARE, seed);
            let first = machine.boot();
            let users = first.run(|server| {
                let device = Device::start_on(server, &disk, &crowded()).unwrap();
                let users = crowd(&machine);
                while machine.tags(0).0 > 0 {
                    server.work(1);
                }
                if leaves {
                    device.leave_waiting().unwrap();
                }
                users
            });
            first.exit();
            machine.boot().run(|server| {
                let of = RecoverOptions { device_id: 0, tag: 9, ..RecoverOptions::default() };
                let _device = Device::recover_on(server, &disk, &of).unwrap();
                let users = users.unwrap();
                while !users.iter().all(JoinHandle::is_finished) {
                    server.work(1);
                }
                assert!(users.iter().all(|user| user.try_take() == Some(true)), "{profile:?}");
            });
            let reissued = machine.counts().reissued;
            assert!(leaves || reissued > 0, "{profile:?}: {reissued}");
            assert_eq!((machine.broken_rules(), machine.counts().refused), (vec![], 0));
        }
    }
}

#[test]
fn queues_and_depth_are_what_the_driver_makes_of_them() {
    let profile = Profile { cpus: 1, tags: 3, ..Profile::of(6, 12) };
    let machine = Machine::new(profile, 4);
    let options = StartOptions { queues: 8, depth: 64, ..options() };
    let shape = served(&machine, &Ram::new(SIZE, 4), &options, |_, device| device.shape());
    assert_eq!(shape, (1, 3));
}

#[test]
fn a_disk_in_use_is_not_stopped_unless_forced() {
    for profile in profiles() {
        let machine = Machine::new(profile, 5);
        served(&machine, &Ram::new(SIZE, 5), &options(), |server, device| {
            let block = machine.open(0).unwrap();
            assert_eq!(device.stop(false).unwrap_err().kind(), Kind::InUse);
            let read = done(server, &machine, async move { (block.read(0, 512).await, block) });
            assert!(read.0.is_ok(), "it goes on serving");
            drop(read.1);
            assert_eq!(
                machine.sent(admin::TRY_STOP_DEV).1 > 0,
                profile.features() & flag::SAFE_STOP_DEV != 0
            );
        });
    }
}

/// Stopped by force under load: what is in flight ends, what comes later fails, and the disk is gone.
#[test]
fn a_stop_under_load_ends_every_request() {
    let (mut served_requests, mut refused) = (0, 0);
    for profile in profiles() {
        for seed in 0..10 {
            let machine = Machine::new(profile, seed);
            let server = machine.boot();
            let users = server.run(|server| {
                let mut device = Device::start_on(server, &Ram::new(SIZE, seed), &options()).unwrap();
                let users: Vec<_> =
                    (0..12).map(|n| machine.user(until_error(machine.open(0).unwrap(), n))).collect();
                server.work(500);
                device.stop(true).unwrap();
                assert!(device.ended());
                users
            });
            server.exit();
            machine.run(100_000);
            for user in users.unwrap() {
                let (done, errno) = user.try_take().expect("nobody waits for ever");
                assert!([libc::EIO, libc::ENXIO].contains(&errno), "{errno}");
                (served_requests, refused) = (served_requests + done, refused + 1);
            }
            let counts = machine.counts();
            assert_eq!((counts.requests, counts.refused, machine.device(0)), (counts.ended, 0, None));
            assert!(machine.broken_rules().is_empty());
        }
    }
    println!("ublk: 70 stops under load: {served_requests} requests done, {refused} refused after the stop");
}

async fn until_error(block: SimBlock, user: u64) -> (u64, i32) {
    for done in 0.. {
        if let Err(errno) = block.write(user * 4096, &[1; 4096], 0).await {
            return (done, errno);
        }
    }
    unreachable!("the disk goes away")
}

#[test]
fn errors_of_a_start_leave_no_device_behind() {
    let machine = Machine::new(Profile::of(6, 12), 6);
    served(&machine, &Ram::new(SIZE, 6), &options(), |_, _| {
        let other = machine.boot();
        let taken = StartOptions { device_id: Some(0), ..options() };
        let error =
            other.run(|other| Device::start_on(other, &Ram::new(SIZE, 6), &taken).unwrap_err()).unwrap();
        assert_eq!(error.kind(), Kind::Exists, "{error}");
        let geometry = Geometry { size: 1000, sector_size: 512, read_only: false, block_size: 4096 };
        let odd = Ram::new(SIZE, 6).with_geometry(geometry);
        assert_eq!(
            other.run(|other| Device::start_on(other, &odd, &options()).unwrap_err().kind()),
            Some(Kind::Usage)
        );
        other.exit();
    });
    let user = machine.boot();
    user.drop_privilege();
    let error = user.run(|user| Device::start_on(user, &Ram::new(SIZE, 6), &options()).unwrap_err()).unwrap();
    assert_eq!(error.kind(), Kind::Permission, "{error}");
    assert_eq!(machine.device(0), None);
}

#[test]
fn what_another_process_serves_is_neither_taken_up_nor_removed() {
    for profile in profiles() {
        let machine = Machine::new(profile, 7);
        served(&machine, &Ram::new(SIZE, 7), &options(), |_, _| {
            let other = machine.boot();
            let disk = Ram::new(SIZE, 7);
            let of = |id, tag| RecoverOptions { device_id: id, tag, ..RecoverOptions::default() };
            other
                .run(|other| {
                    let recover = |options| Device::recover_on(other, &disk, &options).unwrap_err().kind();
                    if profile.features() & flag::USER_RECOVERY != 0 {
                        assert_eq!(recover(of(0, 9)), Kind::InUse);
                    } else {
                        assert_eq!(recover(of(0, 9)), Kind::Unsupported);
                    }
                    assert_eq!(recover(of(0, 10)), Kind::NotFound);
                    assert_eq!(recover(of(5, 9)), Kind::NotFound);
                    let remove = |id, tag| remove_waiting_on(other, id, tag, true).unwrap_err().kind();
                    assert_eq!((remove(0, 9), remove(0, 10)), (Kind::InUse, Kind::NotFound));
                })
                .unwrap();
            other.exit();
        });
    }
}
