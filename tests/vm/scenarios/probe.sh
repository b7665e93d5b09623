# shellcheck shell=dash
# without cowdisk
# limit: 10
# Says that the machine boots and the scratch disk is there: what `run` tries KVM with.
# shellcheck source=lib.sh
. /vm/lib.sh

check "the scratch disk is mounted" test -f base.raw
