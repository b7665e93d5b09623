# shellcheck shell=dash
# limit: 240
# Partitions are there when the daemon says that it is ready, whoever looks for them: driver or daemon; also on a disk
# that goes with its daemon, and when the daemon died before anybody had looked.
# shellcheck source=lib.sh
. /vm/lib.sh

# A partition table of the old kind, with one entry: Linux, from sector 2048 on, 16384 sectors.
write_table() {
    printf '\000\000\000\000\203\000\000\000\000\010\000\000\000\100\000\000' | dd of="$NODE" bs=1 seek=446 conv=notrunc
    printf '\125\252' | dd of="$NODE" bs=1 seek=510 conv=notrunc
    sync
}

has_partition() { file_is "/sys/block/$(name_of "$NODE")/$(name_of "$NODE")p1/size" 16384; }

served_with_partition() {
    serve pt.cow "$@"
    check "the partition is there when the disk is ready ($*)" has_partition
    check "stop" cowdisk stop pt.cow
    check "daemon ended with 0" exits 0 30 "$SERVE_PID"
}

must "create" cowdisk create pt.cow --size 64M
serve pt.cow
must "write a partition table" write_table
check "stop" cowdisk stop pt.cow
check "daemon ended with 0" exits 0 30 "$SERVE_PID"

served_with_partition
served_with_partition --ublk-features -NO_AUTO_PART_SCAN
served_with_partition --ublk-features -QUIESCE
served_with_partition --on-death remove
served_with_partition --temporary

serve pt.cow
kill_daemon
serve pt.cow
check "the partition is there when the disk was taken up" has_partition
exec 9<"${NODE}p1"
check_exit 75 "stop refuses a disk whose partition is open" cowdisk stop pt.cow
exec 9<&-
check "stop" cowdisk stop pt.cow
check "daemon ended with 0" exits 0 30 "$SERVE_PID"
