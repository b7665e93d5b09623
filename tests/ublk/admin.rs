//! Admin commands: negotiation, and errors.

use std::time::Duration;

use cowdisk::ublk::driver::AdminCall;
use cowdisk::ublk::list_devices_on;
use cowdisk::ublk::sim::{Machine, Profile, Version};
use cowdisk::ublk::uapi::{CtrlDevInfo, NO_DEVICE, NO_QUEUE, admin, flag, state};

use super::profiles;
use super::raw::{Raw, info};

const CODED: Version = Version(6, 4);

fn raw_on(profile: Profile, seed: u64) -> (Machine, Raw) {
    let machine = Machine::new(profile, seed);
    let raw = Raw::new(&machine, profile.version >= CODED);
    (machine, raw)
}

#[test]
fn unknown_flags_are_cleared_in_silence_and_sizes_lowered() {
    for profile in profiles() {
        let (_, mut raw) = raw_on(Profile { cpus: 2, tags: 128, ..profile }, 30);
        let asked = CtrlDevInfo {
            nr_hw_queues: 9,
            queue_depth: 4096,
            max_io_buf_bytes: 10_000,
            ..info(NO_DEVICE, 1 << 50 | flag::NEED_GET_DATA | flag::USER_RECOVERY)
        };
        let given = raw.add(asked).unwrap();
        assert_eq!((given.nr_hw_queues, given.queue_depth, given.max_io_buf_bytes), (2, 128, 8192));
        assert_eq!((given.dev_id, given.state, given.ublksrv_flags), (0, state::DEAD, 77));
        assert_eq!(given.flags & 1 << 50, 0);
        assert!(given.flags & flag::NEED_GET_DATA != 0);
        let recovery = profile.features() & flag::USER_RECOVERY;
        assert_eq!(given.flags & flag::USER_RECOVERY, recovery, "{profile:?}");
        assert_eq!(raw.info(0), Ok(given));
    }
}

/// SUPPORT_ZERO_COPY is defined from 6.0 and works from 6.15; before, the driver takes it out.
#[test]
fn zero_copy_and_completion_in_task_context() {
    for profile in profiles() {
        let (_, mut raw) = raw_on(profile, 31);
        let asked = flag::SUPPORT_ZERO_COPY | flag::URING_CMD_COMP_IN_TASK;
        let given = raw.add(info(0, asked)).unwrap().flags;
        assert_eq!(given & flag::SUPPORT_ZERO_COPY != 0, profile.version >= Version(6, 15), "{profile:?}");
        assert!(given & flag::URING_CMD_COMP_IN_TASK != 0);
        let unasked = raw.add(info(1, 0)).unwrap().flags;
        assert_eq!(unasked & flag::URING_CMD_COMP_IN_TASK != 0, profile.version >= Version(6, 5));
    }
}

#[test]
fn devices_that_cannot_be() {
    for profile in profiles() {
        let (_, mut raw) = raw_on(profile, 32);
        raw.add(info(3, 0)).unwrap();
        assert_eq!(raw.add(info(3, 0)), Err(-libc::EEXIST));
        for bad in
            [CtrlDevInfo { nr_hw_queues: 0, ..info(4, 0) }, CtrlDevInfo { queue_depth: 0, ..info(4, 0) }]
        {
            assert_eq!(raw.add(bad), Err(-libc::EINVAL));
        }
        assert_eq!(raw.send(admin::ADD_DEV, 4, 0, &mut [0; 63]), -libc::EINVAL, "too short");
        assert_eq!(raw.send(admin::ADD_DEV, 4, 0, &mut info(5, 0).to_bytes()), -libc::EINVAL, "two numbers");
        if profile.version >= Version(6, 13) {
            let both = flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE | flag::USER_RECOVERY_FAIL_IO;
            for illegal in [flag::USER_RECOVERY_REISSUE, flag::USER_RECOVERY_FAIL_IO, both] {
                assert_eq!(raw.add(info(4, illegal)), Err(-libc::EINVAL));
            }
        }
        assert_eq!(raw.add(info(4, 0)).map(|info| info.dev_id), Ok(4));
    }
}

#[test]
fn commands_for_nobody_and_from_nobody() {
    let commands = [
        admin::GET_QUEUE_AFFINITY,
        admin::GET_DEV_INFO,
        admin::DEL_DEV,
        admin::START_DEV,
        admin::STOP_DEV,
        admin::SET_PARAMS,
        admin::GET_PARAMS,
        admin::START_USER_RECOVERY,
        admin::END_USER_RECOVERY,
        admin::DEL_DEV_ASYNC,
        admin::UPDATE_SIZE,
        admin::QUIESCE_DEV,
        admin::TRY_STOP_DEV,
    ];
    for profile in profiles() {
        let (machine, mut raw) = raw_on(profile, 33);
        for command in commands {
            let code = raw.send(command, 8, 1, &mut [0; 64]);
            let missing = if profile.version >= Version(6, 3) {
                [-libc::ENODEV; 2]
            } else {
                [-libc::ENODEV, -libc::EOPNOTSUPP]
            };
            assert!(missing.contains(&code), "{profile:?} {}: {code}", command.name);
        }
        raw.server.drop_privilege();
        for command in commands {
            assert_eq!(raw.send(command, 8, 1, &mut [0; 64]), -libc::EPERM, "{}", command.name);
        }
        assert_eq!(raw.add(info(0, 0)), Err(-libc::EPERM));
        assert_eq!(machine.device(0), None);
    }
}

#[test]
fn numbers_in_the_form_that_the_driver_does_not_take() {
    let machine = Machine::new(Profile::of(6, 0), 34);
    let mut raw = Raw::new(&machine, true);
    assert_eq!(raw.add(info(0, 0)), Err(-libc::EOPNOTSUPP));
    let machine = Machine::new(Profile { raw_numbers: false, ..Profile::of(6, 12) }, 34);
    let mut raw = Raw::new(&machine, false);
    assert_eq!(raw.add(info(0, 0)), Err(-libc::EOPNOTSUPP));
    raw.encoded = true;
    raw.add(info(0, 0)).unwrap();
}

#[test]
fn every_cpu_belongs_to_one_queue() {
    let (_, mut raw) = raw_on(Profile { cpus: 6, ..Profile::of(6, 0) }, 35);
    raw.add(CtrlDevInfo { nr_hw_queues: 4, ..info(0, 0) }).unwrap();
    let mut all = 0;
    for queue in 0..4 {
        let mut mask = [0xff; 8];
        assert_eq!(raw.send(admin::GET_QUEUE_AFFINITY, 0, queue, &mut mask), 0);
        assert!(mask[0] != 0 && all & mask[0] == 0);
        all |= mask[0];
    }
    assert_eq!(all, 0b11_1111);
    assert_eq!(raw.send(admin::GET_QUEUE_AFFINITY, 0, 4, &mut [0; 8]), -libc::EINVAL);
    assert_eq!(raw.send(admin::GET_QUEUE_AFFINITY, 0, 0, &mut [0; 7]), -libc::EINVAL);
}

#[test]
fn size_quiesce_and_a_careful_stop() {
    let (machine, mut raw) = raw_on(Profile::of(7, 0), 36);
    let mut tags =
        raw.start(0, flag::UPDATE_SIZE | flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE | flag::QUIESCE);
    assert_eq!(raw.simple(admin::UPDATE_SIZE, 0, 4096), 0);
    assert_eq!(raw.params(0).unwrap().basic.dev_sectors, 4096);
    let block = machine.open(0).unwrap();
    assert_eq!(raw.simple(admin::TRY_STOP_DEV, 0, 0), -libc::EBUSY);
    // With every tag in use QUIESCE_DEV gives up after its milliseconds.
    let block = std::rc::Rc::new(block);
    let users: Vec<_> = (0..5_u64)
        .map(|n| {
            let block = block.clone();
            machine.user(async move { block.read(n * 512, 512).await })
        })
        .collect();
    raw.server.work(200);
    let quiesce = AdminCall {
        number: admin::QUIESCE_DEV.encoded,
        device: 0,
        queue: NO_QUEUE,
        data: 100,
        send: &[],
        len: 0,
        path_len: 0,
        bound: Duration::from_secs(5),
    };
    assert_eq!(raw.call(&quiesce), Some(-libc::EBUSY));
    for _ in 0..5 {
        tags.serve_one(512);
    }
    assert!(users.iter().all(|user| user.try_take() == Some(Ok(vec![0; 512]))));
    assert_eq!(raw.call(&quiesce), Some(0));
    assert_eq!(tags.completed().map(|(_, result)| result), Some(-libc::ENODEV));
    drop(block);
    raw.server.work(50);
    assert_eq!(raw.simple(admin::TRY_STOP_DEV, 0, 0), 0);
    assert_eq!(raw.info(0).unwrap().state, state::DEAD);
    assert_eq!(raw.simple(admin::DEL_DEV_ASYNC, 0, 0), 0);
    assert_eq!(raw.info(0).map(|info| info.dev_id), Ok(0), "somebody has it open");
    drop(tags);
    assert_eq!(raw.info(0), Err(-libc::ENODEV));
}

#[test]
fn an_ordinary_users_device_is_asked_for_by_its_path() {
    for profile in profiles().filter(|profile| profile.features() & flag::UNPRIVILEGED_DEV != 0) {
        let (machine, mut raw) = raw_on(profile, 37);
        raw.add(info(2, flag::UNPRIVILEGED_DEV)).unwrap();
        assert_eq!(raw.info(2), Err(-libc::EINVAL), "without the path");
        let path = b"/dev/ublkc2";
        let mut ask = |command: cowdisk::ublk::uapi::Command, path: &[u8], len: usize| {
            let number = raw.number(command);
            let call = AdminCall {
                number,
                device: 2,
                queue: NO_QUEUE,
                data: 0,
                send: path,
                len: u16::try_from(len).unwrap(),
                path_len: u16::try_from(path.len()).unwrap(),
                bound: Duration::from_secs(5),
            };
            raw.call(&call).unwrap()
        };
        let room = path.len() + CtrlDevInfo::SIZE;
        assert_eq!(ask(admin::GET_DEV_INFO2, path, room), 0);
        assert_eq!(ask(admin::GET_DEV_INFO, path, room), 0);
        assert_eq!(ask(admin::GET_DEV_INFO2, path, room - 1), -libc::EINVAL, "no room for the answer");
        assert_eq!(ask(admin::GET_DEV_INFO2, b"/dev/ublkc1", room), -libc::EINVAL, "another device's");
        assert_eq!(ask(admin::GET_DEV_INFO2, b"", CtrlDevInfo::SIZE), -libc::EINVAL);
        // One such device must not hide the others.
        if profile.version >= Version(6, 5) {
            let listed = machine.boot().run(|server| list_devices_on(server).unwrap()).unwrap();
            assert_eq!(listed.iter().map(|device| device.id).collect::<Vec<_>>(), [2]);
        }
    }
}
