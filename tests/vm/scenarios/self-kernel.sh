# shellcheck shell=dash
# without cowdisk
# limit: 20
# All checks pass, and the kernel logs an I/O error that was not announced: the run fails.
# shellcheck source=lib.sh
. /vm/lib.sh

errors_expected
echo "I/O error, dev ublkb0, sector 0: announced" >/dev/kmsg
errors_over
check "so far so good" true
echo "I/O error, dev ublkb0, sector 0: not announced" >/dev/kmsg
