//! The simulated driver itself: who may send what to a queue, and the errno otherwise.

use cowdisk::ublk::driver::{CharDevice, Driver};
use cowdisk::ublk::sim::{Bio, Machine, Profile};
use cowdisk::ublk::uapi::{IoCmd, admin, flag, io, io_result, op, state};

use super::profiles;
use super::raw::{DEPTH, Raw, info, params, result};

fn encoded(profile: &Profile) -> bool {
    profile.features() & flag::CMD_IOCTL_ENCODE != 0
}

#[test]
fn fetches_commits_and_their_errors() {
    for profile in profiles() {
        let machine = Machine::new(profile, 40);
        let mut raw = Raw::new(&machine, encoded(&profile));
        raw.add(info(0, 0)).unwrap();
        assert_eq!(raw.set_params(0, &params()), 0);
        let tags = raw.open(0);
        let ends = |mut op| result(&mut op);
        assert_eq!(ends(tags.io(io::FETCH_REQ, 1, 0, 0)), Some(-libc::EINVAL), "no such queue");
        assert_eq!(ends(tags.io(io::FETCH_REQ, 0, DEPTH, 0)), Some(-libc::EINVAL), "no such tag");
        assert_eq!(
            ends(tags.io(io::COMMIT_AND_FETCH_REQ, 0, 0, 0)),
            Some(-libc::EINVAL),
            "nothing to commit"
        );
        assert_eq!(ends(tags.io(io::NEED_GET_DATA, 0, 0, 0)), Some(-libc::EINVAL), "nobody asked");
        let mut first = tags.io(io::FETCH_REQ, 0, 0, 0);
        assert_eq!(result(&mut first), None, "it waits for a request");
        assert_eq!(ends(tags.io(io::FETCH_REQ, 0, 0, 0)), Some(-libc::EBUSY), "twice");
        let other = ends(tags.io_as(2, io::FETCH_REQ, 0, 1, 0));
        let owns_all = profile.features() & flag::PER_IO_DAEMON == 0;
        assert_eq!(other, owns_all.then_some(-libc::EINVAL), "another thread of the queue");
        let unknown = tags.char.io(0x7f, IoCmd::default(), Some(tags.bufs[0].clone()));
        assert!([Some(-libc::EINVAL), Some(-libc::EOPNOTSUPP)].contains(&ends(unknown)));
    }
}

#[test]
fn the_three_results_and_the_end_of_a_device() {
    for profile in profiles() {
        let machine = Machine::new(profile, 41);
        let mut raw = Raw::new(&machine, encoded(&profile));
        let mut tags = raw.start(0, flag::NEED_GET_DATA);
        assert_eq!(raw.info(0).unwrap().state, state::LIVE);
        let block = machine.open(0).unwrap();
        let user = machine.user(async move {
            let bio = Bio { op_flags: op::WRITE, sector: 8, sectors: 1, data: vec![9; 512] };
            block.submit(bio).await
        });
        // 1: the server is to name a buffer.
        let (tag, got) = tags.next();
        assert_eq!(got, io_result::NEED_GET_DATA);
        assert_eq!(result(&mut tags.io(io::COMMIT_AND_FETCH_REQ, 0, tag, 512)), Some(-libc::EINVAL));
        assert_eq!(tags.bufs[usize::from(tag)].to_vec()[0], 0, "no data yet");
        let mut get = tags.io(io::NEED_GET_DATA, 0, tag, 0);
        assert_eq!(result(&mut get), None);
        // 0: there is a request.
        tags.ops[usize::from(tag)] = Some(get);
        assert_eq!(tags.next(), (tag, io_result::OK));
        assert_eq!(tags.bufs[usize::from(tag)].to_vec()[..512], [9; 512]);
        tags.commit(tag, 512);
        raw.server.work(50);
        assert_eq!(user.try_take(), Some(Ok(vec![])));
        // -ENODEV: the tag is gone.
        assert_eq!(raw.simple(admin::STOP_DEV, 0, 0), 0);
        for _ in 0..DEPTH {
            assert_eq!(tags.completed().map(|(_, result)| result), Some(io_result::ABORT));
        }
        assert_eq!(raw.info(0).unwrap().state, state::DEAD);
        assert_eq!((raw.simple(admin::STOP_DEV, 0, 0), machine.open(0).is_some()), (0, false));
        // DEL_DEV waits for the last reference.
        assert_eq!(raw.try_send(admin::DEL_DEV, 0, 0, &mut []), None);
        drop(tags);
        raw.server.work(50);
        assert_eq!(raw.info(0), Err(-libc::ENODEV));
    }
}

#[test]
fn short_counts_are_sent_again_and_noted() {
    let machine = Machine::new(Profile::of(6, 12), 42);
    let mut raw = Raw::new(&machine, true);
    let mut tags = raw.start(0, 0);
    let block = machine.open(0).unwrap();
    let user = machine.user(async move { block.read(0, 2048).await });
    tags.bufs.iter().for_each(|buf| buf.copy_from(0, &[1; 512]));
    let (tag, got) = tags.next();
    assert_eq!(got, 0);
    tags.commit(tag, 512);
    tags.bufs.iter().for_each(|buf| buf.copy_from(0, &[2; 1536]));
    tags.serve_one(1536);
    assert_eq!(user.try_take(), Some(Ok([vec![1; 512], vec![2; 1536]].concat())));
    assert_eq!(machine.broken_rules().len(), 1);
}

#[test]
fn start_waits_for_every_tag() {
    let machine = Machine::new(Profile::of(6, 0), 43);
    let mut raw = Raw::new(&machine, false);
    raw.add(info(0, 0)).unwrap();
    assert_eq!(raw.set_params(0, &params()), 0);
    let mut tags = raw.open(0);
    for tag in 0..DEPTH - 1 {
        tags.ops[usize::from(tag)] = Some(tags.io(io::FETCH_REQ, 0, tag, 0));
    }
    let pid = u64::from(raw.server.pid());
    assert_eq!(raw.try_send(admin::START_DEV, 0, pid, &mut []), None, "a tag is missing");
    tags.ops[3] = Some(tags.io(io::FETCH_REQ, 0, 3, 0));
    tags.serve_one(512);
    assert_eq!(machine.device(0).map(|device| device.pid), Some(i32::try_from(pid).ok()));
    assert_eq!(raw.simple(admin::START_DEV, 0, pid), -libc::EEXIST);
    assert_eq!(result(&mut tags.io(io::FETCH_REQ, 0, 0, 0)), Some(-libc::EBUSY));
}

#[test]
fn one_process_has_the_character_device_and_its_descriptors() {
    for profile in profiles() {
        let machine = Machine::new(profile, 44);
        let mut raw = Raw::new(&machine, encoded(&profile));
        raw.add(info(0, 0)).unwrap();
        let tags = raw.open(0);
        let other = machine.boot();
        assert_eq!(other.open_char(0).unwrap_err().raw_os_error(), Some(libc::EBUSY));
        assert_eq!(other.open_char(1).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        let mapping = tags.char.map(0, DEPTH).unwrap();
        assert!(tags.char.map(0, DEPTH - 1).is_err() && tags.char.map(1, DEPTH).is_err());
        drop(tags);
        assert!(other.open_char(0).is_err(), "the mapping is a reference, too");
        drop(mapping);
        let char = other.open_char(0).unwrap();
        let bound = profile.version < cowdisk::ublk::sim::Version(6, 15);
        assert_eq!(char.map(0, DEPTH).is_err(), bound, "{profile:?}");
    }
}

#[test]
fn a_server_copies_data_only_of_the_request_that_it_has_and_only_one_way() {
    for profile in profiles().filter(|profile| profile.features() & flag::USER_COPY != 0) {
        let machine = Machine::new(profile, 45);
        let mut raw = Raw::new(&machine, true);
        let given = raw.add(info(0, flag::USER_COPY | flag::NEED_GET_DATA)).unwrap();
        assert_eq!(given.flags & (flag::USER_COPY | flag::NEED_GET_DATA), flag::USER_COPY);
        assert_eq!(raw.simple(admin::DEL_DEV, 0, 0), 0);
        let mut tags = raw.start(0, flag::USER_COPY);
        tags.names_buffers = true;
        let mut named = tags.io(io::FETCH_REQ, 0, 0, 0);
        assert!(result(&mut named).is_some_and(|errno| errno < 0), "no command names a buffer");
        tags.names_buffers = false;
        let errno = |copied: std::io::Result<()>| copied.map_err(|e| e.raw_os_error().unwrap());
        let buf = tags.bufs[0].slice(0..512);
        assert_eq!(errno(tags.char.copy_from_request(0, 0, &buf)), Err(libc::EINVAL), "no request");
        assert_eq!(errno(tags.char.copy_from_request(1, 0, &buf)), Err(libc::EINVAL), "no queue");
        assert_eq!(errno(tags.char.copy_from_request(0, DEPTH, &buf)), Err(libc::EINVAL), "no tag");
        let block = std::rc::Rc::new(machine.open(0).unwrap());
        let writer = block.clone();
        let write = machine.user(async move { writer.write(512, &[5; 512], 0).await });
        let (tag, _) = tags.next();
        assert_eq!(errno(tags.char.copy_to_request(0, tag, &buf)), Err(libc::EACCES));
        assert_eq!(errno(tags.char.copy_from_request(0, tag, &buf)), Ok(()));
        assert_eq!(buf.to_vec(), [5; 512]);
        tags.commit(tag, 512);
        let read = machine.user(async move { block.read(512, 512).await });
        let (tag, _) = tags.next();
        assert_eq!(errno(tags.char.copy_from_request(0, tag, &buf)), Err(libc::EACCES));
        buf.copy_from(0, &[6; 512]);
        assert_eq!(errno(tags.char.copy_to_request(0, tag, &buf)), Ok(()));
        tags.commit(tag, 512);
        raw.server.work(50);
        assert_eq!((write.try_take(), read.try_take()), (Some(Ok(())), Some(Ok(vec![6; 512]))));
        assert!(machine.broken_rules().is_empty());
    }
    let machine = Machine::new(Profile::of(7, 0), 46);
    let mut raw = Raw::new(&machine, true);
    let mut tags = raw.start(0, 0);
    let block = machine.open(0).unwrap();
    let read = machine.user(async move { block.read(0, 512).await });
    let (tag, _) = tags.next();
    let copied = tags.char.copy_to_request(0, tag, &tags.bufs[0]);
    assert_eq!(copied.unwrap_err().raw_os_error(), Some(libc::EACCES), "not negotiated");
    tags.commit(tag, 512);
    raw.server.work(50);
    assert!(read.try_take().is_some());
}
