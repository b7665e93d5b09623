# shellcheck shell=dash
# limit: 1500
# tools: rublk qemu-img
# Not a test: how fast disks are here, beside those of rublk, which lets the same driver serve a raw file (loop), qcow2, and
# nothing (null). Prints lines "# peer WORK NAME REQUESTS-PER-SECOND", one for each round. See tools/compare.
# shellcheck source=lib.sh
. /vm/lib.sh

ROUNDS=3
SECONDS_EACH=5
# All disks have the content of base.raw, and as many bytes.
SIZE=256M

# work NAME NODE WORK FIO-OPTIONS...: one measurement.
work() {
    local name=$1 node=$2 work=$3
    shift 3
    must "$work on $name" fio --name=peer --filename="$node" --size=$SIZE --direct=1 --ioengine=libaio --bs=4k --time_based \
        --runtime=$SECONDS_EACH --randseed="$ROUND" --output=/tmp/fio.out --output-format=terse "$@"
    # Terse output, version 3: the 8th field is reads per second, the 49th writes per second.
    note "peer $work $name $(awk -F';' '{ print $8 + $49 }' /tmp/fio.out)"
}

works() {
    work "$1" "$2" randread --rw=randread --iodepth=32
    [ "$1" != null ] || return 0
    work "$1" "$2" randwrite --rw=randwrite --iodepth=32
    work "$1" "$2" mixed-fsync --rw=randrw --iodepth=8 --fsync=8
}

cowdisk_disk() {
    serve ov.cow
    works cowdisk "$NODE"
    check "stop" cowdisk stop ov.cow
    check "daemon ended with 0" exits 0 60 "$SERVE_PID"
}

# rublk_disk NAME TARGET OPTIONS...: its daemon goes to the background by itself. What it cannot do is told, and no failure
# of ours.
rublk_disk() {
    local name=$1
    shift
    if ! timeout -k 5 60 rublk add "$@" --number 0 >/tmp/rublk.out 2>&1; then
        note "rublk add $* fails: $(tail -n 1 /tmp/rublk.out)"
        return
    fi
    must "/dev/ublkb0 is there" wait_for 30 test -b /dev/ublkb0
    works "$name" /dev/ublkb0
    check "rublk del" rublk del --number 0
    check "/dev/ublkb0 is gone" wait_for 30 absent /dev/ublkb0
}

must "create" cowdisk create ov.cow --base base.raw --base-format raw
must "raw file" dd if=base.raw of=raw.img bs=1M conv=fsync
must "qcow2" qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2
for ROUND in $(seq $ROUNDS); do
    cowdisk_disk
    rublk_disk rublk-loop loop -f raw.img
    rublk_disk rublk-qcow2 qcow2 -f disk.qcow2
    rublk_disk null null
done
