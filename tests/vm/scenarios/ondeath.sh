# shellcheck shell=dash
# limit: 240
# What becomes of a disk whose daemon dies: it waits, it fails its requests until there is another daemon (6.13), it goes.
# shellcheck source=lib.sh
. /vm/lib.sh

case $(uname -r) in
6.12.*) CAN_FAIL=no ;;
*) CAN_FAIL=yes ;;
esac

reads() { dd if="$NODE" of=/dev/null bs=4k count=1 iflag=direct; }

waits() {
    serve ov.cow --on-death wait
    first=$NODE
    kill_daemon
    reads 2>/dev/null &
    READER=$!
    check_exit 1 "a read waits as long as there is no daemon" wait_for 2 dead "$READER"
    serve ov.cow --on-death wait
    check "the same device is served again" is "$NODE" "$first"
    check "the read that waited succeeds" exits 0 30 "$READER"
    check "stop" cowdisk stop ov.cow
    check "daemon ended with 0" exits 0 30 "$SERVE_PID"
}

fails() {
    serve ov.cow --on-death fail
    first=$NODE
    check "a read succeeds" reads
    errors_expected
    kill_daemon
    check "status says waiting" wait_for 20 status_has ov.cow waiting
    check_exit 1 "a read fails at once" reads
    check "the device is still there" test -b "$NODE"
    check "status says that requests fail" grep -q "fails all requests" /tmp/status.json
    serve ov.cow --on-death fail
    check "the same device is served again" is "$NODE" "$first"
    check "a read succeeds again" reads
    exec 9<"$NODE"
    kill -TERM "$SERVE_PID"
    check "daemon of an open disk ends with 0" exits 0 30 "$SERVE_PID"
    check_exit 1 "a read fails" reads
    exec 9<&-
    errors_over
    check "stop removes the device" cowdisk stop ov.cow
    check "node is gone" wait_for 20 absent "$NODE"
}

cannot_fail() {
    check_exit 1 "a driver that cannot do it is refused" timeout 30 cowdisk serve ov.cow --frontend ublk --on-death fail
    check "the refusal says what to do" said "^try: --on-death remove"
    check "no device is left behind" absent /dev/ublkc0
}

goes() {
    serve ov.cow --on-death remove
    errors_expected
    kill_daemon
    check "the disk goes with its daemon" wait_for 30 absent "$NODE"
    errors_over
    check_exit 1 "status says that the image is not served" cowdisk status ov.cow
    serve ov.cow
    check "it is served again" reads
    check "stop" cowdisk stop ov.cow
    check "daemon ended with 0" exits 0 30 "$SERVE_PID"
}

must "create" cowdisk create ov.cow --base base.raw --base-format raw
waits
if [ $CAN_FAIL = yes ]; then fails; else cannot_fail; fi
goes
check "check --data finds nothing" cowdisk check --data ov.cow
