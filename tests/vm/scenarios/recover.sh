# shellcheck shell=dash
# limit: 360
# The daemon dies by kill -9 under load, three times, and each time the next one takes the same device up.
# shellcheck source=lib.sh
. /vm/lib.sh

# 16,384 writes of 4 KiB, 16 of them in flight. The kills come by count, and the rate is one that only a fast machine
# reaches: so they come in the middle of it everywhere.
LOAD="--name=recover --filename=/mnt/fio.dat --size=64M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16
    --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=7"

COPIES=0

start_load() {
    # shellcheck disable=SC2086
    fio $LOAD --rate_iops=4000 --fsync=500 >$LOG/fio.out 2>&1 &
    FIO=$!
}

# die_under_load N: kill -9 after another N writes.
die_under_load() {
    load_goes_on "$1"
    copy_in_the_background
    kill_daemon
    check "device outlives the daemon" test -b "$NODE"
    check "status says waiting" wait_for 20 status_has ov.cow waiting
}

recover() {
    serve ov.cow
    must "the same device is served again" is "$NODE" /dev/ublkb0
    check "copy that was cut off ends without an error" exits 0 60 "$COPY"
}

# New files, so that the filesystem's own structures are in flight, too, when the daemon dies.
copy_in_the_background() {
    COPIES=$((COPIES + 1))
    { cp -r /modules "/mnt/copy-$COPIES" && sync; } 2>$LOG/copy-$COPIES.err &
    COPY=$!
}

files_are_the_same() {
    diff -r /modules /mnt/copy-1 && diff -r /modules /mnt/copy-2 && diff -r /modules /mnt/copy-3
}

# A copy of the head carries every id of the original, and must not get the original's device.
copy_gets_no_foreign_device() {
    cp ov.cow copy.cow
    start_serve copy.cow
    must "serve of a copy is ready, or gives up" wait_for 60 ready_or_dead
    check "a copy of the image gets another device, or none" is_not "$(cat "$SERVE_OUT")" "ready $NODE"
    if alive "$SERVE_PID"; then
        check "copy is stopped" cowdisk stop copy.cow
        check "daemon of the copy ended with 0" exits 0 20 "$SERVE_PID"
    fi
    check "original still waits" status_has ov.cow waiting
    check "original's device is still there" test -b "$NODE"
}

everything_is_there() {
    check "fio ends without an error" exits 0 200 "$FIO"
    check "fio verified what it wrote" grep -q "READ: .*io=64" $LOG/fio.out
    drop_caches
    # shellcheck disable=SC2086
    check "fio verifies all of it once more" fio $LOAD --verify_only
    check "copies are whole" files_are_the_same
    must "umount" umount /mnt
    check "e2fsck finds nothing" e2fsck -fn "$NODE"
}

must "create an overlay on a raw base" cowdisk create ov.cow --base base.raw --base-format raw
serve ov.cow
must "disk is /dev/ublkb0" is "$NODE" /dev/ublkb0
must "mkfs.ext4" mkfs.ext4 -q -F "$NODE"
must "mount" mount "$NODE" /mnt
start_load
die_under_load 2000
recover
die_under_load 2000
recover
die_under_load 2000
copy_gets_no_foreign_device
recover
everything_is_there
check "stop" cowdisk stop ov.cow
check "node is gone" wait_for 20 absent "$NODE"
check "daemon ended with 0" exits 0 20 "$SERVE_PID"
check "check --data finds nothing" cowdisk check --data ov.cow
check "base is unchanged" md5sum -c base.md5
