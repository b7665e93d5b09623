//! Files without crashes.

use super::*;
use crate::storage::{BUF_ALIGN, FileKind, Lock};
use std::io;

#[test]
fn reads_give_what_was_written_and_zeros_between() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 10_000, 7, 5_000);
    write(&disk, &file, 10_100, 9, 1);
    let mut expected = vec![0; 15_000];
    expected[10_000..].fill(7);
    expected[10_100] = 9;
    assert_eq!(disk.read_file(FILE).unwrap(), expected);
    assert_eq!(read(&disk, &file, 9_990, 200), expected[9_990..10_190]);
    let buf = IoBuf::zeroed(64);
    assert_eq!(disk.block_on(file.read(buf.clone(), 14_990)).result.unwrap(), 10);
    assert_eq!(disk.block_on(file.read(buf, 15_000)).result.unwrap(), 0);
}

#[test]
fn a_write_of_several_buffers_is_one_write_and_gives_the_list_back() {
    let (disk, file) = disk_with_file();
    let mut vecs = bytes(1, 1000);
    vecs.push(IoBuf::from_slice(&[2; 5000]));
    let done = disk.block_on(file.write(vecs, 100));
    assert_eq!((done.result.unwrap(), done.vecs.len()), (6000, 6000));
    let content = disk.read_file(FILE).unwrap();
    assert_eq!(content.len(), 6100);
    assert!(content[100..1100].iter().all(|b| *b == 1) && content[1100..].iter().all(|b| *b == 2));
}

#[test]
fn bytes_are_taken_at_the_issue_and_visible_at_the_completion() {
    let (disk, file) = disk_with_file();
    let buf = IoBuf::from_slice(&[1; 512]);
    let op = file.write(IoVecs::one(buf.clone()), 0);
    buf.copy_from(0, &[2; 512]);
    drop(op);
    assert_eq!((disk.in_flight(), disk.read_file(FILE).unwrap()), (1, vec![]));
    disk.complete(0);
    assert_eq!((disk.in_flight(), disk.read_file(FILE).unwrap()), (0, vec![1; 512]));
}

#[test]
fn holes_cost_nothing_and_allocation_does() {
    let (disk, file) = disk_with_file();
    file.set_len(64 << 20).unwrap();
    assert_eq!(file.meta().unwrap().allocated, 0);
    write(&disk, &file, 40_960, 1, 4096);
    disk.block_on(file.allocate(0, 1 << 20)).result.unwrap();
    let meta = file.meta().unwrap();
    assert_eq!((meta.allocated, meta.len), (1 << 20, 64 << 20));
    disk.block_on(file.punch(4096, (1 << 20) - 4096)).result.unwrap();
    assert_eq!(file.meta().unwrap().allocated, 4096);
    assert_eq!(read(&disk, &file, 40_960, 4096), [0; 4096]);
    disk.block_on(file.allocate(64 << 20, 100)).result.unwrap();
    assert_eq!(file.meta().unwrap().len, (64 << 20) + 100);
}

#[test]
fn a_punch_of_parts_of_pages_zeroes_just_those() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 0, 5, 12_288);
    disk.block_on(file.punch(1_000, 9_000)).result.unwrap();
    let content = disk.read_file(FILE).unwrap();
    let zero = |range: std::ops::Range<usize>| content[range].iter().all(|b| *b == 0);
    assert!(zero(1_000..10_000) && content[999] == 5 && content[10_000] == 5);
    assert_eq!(content.len(), 12_288);
    assert_eq!(file.meta().unwrap().allocated, 8192);
}

#[test]
fn a_truncated_file_does_not_remember() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 0, 5, 9_000);
    file.set_len(700).unwrap();
    file.set_len(9_000).unwrap();
    let content = disk.read_file(FILE).unwrap();
    assert!(content[..700].iter().all(|b| *b == 5) && content[700..].iter().all(|b| *b == 0));
}

#[test]
fn a_file_opened_direct_refuses_what_is_not_aligned() {
    let disk = SimDisk::new(1);
    let file = disk.create(Path::new("new"), 0o600).unwrap();
    let einval = |result: io::Result<usize>| result.unwrap_err().raw_os_error() == Some(libc::EINVAL);
    assert!(einval(disk.block_on(file.write(bytes(1, 511), 0)).result));
    assert!(einval(disk.block_on(file.write(bytes(1, 512), 1)).result));
    let buf = IoBuf::zeroed(BUF_ALIGN);
    assert!(einval(disk.block_on(file.write(IoVecs::one(buf.slice(1..513)), 0)).result));
    write(&disk, &file, 0, 1, 512);
    assert!(einval(disk.block_on(file.read(buf.slice(0..100), 0)).result));
    assert_eq!(disk.block_on(file.read(buf.slice(0..512), 0)).result.unwrap(), 512);
}

#[test]
fn a_file_opened_for_reading_cannot_be_written() {
    let (disk, _) = disk_with_file();
    let file = disk.open(Path::new(FILE), OpenHow::default()).unwrap();
    let result = disk.block_on(file.write(bytes(1, 512), 0)).result;
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF));
    assert!(file.set_len(1).is_err() && file.try_lock(Lock::Exclusive).is_err());
    assert_eq!(disk.read_file(FILE).unwrap(), b"");
}

#[test]
fn locks_belong_to_open_file_descriptions() {
    let (disk, first) = disk_with_file();
    let (second, third) = (open(&disk, FILE), open(&disk, "/./x/../disk"));
    assert!(first.try_lock(Lock::Exclusive).unwrap() && first.clone().try_lock(Lock::Exclusive).unwrap());
    assert!(!second.try_lock(Lock::Shared).unwrap());
    assert!(first.try_lock(Lock::Shared).unwrap() && second.try_lock(Lock::Shared).unwrap());
    assert!(!third.try_lock(Lock::Exclusive).unwrap());
    drop((first, second));
    assert!(third.try_lock(Lock::Exclusive).unwrap());
}

#[test]
fn a_lock_outlives_its_handles_until_the_last_operation_has_ended() {
    let (disk, first) = disk_with_file();
    let other = open(&disk, FILE);
    assert!(first.try_lock(Lock::Exclusive).unwrap());
    let clone = first.clone();
    drop(first);
    assert!(!other.try_lock(Lock::Exclusive).unwrap());
    let _op = clone.write(bytes(1, 512), 0);
    let _op = clone.read(IoBuf::zeroed(512), 0);
    drop(clone);
    disk.complete(0);
    assert!(!other.try_lock(Lock::Exclusive).unwrap());
    disk.complete(0);
    assert!(other.try_lock(Lock::Exclusive).unwrap());
}

#[test]
fn facts_of_a_file() {
    let disk = SimDisk::new(1);
    let file = disk.create(Path::new("a/b"), 0o640).unwrap();
    let before = file.meta().unwrap();
    assert_eq!((before.mode, before.links, before.kind), (0o640, 1, FileKind::Regular));
    file.set_mode(0o444).unwrap();
    file.set_owner(3, 4).unwrap();
    disk.link(Path::new("a/b"), Path::new("a/c")).unwrap();
    write(&disk, &file, 0, 1, 512);
    let after = disk.meta(Path::new("a/c")).unwrap();
    assert_eq!((after.mode, after.uid, after.gid, after.links), (0o444, 3, 4, 2));
    assert_eq!((after.id, after.len), (before.id, 512));
    assert!(after.mtime_ns > before.mtime_ns && disk.now_ns() > after.mtime_ns);
    assert_eq!(disk.meta(Path::new("a")).unwrap().kind, FileKind::Directory);
    let (mut first, mut second) = ([0; 9], [0; 9]);
    disk.random(&mut first).unwrap();
    disk.random(&mut second).unwrap();
    assert_ne!(first, second);
}
