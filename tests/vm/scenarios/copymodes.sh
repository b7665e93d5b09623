# shellcheck shell=dash
# limit: 500
# Each way in which data gets from the kernel to the daemon and back, insisted on, with a load of all sizes and the death
# of the daemon under it: the driver copies, the driver copies when asked, the daemon copies.
# shellcheck source=lib.sh
. /vm/lib.sh

LOAD="--name=copies --size=24M --rw=randwrite --bssplit=512/20:4k/40:20k/20:128k/20 --direct=1 --ioengine=libaio
    --iodepth=32 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=3"

# under_load OPTIONS: fio verifies through the death of the daemon.
under_load() {
    must "create" cowdisk create ov.cow --base base.raw --base-format raw
    serve ov.cow "$@"
    # shellcheck disable=SC2086
    fio $LOAD --filename="$NODE" --rate_iops=2000 --fsync=200 >$LOG/fio.out 2>&1 &
    FIO=$!
    load_goes_on 300
    kill_daemon
    check "status says waiting" wait_for 20 status_has ov.cow waiting
    first=$NODE
    serve ov.cow "$@"
    must "the same device is served again" is "$NODE" "$first"
    check "fio ends without an error" exits 0 200 "$FIO"
    drop_caches
    # shellcheck disable=SC2086
    check "fio verifies all of it once more" fio $LOAD --filename="$NODE" --verify_only
    note "$*: $(grep -E 'VmHWM|VmRSS' "/proc/$SERVE_PID/status" | tr -d '\n')"
    check "stop" cowdisk stop ov.cow
    check "daemon ended with 0" exits 0 30 "$SERVE_PID"
    check "check --data finds nothing" cowdisk check --data ov.cow
    rm ov.cow
}

under_load --ublk-features +USER_COPY
under_load --ublk-features +NEED_GET_DATA
under_load --ublk-features -USER_COPY
under_load --queues 2 --depth 128 --ublk-features +USER_COPY
