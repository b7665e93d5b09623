# shellcheck shell=dash
# without cowdisk
# limit: 5
# The scenario hangs: its own limit ends it, with a result line and the logs.
# shellcheck source=lib.sh
. /vm/lib.sh

check "so far so good" true
sleep 1000
