# shellcheck shell=dash
# limit: 90
# The kernel has ublk and the program starts.
# shellcheck source=lib.sh
. /vm/lib.sh

check "ublk driver is loaded" test -c /dev/ublk-control
check "cowdisk --version works" cowdisk --version
check_exit 64 "cowdisk refuses a wrong option with 64" cowdisk create --no-such-option
