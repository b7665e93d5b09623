# shellcheck shell=dash
# limit: 300
# lives: 3
# The machine goes down with a filesystem mounted and in use: once with the daemon alive, once with a disk that waits for its
# daemon and holds requests back. It must not hang, and every file that was synced must be there in the next life.
# shellcheck source=lib.sh
. /vm/lib.sh

FILES=40

mounted() {
    mkdir -p /mnt/disk
    must "life $VM_LIFE: mount" mount -t ext4 "$NODE" /mnt/disk
}

# Writes files for ever, each of them synced before its checksum is, and that before the next one begins.
write_files() {
    local n=0
    while dd if=/dev/urandom of="/mnt/disk/$VM_LIFE-$n" bs=20k count=$((n % 7 + 1)) conv=fsync; do
        (cd /mnt/disk && md5sum "$VM_LIFE-$n") | dd of=/scratch/sums oflag=append conv=notrunc,fsync
        n=$((n + 1))
    done >/dev/null 2>&1
}

has_files() { greater "$(grep -c " $VM_LIFE-" /scratch/sums)" $FILES; }

# The writer's last line may be cut: of what it had not yet said nothing is known.
all_there() {
    grep -E '^[0-9a-f]{32}  [0-9]+-[0-9]+$' /scratch/sums >/tmp/sums
    (cd /mnt/disk && md5sum -c /tmp/sums) >/tmp/md5.out 2>&1 || { grep -v ': OK$' /tmp/md5.out && return 1; }
    greater "$(grep -c ': OK$' /tmp/md5.out)" $((FILES * (VM_LIFE - 1)))
}

if [ "$VM_LIFE" = 1 ]; then
    must "create" cowdisk create vm.cow --size 512M
    serve vm.cow
    must "mkfs" mkfs.ext4 -q "$NODE"
else
    serve vm.cow
fi
mounted
[ "$VM_LIFE" = 1 ] || check "life $VM_LIFE: every synced file is there" all_there
if [ "$VM_LIFE" = 3 ]; then
    check "unmount" umount /mnt/disk
    check "e2fsck finds nothing" e2fsck -fn "$NODE"
    check "stop" cowdisk stop vm.cow
    check "daemon ended with 0" exits 0 30 "$SERVE_PID"
    check "check --data finds nothing" cowdisk check --data vm.cow
    exit
fi
write_files &
must "life $VM_LIFE: files are written and synced" wait_for 120 has_files
if [ "$VM_LIFE" = 2 ]; then
    kill -TERM "$SERVE_PID"
    check "the daemon ends with 0 below a mounted filesystem" exits 0 30 "$SERVE_PID"
    check "status says waiting" status_has vm.cow waiting
fi
# The init of this machine switches it off now, with everything as it is.
