# shellcheck shell=dash
# limit: 900
# Each way in which data gets from the kernel to the daemon and back, insisted on, with a load of all sizes and the death
# of the daemon under it: the driver copies, the driver copies when asked, the daemon copies; and, of data without
# checksums, nobody does, where the driver has that (AUTO_BUF_REG, 6.16).
# shellcheck source=lib.sh
. /vm/lib.sh

SIZES=512/20:4k/40:20k/20:128k/20
LOAD="--name=copies --size=24M --rw=randwrite --direct=1 --ioengine=libaio --iodepth=32 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=3"

# under_load OPTIONS: fio verifies through the death of the daemon.
under_load() {
    must "create" cowdisk create ov.cow --base base.raw --base-format raw --checksums "$CHECKSUMS"
    serve ov.cow "$@"
    # shellcheck disable=SC2086
    fio $LOAD --bssplit=$SIZES --filename="$NODE" --rate_iops=2000 --fsync=200 >$LOG/fio.out 2>&1 &
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
    check "fio verifies all of it once more" fio $LOAD --bssplit=$SIZES --filename="$NODE" --verify_only
    moved=$(cowdisk status --json ov.cow | sed -n 's/.*"zero_copy":\([0-9]*\).*/\1/p')
    note "$*: $moved reads and writes went by uncopied"
    case $COPIES in
    all) check "all data was copied" is "$moved" 0 ;;
    # The base has no checksums either.
    most) check "data with checksums was copied" greater 50 "$moved" ;;
    *) check "most data was not copied" greater "$moved" 200 ;;
    esac
    note "$*: $(grep -E 'VmHWM|VmRSS' "/proc/$SERVE_PID/status" | tr -d '\n')"
    check "stop" cowdisk stop ov.cow
    check "daemon ended with 0" exits 0 30 "$SERVE_PID"
    check "check --data finds nothing" cowdisk check --data ov.cow
    rm ov.cow
}

CHECKSUMS=on COPIES=all
under_load --ublk-features +USER_COPY
under_load --ublk-features +NEED_GET_DATA
under_load --ublk-features -USER_COPY
under_load --queues 2 --depth 128 --ublk-features +USER_COPY
CHECKSUMS=none
under_load --ublk-features -AUTO_BUF_REG
SIZES=4k/50:20k/25:128k/25
case $(uname -r) in
6.12.*) under_load ;;
*)
    COPIES=few
    under_load
    under_load --queues 2 --depth 128 --ublk-features +AUTO_BUF_REG
    # Data with checksums has to be seen, whatever the device has.
    CHECKSUMS=on COPIES=most
    under_load --ublk-features +AUTO_BUF_REG
    ;;
esac
