# shellcheck shell=dash
# limit: 400
# Restart is upgrade: under fio verify the daemon is told to end, and another binary takes the disk up. No I/O error; how
# long requests waited is printed.
# shellcheck source=lib.sh
. /vm/lib.sh

LOAD="--name=upgrade --size=48M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c
    --verify_fatal=1 --verify_state_save=0 --randseed=17"

# Its last byte, which nothing reads, differs: so it is another file with another content.
new_binary() {
    mkdir -p /tmp/new
    cp "$(command -v cowdisk)" /tmp/new/cowdisk.part
    echo >>/tmp/new/cowdisk.part
    chmod +x /tmp/new/cowdisk.part
    mv /tmp/new/cowdisk.part /tmp/new/cowdisk
    PATH=/tmp/new:$PATH
}

# upgrade OPTIONS: three restarts under load.
upgrade() {
    local n=0 left
    serve up.cow "$@"
    # shellcheck disable=SC2086
    fio $LOAD --filename="$NODE" --rate_iops=1500 --fsync=300 >$LOG/fio.out 2>&1 &
    FIO=$!
    while [ $n -lt 3 ]; do
        n=$((n + 1))
        load_goes_on 1000
        left=$LOG/serve-$DAEMONS.err
        new_binary
        kill -TERM "$SERVE_PID"
        check "daemon ends with 0" exits 0 30 "$SERVE_PID"
        serve up.cow "$@"
        check "the new binary serves" is "$(readlink "/proc/$SERVE_PID/exe")" /tmp/new/cowdisk
        note "restart $n $*: $(grep -oh "left to the next daemon.*" "$left"); $(grep -oh "taken up .*" "$LOG/serve-$DAEMONS.err")"
    done
    check "fio ends without an error" exits 0 200 "$FIO"
    note "slowest requests $*: $(grep -E '^ +lat' $LOG/fio.out | sed 's/^ *//' | tr '\n' ';')"
    check "stop" cowdisk stop up.cow
    check "daemon ended with 0" exits 0 30 "$SERVE_PID"
    check "check --data finds nothing" cowdisk check --data up.cow
}

must "create" cowdisk create up.cow --size 128M
upgrade
upgrade --ublk-features -QUIESCE
# Where the driver has it, the pages of requests stand in a table of the ring that goes with the daemon.
rm up.cow
must "create without checksums" cowdisk create up.cow --size 128M --checksums none
upgrade
