# shellcheck shell=bash disable=SC2034
# What fetch, run and selftest share. Sourced, never run.

# VM is this directory, REPO the top of the repository.
VM=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$VM/../.." && pwd)
CACHE=${COWDISK_VM_CACHE:-$REPO/target/vm-cache}
LOGS=${COWDISK_VM_LOGS:-$REPO/target/vm-logs}

# System tools of e2fsprogs and kmod live here; not every user has it in PATH.
PATH=$PATH:/usr/sbin:/sbin

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}
