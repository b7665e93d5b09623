# shellcheck shell=dash
# limit: 200
# SIGTERM ends the daemon cleanly: a device in use is left waiting for the next one, an unused one goes away.
# shellcheck source=lib.sh
. /vm/lib.sh

write_in_the_background() {
    dd if=base.raw of=/mnt/late bs=64k count=64 conv=fsync 2>$LOG/dd.err &
    WRITER=$!
}

must "create" cowdisk create ov.cow --base base.raw --base-format raw
serve ov.cow
must "mkfs.ext4" mkfs.ext4 -q -F "$NODE"
must "mount" mount "$NODE" /mnt
must "write a file" dd if=base.raw of=/mnt/early bs=64k count=64

first_node=$NODE
kill -TERM "$SERVE_PID"
check "daemon of a mounted disk ends with 0" exits 0 30 "$SERVE_PID"
check "device is still there" test -b "$NODE"
check "status says waiting" status_has ov.cow waiting
write_in_the_background
check_exit 1 "a write waits as long as there is no server" wait_for 2 dead "$WRITER"

serve ov.cow
check "the same device is served again" is "$NODE" "$first_node"
check "the write that waited succeeds" exits 0 60 "$WRITER"
drop_caches
check "what was written before reads back" same_bytes 4194304 /mnt/early base.raw
check "what was written across reads back" same_bytes 4194304 /mnt/late base.raw
must "umount" umount /mnt
check "e2fsck finds nothing" e2fsck -fn "$NODE"

kill -TERM "$SERVE_PID"
check "daemon of an unused disk ends with 0" exits 0 30 "$SERVE_PID"
check "its device is gone" wait_for 20 absent "$NODE"
check_exit 1 "status says that the image is not served" cowdisk status ov.cow
check "check --data finds nothing" cowdisk check --data ov.cow
