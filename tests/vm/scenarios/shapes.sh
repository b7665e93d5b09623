# shellcheck shell=dash
# limit: 600
# cpus: 8
# Disks of all shapes: both sector sizes, one queue and eight, the least and a great depth, large requests, read-only.
# shellcheck source=lib.sh
. /vm/lib.sh

# What the kernel says of the disk.
queue() { echo "/sys/block/$(name_of "$NODE")/queue/$1"; }
hw_queues() { find "/sys/block/$(name_of "$NODE")/mq" -mindepth 1 -maxdepth 1 | wc -l; }

# verified NAME OPTIONS...: a random load that reads back what it wrote.
verified() {
    local name=$1
    shift
    check "$name: fio writes and verifies" fio --name="${name%% *}" --filename="$NODE" --size=24M --rw=randwrite --direct=1 \
        --ioengine=libaio --verify=crc32c --verify_fatal=1 "$@"
}

end_of() {
    check "$1: stop" cowdisk stop "$1.cow"
    check "$1: daemon ended with 0" exits 0 30 "$SERVE_PID"
    check "$1: check --data finds nothing" cowdisk check --data "$1.cow"
}

sectors_of_4096_bytes() {
    must "4k: create" cowdisk create 4k.cow --size 64M --sector-size 4096
    serve 4k.cow
    check "4k: logical block size" file_is "$(queue logical_block_size)" 4096
    check "4k: physical block size" file_is "$(queue physical_block_size)" 4096
    verified "4k sectors" --bs=4k --iodepth=16
    must "4k: mkfs.ext4" mkfs.ext4 -q -F "$NODE"
    check "4k: e2fsck finds nothing" e2fsck -fn "$NODE"
    end_of 4k
}

sectors_of_512_bytes() {
    must "512: create" cowdisk create 512.cow --size 64M
    serve 512.cow --queues 1 --depth 1
    check "512: logical block size" file_is "$(queue logical_block_size)" 512
    check "512: one queue" is "$(hw_queues)" 1
    check "512: one request" file_is "$(queue nr_requests)" 1
    verified "512 bytes and more, depth 1" --bssplit=512/40:4k/40:20k/20 --iodepth=4
    verified "1 MiB at once, depth 1" --bs=1M --iodepth=2
    end_of 512
}

many_queues_and_tags() {
    must "wide: create" cowdisk create wide.cow --size 256M
    serve wide.cow --queues 8 --depth 16
    check "wide: eight queues" is "$(hw_queues)" 8
    verified "wide, eight queues" --bs=4k --iodepth=16 --numjobs=8 --offset_increment=24M --group_reporting
    end_of wide
    serve wide.cow --queues 1 --depth 1024
    check "wide: 1024 requests" file_is "/sys/block/$(name_of "$NODE")/mq/0/nr_tags" 1024
    verified "wide, depth 1024" --bs=4k --iodepth=1024
    verified "wide, 1 MiB at once" --bs=1M --iodepth=32
    end_of wide
}

read_only() {
    serve wide.cow --read-only
    check "read-only: the kernel knows" is "$(blockdev --getro "$NODE")" 1
    check_exit 1 "read-only: a write is refused" dd if=/dev/zero of="$NODE" bs=4k count=1 oflag=direct
    check "read-only: all of it can be read" dd if="$NODE" of=/dev/null bs=1M iflag=direct
    check "read-only: stop" cowdisk stop wide.cow
    check "read-only: daemon ended with 0" exits 0 30 "$SERVE_PID"
}

sectors_of_4096_bytes
sectors_of_512_bytes
many_queues_and_tags
read_only
