# shellcheck shell=dash
# limit: 300
# A disk from create to delete: an overlay on a raw base, a filesystem on it, flushes, discards, and a clean end.
# shellcheck source=lib.sh
. /vm/lib.sh

QUEUE=/sys/block/ublkb0/queue
MIB=1048576

device_has_the_right_features() {
    check "disk is as big as its base" is "$(blockdev --getsize64 "$NODE")" "$(stat -c %s base.raw)"
    # Without it the kernel sends no FLUSH, and every test passes until the power goes.
    check "disk has a volatile write cache" file_is $QUEUE/write_cache "write back"
    check "disk takes FUA writes" file_is $QUEUE/fua 1
    check "disk takes discards" file_greater $QUEUE/discard_max_bytes 0
    check "disk names a discard granularity" file_greater $QUEUE/discard_granularity 0
    check "disk takes write-zeroes" file_greater $QUEUE/write_zeroes_max_bytes 0
}

fresh_disk_reads_as_its_base() {
    check "disk reads as its base" same_bytes $((16 * MIB)) "$NODE" base.raw
    check "discard of 1 MiB" blkdiscard -o $MIB -l $MIB "$NODE"
    check "write-zeroes of 1 MiB" blkdiscard -z -o $((3 * MIB)) -l $MIB "$NODE"
    check "discarded range reads zero, not the base" same_bytes $MIB "$NODE" /dev/zero $MIB
    check "zeroed range reads zero, not the base" same_bytes $MIB "$NODE" /dev/zero $((3 * MIB))
    check "the range between still reads as the base" same_bytes $MIB "$NODE" base.raw $((2 * MIB)) $((2 * MIB))
}

filesystem_works() {
    must "mkfs.ext4" mkfs.ext4 -q -F "$NODE"
    must "mount" mount "$NODE" /mnt
    cp -r /usr/lib /mnt/lib
    (cd /mnt && find lib -type f -exec md5sum {} +) >/tmp/sums
    check "fio writes and verifies" fio --name=life --filename=/mnt/fio.dat --size=24M --rw=randwrite --bs=4k --direct=1 \
        --ioengine=libaio --iodepth=16 --fsync=256 --verify=crc32c --verify_fatal=1
    flushes_reach_the_server
    rm /mnt/fio.dat
    check "fstrim" fstrim -v /mnt
    drop_caches
    check "files read as they were written" sh -c 'cd /mnt && md5sum -c -s /tmp/sums'
    must "umount" umount /mnt
    check "e2fsck finds nothing" e2fsck -fn "$NODE"
}

flushes_reach_the_server() {
    local before
    before=$(requests ov.cow flush)
    check "fsync of a file" dd if=/dev/zero of=/mnt/synced bs=4k count=1 conv=fsync
    check "fsync reached the server as a flush" greater "$(requests ov.cow flush)" "$before"
}

must "create an overlay on a raw base" cowdisk create ov.cow --base base.raw --base-format raw
serve ov.cow
must "disk is /dev/ublkb0" is "$NODE" /dev/ublkb0
device_has_the_right_features
fresh_disk_reads_as_its_base
filesystem_works
check_exit 75 "a second serve of the image is refused" timeout 30 cowdisk serve ov.cow --frontend ublk
check "the first one goes on" alive "$SERVE_PID"
check "stop" cowdisk stop ov.cow
check "node is gone" wait_for 20 absent "$NODE"
check "daemon ended with 0" exits 0 20 "$SERVE_PID"
check "check --data finds nothing" cowdisk check --data ov.cow
check "base is unchanged" md5sum -c base.md5

serve ov.cow
check "filesystem is there when served again" e2fsck -fn "$NODE"
must "mount again" mount -o ro "$NODE" /mnt
check "files are there when served again" sh -c 'cd /mnt && md5sum -c -s /tmp/sums'
must "umount again" umount /mnt
check "stop again" cowdisk stop ov.cow
check "check --data finds nothing again" cowdisk check --data ov.cow
