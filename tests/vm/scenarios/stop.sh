# shellcheck shell=dash
# limit: 200
# What stop refuses, what it forces, and that it removes a device that waits for a server.
# shellcheck source=lib.sh
. /vm/lib.sh

must "create" cowdisk create ov.cow --base base.raw --base-format raw
serve ov.cow
must "mkfs.ext4" mkfs.ext4 -q -F "$NODE"
must "mount" mount "$NODE" /mnt
check_exit 75 "stop refuses a mounted disk" cowdisk stop ov.cow
check_exit 75 "stop refuses a mounted disk, named by its device" cowdisk stop "$NODE"
check "the disk still works" dd if=/dev/zero of=/mnt/file bs=64k count=16 conv=fsync
check "daemon is alive" alive "$SERVE_PID"
must "umount" umount /mnt

exec 9<"$NODE"
check_exit 75 "stop refuses an open disk" cowdisk stop ov.cow
exec 9<&-

must "mount again" mount "$NODE" /mnt
errors_expected
check "stop --force ends a mounted disk" cowdisk stop "$NODE" --force
check_exit 1 "its user gets an error" dd if=/mnt/file bs=64k iflag=direct of=/dev/null
check "and can unmount it" umount /mnt
errors_over
check "daemon ended with 0" exits 0 30 "$SERVE_PID"
check "node is gone" wait_for 20 absent "$NODE"
check "check --data finds nothing" cowdisk check --data ov.cow

serve ov.cow
kill_daemon
check "status says waiting" wait_for 20 status_has ov.cow waiting
check "stop removes the waiting device" cowdisk stop ov.cow
check "its node is gone" wait_for 20 absent "$NODE"
serve ov.cow
check "filesystem is as it was" e2fsck -fn "$NODE"
check "stop" cowdisk stop "$NODE"
check "daemon ended with 0" exits 0 30 "$SERVE_PID"
check "check --data finds nothing" cowdisk check --data ov.cow
