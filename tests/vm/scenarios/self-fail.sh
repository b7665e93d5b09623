# shellcheck shell=dash
# without cowdisk
# limit: 20
# One check fails, those before and after it pass: the run fails.
# shellcheck source=lib.sh
. /vm/lib.sh

check "one and one are two" is $((1 + 1)) 2
check "one and one are three" is $((1 + 1)) 3
check "the scenario goes on" true
