# shellcheck shell=dash
# limit: 300
# Writes whose data the daemon asks for (--ublk-mode get-data), and the death of such a daemon under load.
# shellcheck source=lib.sh
. /vm/lib.sh

LOAD="--name=getdata --size=32M --rw=randwrite --bssplit=512/20:4k/40:20k/20:64k/20 --direct=1 --ioengine=libaio
    --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=3"

must "create" cowdisk create ov.cow --base base.raw --base-format raw
serve ov.cow --ublk-mode get-data
must "disk is /dev/ublkb0" is "$NODE" /dev/ublkb0
check "the driver has the feature" absent_in "$LOG/serve-1.err" NEED_GET_DATA
# shellcheck disable=SC2086
check "fio verifies" fio $LOAD --filename="$NODE"
# shellcheck disable=SC2086
fio $LOAD --filename="$NODE" --rate_iops=2000 --fsync=200 >$LOG/fio.out 2>&1 &
FIO=$!
from=$(writes_done "$NODE")
must "load goes on" wait_for 60 writes_beyond "$NODE" $((from + 200))
kill_daemon
check "status says waiting" wait_for 20 status_has ov.cow waiting
serve ov.cow
must "the same device is served again" is "$NODE" /dev/ublkb0
check "fio ends without an error" exits 0 200 "$FIO"
drop_caches
# shellcheck disable=SC2086
check "fio verifies all of it once more" fio $LOAD --filename="$NODE" --verify_only
check "stop" cowdisk stop ov.cow
check "daemon ended with 0" exits 0 30 "$SERVE_PID"
check "check --data finds nothing" cowdisk check --data ov.cow
