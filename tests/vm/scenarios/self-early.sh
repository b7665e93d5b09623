# shellcheck shell=dash
# without cowdisk
# limit: 20
# The scenario ends before its end, by a command that fails outside of any check: the run fails.
# shellcheck source=lib.sh
. /vm/lib.sh

check "so far so good" true
false
check "never reached" true
