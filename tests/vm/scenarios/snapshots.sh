# shellcheck shell=dash
# limit: 400
# Snapshots of a disk in use: one after the other under fio verify, through a kill -9, and of a mounted filesystem, whose
# snapshots are mounted and checked afterwards, while it goes on, and which goes back to one of them between two mounts.
# shellcheck source=lib.sh
. /vm/lib.sh

# refused_in_use COMMAND...: it ends with 75.
refused_in_use() {
    "$@" 2>/tmp/refused
    [ $? = 75 ]
}

LOADED=12
FILES=4

# snapshot_under_load N: after some more writes.
snapshot_under_load() {
    load_goes_on 300
    must "snapshot $1 is taken" cowdisk snapshot "load.cow@s$1"
}

# loaded OPTIONS: of an image made with these.
loaded() {
    must "create an image with a small journal" cowdisk create load.cow --size 64M --journal-size 256k "$@"
    serve load.cow
    LOAD="--name=load --filename=$NODE --size=64M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16
        --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=5"
    # shellcheck disable=SC2086
    fio $LOAD --rate_iops=1000 --fsync=200 >$LOG/fio.out 2>&1 &
    FIO=$!
    N=0
    while [ $N -lt $LOADED ]; do
        N=$((N + 1))
        snapshot_under_load $N
        if [ $N = 6 ]; then
            kill_daemon
            serve load.cow
        fi
    done
    check "fio ends without an error" exits 0 200 "$FIO"
    check "fio verified what it wrote" grep -q "READ: .*io=64" $LOG/fio.out
    cowdisk status load.cow --json >/tmp/status.json
    check "the disk has all its layers" grep -Eq "\"layers\": *$((LOADED + 1))" /tmp/status.json
    check "stop" cowdisk stop load.cow
    check "daemon ended with 0" exits 0 20 "$SERVE_PID"
    check "check --data finds nothing in the whole chain" cowdisk check --data --chain load.cow
    rm load*.cow
}

loaded
# Of data without checksums, which nobody copies where the driver has that, and whose commits take two barriers.
loaded --checksums none

must "create" cowdisk create fs.cow --base base.raw --base-format raw
serve fs.cow
must "mkfs.ext4" mkfs.ext4 -q -F "$NODE"
must "mount" mount "$NODE" /mnt
N=0
while [ $N -lt $FILES ]; do
    N=$((N + 1))
    must "write file $N" dd if=base.raw of=/mnt/file$N bs=64k count=16 skip=$N conv=fsync
    must "snapshot $N of the mounted disk" cowdisk snapshot fs.cow@f$N
done
must "fork the mounted disk" cowdisk fork fs.cow fork.cow
must "delete a file" rm /mnt/file1
HEAD_PID=$SERVE_PID
HEAD_NODE=$NODE

N=0
mkdir /snap
while [ $N -lt $FILES ]; do
    N=$((N + 1))
    serve fs.cow@f$N --temporary
    must "mount snapshot $N" mount "$NODE" /snap
    FILE=0
    while [ $FILE -lt $N ]; do
        FILE=$((FILE + 1))
        check "file $FILE is in snapshot $N" same_bytes 1048576 /snap/file$FILE base.raw 0 $((FILE * 65536))
    done
    check "no later file is in snapshot $N" absent /snap/file$((N + 1))
    must "umount snapshot $N" umount /snap
    check "e2fsck finds nothing in snapshot $N" e2fsck -fn "$NODE"
    kill -TERM "$SERVE_PID"
    check "its daemon ends with 0" exits 0 30 "$SERVE_PID"
done
serve fork.cow
must "mount the fork" mount "$NODE" /snap
check "the fork has what the disk has deleted" same_bytes 1048576 /snap/file1 base.raw 0 65536
must "umount the fork" umount /snap
check "stop the fork" cowdisk stop fork.cow
check "its daemon ends with 0" exits 0 30 "$SERVE_PID"

check "a mounted disk does not go back" refused_in_use cowdisk rollback fs.cow@f2
check "the refusal says what to do" grep -q "try: cowdisk stop" /tmp/refused
must "umount" umount /mnt
check "the disk goes back while it is served" cowdisk rollback fs.cow@f2
NODE=$HEAD_NODE
must "mount the disk of before" mount "$NODE" /mnt
for FILE in 1 2; do
    check "file $FILE is there again" same_bytes 1048576 /mnt/file$FILE base.raw 0 $((FILE * 65536))
done
check "no later file is there" absent /mnt/file3
must "write to it" dd if=base.raw of=/mnt/file5 bs=64k count=16 skip=5 conv=fsync
must "umount it" umount /mnt
check "and forth" cowdisk rollback fs.cow@rollback-1
must "mount what was kept" mount "$NODE" /mnt
check "it has the later files" same_bytes 1048576 /mnt/file3 base.raw 0 196608
check "and not what was written in between" absent /mnt/file5
must "umount what was kept" umount /mnt
check "e2fsck finds nothing" e2fsck -fn "$NODE"
check "stop the disk" cowdisk stop fs.cow
check "its daemon ends with 0" exits 0 30 "$HEAD_PID"
check "check --data finds nothing" cowdisk check --data --chain fs.cow
