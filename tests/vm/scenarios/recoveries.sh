# shellcheck shell=dash
# limit: 300
# The daemon is killed at fifteen points of its recovery of a device with requests that wait: the next one always takes the
# device up, and what waited is served.
# shellcheck source=lib.sh
. /vm/lib.sh

must "create" cowdisk create st.cow --base base.raw --base-format raw
serve st.cow
first=$NODE
kill_daemon
dd if="$NODE" of=/tmp/read bs=64k count=16 iflag=direct 2>/dev/null &
READER=$!
N=0
while [ $N -lt 15 ]; do
    N=$((N + 1))
    kill_after $((N * 40)) st.cow
    check "the device is still there" test -b "$first"
done
serve st.cow
check "the same device is served again" is "$NODE" "$first"
check "the read that waited through all of it succeeds" exits 0 60 "$READER"
check "and has read the right bytes" cmp -n 1048576 /tmp/read base.raw
check "stop" cowdisk stop st.cow
check "daemon ended with 0" exits 0 30 "$SERVE_PID"
check "check --data finds nothing" cowdisk check --data st.cow
