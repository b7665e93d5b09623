# shellcheck shell=dash
# limit: 570
# 250 times create, serve, use, stop, delete, four at a time: nothing hangs, nothing is left over.
# shellcheck source=lib.sh
. /vm/lib.sh

CYCLES=250
WORKERS=4

# cycle NAME: one of them. Says nothing unless it fails.
cycle() {
    local image=$1.cow out=$LOG/cycle-$1.out daemon node
    cowdisk create "$image" --size 16M >/dev/null || return 1
    cowdisk serve "$image" --frontend ublk >"$out" 2>"$LOG/cycle-$1.err" &
    daemon=$!
    wait_for 120 cycle_is_ready "$out" $daemon || return 1
    node=$(sed -n 's/^ready //p' "$out")
    [ -b "$node" ] || return 1
    dd if=/dev/zero of="$node" bs=64k count=4 oflag=direct || return 1
    cowdisk stop "$image" >/dev/null || return 1
    exits 0 120 $daemon || return 1
    rm "$image" "$out"
}

cycle_is_ready() { [ -s "$1" ] || dead "$2"; }

# worker NUMBER: its share. Its log names the cycle that failed, and why.
worker() {
    local n=$1
    while [ "$n" -lt $CYCLES ]; do
        echo "cycle $n"
        cycle "$n" || return 1
        n=$((n + WORKERS))
    done
    echo "all done"
}

W=0
PIDS=
while [ $W -lt $WORKERS ]; do
    worker $W >$LOG/worker-$W.out 2>&1 &
    PIDS="$PIDS $!"
    W=$((W + 1))
done
for pid in $PIDS; do
    check "a worker has done its cycles" exits 0 540 "$pid"
done
check "no device is left" is "$(ls /sys/class/ublk-char)" ""
check "no image is left" is "$(ls ./*.cow 2>/dev/null)" ""
check "nothing is served" is "$(cowdisk status 2>&1)" ""
note "$(grep -c "^cycle" $LOG/worker-*.out | tr '\n' ' ')"
