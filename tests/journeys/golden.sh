#!/bin/sh
# A golden image, a disk forked from it for each of many jobs, three of them kept, and the rest collected.
#
#   golden.sh          in an empty directory; FORKS=500
set -eu

FORKS=${FORKS:-500}

cowdisk create golden.cow --size 1G
cowdisk serve golden.cow --frontend nbd -- sh -c 'qemu-io -f raw -c "write -P 7 0 32M" "$COWDISK_URI" >/dev/null'

mkdir jobs
seq -f 'jobs/%g.cow' "$FORKS" | xargs cowdisk fork golden.cow >/dev/null
BEFORE=$(du -sk . | cut -f1)

# A job: it works on its disk, and keeps what it found.
job() {
    cowdisk serve "jobs/$1.cow" --frontend nbd -- \
        sh -c 'qemu-io -f raw -c "write -P $0 64M 1M" "$COWDISK_URI" >/dev/null' "$(($1 % 200 + 1))"
    cowdisk snapshot "jobs/$1.cow@result" >/dev/null
}
for JOB in 1 2 3 4 5 6 7 8 9 10; do
    job "$JOB"
done

# Three are kept. The others' disks go, and with them what nobody needs any more.
find jobs -name '*.cow' ! -name '*@*' ! -name 2.cow ! -name 3.cow ! -name 5.cow -delete
cowdisk list --unused -0 . jobs | xargs -0 rm -f

[ "$(find jobs -name '*.cow' | wc -l)" = 6 ]
for JOB in 2 3 5; do
    cowdisk check --data --chain "jobs/$JOB.cow" >/dev/null
    cowdisk serve "jobs/$JOB.cow@result" --read-only --frontend nbd -- \
        sh -c 'qemu-io -r -f raw -c "read -P $0 64M 1M" -c "read -P 7 0 32M" "$COWDISK_URI" >out 2>&1' "$((JOB % 200 + 1))"
    if grep -q "verification failed" out; then exit 1; fi
done
echo "$FORKS forks took $(((BEFORE - 32768) / FORKS)) KiB each; 3 are kept, $(du -sk . | cut -f1) KiB in all"
