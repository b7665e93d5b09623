#!/bin/sh
# Three virtual machines from one cloud image, over a year: each week something changes and a snapshot is taken; one of them
# moves, all of them grow, and the host reboots without asking.
#
#   year.sh            in an empty directory; WEEKS=52
set -eu

WEEKS=${WEEKS:-52}
MIB=1048576

# on IMAGE COMMAND…: the commands of qemu-io, on the disk.
on() {
    IMAGE=$1
    shift
    cowdisk serve "$IMAGE" --frontend nbd -- sh -c 'for c; do set -- "$@" -c "$c"; shift; done
        exec qemu-io -f raw "$@" "$COWDISK_URI" >/dev/null' sh "$@"
}

# shows IMAGE COMMAND…: the same, read-only; qemu-io compares.
shows() {
    IMAGE=$1
    shift
    cowdisk serve "$IMAGE" --read-only --frontend nbd -- sh -c 'for c; do set -- "$@" -c "$c"; shift; done
        qemu-io -r -f raw "$@" "$COWDISK_URI" >out 2>&1 && ! grep -q "verification failed" out' sh "$@"
}

truncate -s 64M cloud.raw
qemu-io -f raw -c "write -P 7 0 8M" cloud.raw >/dev/null

mkdir hosts
for VM in web db mail; do
    cowdisk create "hosts/$VM.cow" --base cloud.raw --base-format raw >/dev/null
done

WEEK=1
while [ "$WEEK" -le "$WEEKS" ]; do
    for VM in web db mail; do
        # A log that grows, and a file that is written again each week.
        on "hosts/$VM.cow" "write -P $WEEK $((16 * MIB + WEEK * 65536)) 64k" "write -P $WEEK 0 64k" flush
        cowdisk snapshot "hosts/$VM.cow@week$WEEK" >/dev/null
    done
    # (Old snapshots would be deleted here: cowdisk delete "hosts/web.cow@week$((WEEK - 8))")
    if [ "$WEEK" = $((WEEKS / 2)) ]; then
        # The host's directory moves to a larger disk, and each machine gets more room.
        mkdir new
        mv hosts cloud.raw new/
        for VM in web db mail; do
            cowdisk resize "new/hosts/$VM.cow" +64M >/dev/null
        done
        ln -s new/hosts hosts
        # The machine goes down with a disk in use.
        cowdisk serve hosts/web.cow --frontend nbd -- \
            sh -c 'qemu-io -f raw -c "write -P 99 100M 64k" -c flush "$COWDISK_URI" >/dev/null; kill -9 $PPID; exit' || true
        shows hosts/web.cow "read -P 99 100M 64k"
    fi
    WEEK=$((WEEK + 1))
done

# What an update broke is put right, and then it was not the update.
cowdisk rollback "hosts/db.cow@week$((WEEKS / 2))"
shows hosts/db.cow "read -P $((WEEKS / 2)) 0 64k" "read -P 0 $((16 * MIB + WEEKS * 65536)) 64k"
cowdisk rollback "hosts/db.cow@week$WEEKS"
shows hosts/db.cow "read -P $WEEKS 0 64k" "read -P $WEEKS $((16 * MIB + WEEKS * 65536)) 64k"

for WEEK in 1 $((WEEKS / 2)) "$WEEKS"; do
    shows "hosts/mail.cow@week$WEEK" "read -P $WEEK 0 64k" "read -P 7 64k $((8 * MIB - 65536))"
done
for VM in web db mail; do
    cowdisk check --data --chain "hosts/$VM.cow" >/dev/null
done
echo "a year: $((3 * WEEKS)) snapshots, all whole"
