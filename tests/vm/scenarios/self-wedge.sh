# shellcheck shell=dash
# without cowdisk
# limit: 5
# Nobody in the guest can end it, its own limit is stopped, too: the watchdog outside does.
# shellcheck source=lib.sh
. /vm/lib.sh

check "so far so good" true
kill -STOP "$(pidof timeout)"
sleep 1000
