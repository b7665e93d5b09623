# shellcheck shell=dash
# limit: 600
# tools: mkfs.xfs xfs_repair mkfs.btrfs btrfs
# modules: xfs btrfs
# ext4, xfs and btrfs, each on a disk of its own: made, written to and verified, trimmed, and checked by its own fsck and
# by ours; and all of it there when the disk is served again.
# shellcheck source=lib.sh
. /vm/lib.sh

# write_and_verify FS: fio's own data, and files whose sums are kept.
write_and_verify() {
    check "$1: fio writes and verifies" fio --name="$1" --filename=/mnt/fio.dat --size=32M --rw=randwrite --bs=4k --direct=1 \
        --ioengine=libaio --iodepth=16 --fsync=128 --verify=crc32c --verify_fatal=1
    cp -r /usr/lib /mnt/lib
    (cd /mnt && find lib -type f -exec md5sum {} +) >"/tmp/sums-$1"
    rm /mnt/fio.dat
    check "$1: fstrim" fstrim /mnt
    drop_caches
    files_are_there "$1"
}

files_are_there() {
    check "$1: files read as they were written" sh -c "cd /mnt && md5sum -c -s /tmp/sums-$1"
}

# filesystem FS FSCK OPTIONS...: FSCK must change nothing.
filesystem() {
    local fs=$1
    shift
    must "$fs: create" cowdisk create "$fs.cow" --size 1G
    serve "$fs.cow"
    must "$fs: mkfs" "mkfs.$fs" -q "$NODE"
    must "$fs: mount" mount -t "$fs" "$NODE" /mnt
    write_and_verify "$fs"
    must "$fs: umount" umount /mnt
    check "$fs: fsck finds nothing" "$@" "$NODE"
    check "$fs: stop" cowdisk stop "$fs.cow"
    check "$fs: daemon ended with 0" exits 0 30 "$SERVE_PID"
    check "$fs: check --data finds nothing" cowdisk check --data "$fs.cow"
    serve "$fs.cow" --read-only
    must "$fs: mount, read-only" mount -t "$fs" -o ro "$NODE" /mnt
    files_are_there "$fs"
    must "$fs: umount again" umount /mnt
    check "$fs: stop again" cowdisk stop "$fs.cow"
    check "$fs: daemon ended with 0 again" exits 0 30 "$SERVE_PID"
}

filesystem ext4 e2fsck -fn
filesystem xfs xfs_repair -n
filesystem btrfs btrfs check --readonly
