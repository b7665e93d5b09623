# shellcheck shell=dash
# without cowdisk
# limit: 90
# The machine itself: this kernel has ublk, and the tools that the other scenarios trust work on an ordinary disk.
# shellcheck source=lib.sh
. /vm/lib.sh

check "ublk driver is loaded" test -c /dev/ublk-control
check "io_uring is allowed" file_is /proc/sys/kernel/io_uring_disabled 0
check "mkfs.ext4 works" mkfs.ext4 -q -F -E nodiscard fs.img 64M
check "e2fsck finds nothing" e2fsck -fn fs.img
check "fio writes and verifies" fio --name=kernel --filename=fio.dat --size=16M --rw=randwrite --bs=4k --direct=1 \
    --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1
check "fio found nothing wrong" said_nothing_of "verify: bad"
