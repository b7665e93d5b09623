# shellcheck shell=dash
# limit: 600
# The daemon dies by kill -9 under load fifty times, after another number of writes each time, and the next one takes
# the same device up. The journal is as small as it can be, so that kills come in the middle of checkpoints, too.
# shellcheck source=lib.sh
. /vm/lib.sh

KILLS=50

# die_under_load N: kill -9 after another N writes.
die_under_load() {
    load_goes_on "$1"
    kill_daemon
}

recover() {
    serve kills.cow
    must "the same device is served again" is "$NODE" /dev/ublkb0
    grep -o "[0-9]* records replayed" "$LOG/serve-$DAEMONS.err" >>$LOG/replayed || true
    must "the recovery says how long it took" grep -q "taken up [0-9]* ms" "$LOG/serve-$DAEMONS.err"
    grep -o "taken up [0-9]* ms" "$LOG/serve-$DAEMONS.err" | grep -o "[0-9]*" >>$LOG/times
}

must "create an image with a small journal" cowdisk create kills.cow --size 224M --journal-size 256k
serve kills.cow
must "disk is /dev/ublkb0" is "$NODE" /dev/ublkb0

# 57,344 writes of 4 KiB, 16 of them in flight; the kills take about two thirds of them.
LOAD="--name=kills --filename=$NODE --size=224M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16
    --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=11"
# shellcheck disable=SC2086
fio $LOAD --rate_iops=2500 --fsync=300 >$LOG/fio.out 2>&1 &
FIO=$!

N=0
while [ $N -lt $KILLS ]; do
    N=$((N + 1))
    die_under_load $((50 + 83 * N % 300))
    recover
done

check "fio ends without an error" exits 0 240 "$FIO"
check "fio verified what it wrote" grep -q "READ: .*io=224" $LOG/fio.out
drop_caches
# shellcheck disable=SC2086
check "fio verifies all of it once more" fio $LOAD --verify_only
check "stop" cowdisk stop kills.cow
check "daemon ended with 0" exits 0 20 "$SERVE_PID"
check "check --data finds nothing" cowdisk check --data kills.cow
check "most of the kills left records to replay" greater "$(grep -vc "^0 " $LOG/replayed)" $((KILLS / 2))
note "$KILLS kills; milliseconds from the start of a daemon until it had the device: $(sort -n $LOG/times | tr '\n' ' ')"
note "$(tr '\n' ',' <$LOG/replayed)"
