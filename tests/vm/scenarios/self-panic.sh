# shellcheck shell=dash
# without cowdisk
# limit: 20
# The kernel panics: the run fails at once.
# shellcheck source=lib.sh
. /vm/lib.sh

check "so far so good" true
echo c >/proc/sysrq-trigger
