# shellcheck shell=dash
# limit: 240
# Two queues, requests of all sizes down to a sector, directly on the disk.
# shellcheck source=lib.sh
. /vm/lib.sh

QUEUES=/sys/block/ublkb0/mq

# load NAME OPTIONS: two jobs, each on its own half, reading and writing.
load() {
    local name=$1
    shift
    check "fio, two jobs: $name" fio --name="$name" --filename="$NODE" --size=16M --offset_increment=128M --numjobs=2 \
        --rw=randrw --direct=1 --ioengine=libaio --iodepth=32 --verify=crc32c --verify_fatal=1 --verify_backlog=512 \
        --group_reporting "$@"
}

must "create" cowdisk create ov.cow --base base.raw --base-format raw
serve ov.cow --queues 2 --depth 64
must "disk is /dev/ublkb0" is "$NODE" /dev/ublkb0
check "kernel has two queues" is "$(find $QUEUES -mindepth 1 -maxdepth 1 | wc -l)" 2
check "kernel has 64 requests per queue" file_is $QUEUES/0/nr_tags 64
load "4 KiB" --bs=4k
load "512 bytes to 64 KiB" --bssplit=512/20:4k/40:20k/20:64k/20
load "4 KiB with flushes" --bs=4k --fsync=32
check "stop" cowdisk stop ov.cow
check "daemon ended with 0" exits 0 30 "$SERVE_PID"
check "check --data finds nothing" cowdisk check --data ov.cow
