# shellcheck shell=dash
# limit: 300
# What goes wrong on the host reaches the users of the disk as what it is, and nothing hangs: a full filesystem, a block
# whose checksum fails, a device below the image that is gone. What was flushed is there afterwards.
# shellcheck source=lib.sh
. /vm/lib.sh

MIB=1048576

end_of() {
    check "$1: stop" cowdisk stop "$1"
    check "$1: daemon ended with 0" exits 0 30 "$SERVE_PID"
}

# Bytes that root can still write on the scratch disk.
free_bytes() { stat -f -c '%f %S' /scratch | awk '{ print $1 * $2 }'; }

fill() { dd if=base.raw of="$NODE" bs=64k count=1024 oflag=direct; }

full_host() {
    must "create" cowdisk create full.cow --size 256M
    serve full.cow
    must "fill the host but for 24 MiB" fallocate -l $(($(free_bytes) - 24 * MIB)) filler
    errors_expected
    check_exit 1 "a write to the full host fails" fill
    check "because there is no space" said "No space left on device"
    check "status says full" status_has full.cow full
    check "what was written reads back" same_bytes $MIB "$NODE" base.raw
    rm filler
    check "writes succeed when there is space" wait_for 30 fill
    errors_over
    drop_caches
    check "all of it reads back" same_bytes $((64 * MIB)) "$NODE" base.raw
    end_of full.cow
    check "check --data finds nothing" cowdisk check --data full.cow
}

# read_block N: the disk's block of 4 KiB.
read_block() { dd if="$NODE" of=/dev/null bs=4k skip="$1" count=1 iflag=direct; }

damaged_block() {
    local at
    must "create" cowdisk create bad.cow --size 64M
    serve bad.cow
    must "write 1 MiB" dd if=base.raw of="$NODE" bs=1M count=1 oflag=direct
    end_of bad.cow
    at=$(cowdisk map bad.cow | awk '$3 == "data" { print $4 / 4096; exit }')
    must "damage the disk's block 5" dd if=/dev/urandom of=bad.cow bs=4k seek=$((at + 5)) count=1 conv=notrunc
    serve bad.cow
    errors_expected
    check_exit 1 "the damaged block cannot be read" read_block 5
    check "because of an I/O error" said "Input/output error"
    errors_over
    check "the block before it can" read_block 4
    check "the block after it can" read_block 6
    end_of bad.cow
    check_exit 2 "check --data finds it" cowdisk check --data bad.cow
}

repaired_by_fsck() {
    local status=0
    e2fsck -fy "$1" || status=$?
    [ $status -le 1 ]
}

write_and_flush() { dd if=base.raw of="$NODE" bs=64k count=16 seek="$1" oflag=direct conv=fsync; }

# An image on a filesystem on a disk whose daemon dies and which then fails, or goes.
device_below_is_gone() {
    local policy below
    case $(uname -r) in
    6.12.*) policy=remove ;;
    *) policy=fail ;;
    esac
    must "create the image below" cowdisk create below.cow --size 256M
    serve below.cow --on-death $policy
    below=$SERVE_PID
    must "mkfs.ext4" mkfs.ext4 -q -F "$NODE"
    must "mount" mount "$NODE" /mnt
    must "create the image above" cowdisk create /mnt/above.cow --size 64M
    serve /mnt/above.cow
    must "write and flush" write_and_flush 0
    errors_expected
    kill -9 "$below"
    check "the daemon below ends" exits 137 60 "$below"
    check_exit 1 "a flush fails" write_and_flush 16
    check "because of an I/O error" said "Input/output error"
    check "status says poisoned" wait_for 10 status_has "$NODE" poisoned
    cowdisk stop "$NODE" --force || note "stop ended with $?"
    check "the daemon above ends" wait_for 60 dead "$SERVE_PID"
    check "its device is gone" wait_for 20 absent "$NODE"
    must "umount" umount /mnt
    serve below.cow
    check "fsck of the filesystem between" repaired_by_fsck "$NODE"
    below=$SERVE_PID
    errors_over
    must "mount again" mount "$NODE" /mnt
    serve /mnt/above.cow
    check "what was flushed is there" same_bytes $MIB "$NODE" base.raw
    end_of /mnt/above.cow
    check "check --data finds nothing" cowdisk check --data /mnt/above.cow
    must "umount again" umount /mnt
    SERVE_PID=$below
    end_of below.cow
}

full_host
damaged_block
device_below_is_gone
