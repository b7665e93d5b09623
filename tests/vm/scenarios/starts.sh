# shellcheck shell=dash
# limit: 400
# The daemon is killed at thirty points of its start, and of its recovery of a device with requests that wait: the next one
# always comes up, on the same disk, and what waited is served.
# shellcheck source=lib.sh
. /vm/lib.sh

# kill_after MILLISECONDS OPTIONS: this is about points in time, whatever happens there.
kill_after() {
    local time=$1
    shift
    start_serve "$@"
    sleep "$(printf '0.%03d' "$time")"
    kill -9 "$SERVE_PID" 2>/dev/null || true
    check "killed after $time ms" exits 137 60 "$SERVE_PID"
}

must "create" cowdisk create st.cow --base base.raw --base-format raw
N=0
while [ $N -lt 15 ]; do
    N=$((N + 1))
    kill_after $((N * 40)) st.cow
    serve st.cow
    check "disk reads as its base" cmp -n 65536 "$NODE" base.raw
    check "stop" cowdisk stop st.cow
    check "daemon ended with 0" exits 0 30 "$SERVE_PID"
done

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
