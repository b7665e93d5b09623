# shellcheck shell=dash
# limit: 560
# Each feature of the driver that the daemon makes use of: insisted on (refused by name where the driver does not have it)
# and left out. Each time a disk that is open is left to the next daemon, taken up again and stopped.
# shellcheck source=lib.sh
. /vm/lib.sh

# What the old kernel does not have.
case $(uname -r) in
6.12.*) LACKS="AUTO_BUF_REG UPDATE_SIZE QUIESCE SAFE_STOP_DEV NO_AUTO_PART_SCAN USER_RECOVERY_FAIL_IO" ;;
*) LACKS= ;;
esac

lacks() { case " $LACKS " in *" $1 "*) ;; *) return 1 ;; esac; }

same_as_base() { cmp -n 65536 "$NODE" base.raw; }

# life LIST: with these features on or off.
life() {
    local first
    must "create" cowdisk create f.cow --base base.raw --base-format raw
    serve f.cow --ublk-features "$1"
    first=$NODE
    check "disk reads as its base" same_as_base
    exec 9<"$NODE"
    check_exit 75 "stop refuses an open disk" cowdisk stop f.cow
    kill -TERM "$SERVE_PID"
    check "daemon ends with 0" exits 0 30 "$SERVE_PID"
    serve f.cow --ublk-features "$1"
    check "the same device is served again" is "$NODE" "$first"
    check "disk still reads as its base" same_as_base
    grows "$1"
    check "stop --force" cowdisk stop f.cow --force
    check "daemon ended with 0" exits 0 30 "$SERVE_PID"
    exec 9<&-
    check "node is gone" wait_for 20 absent "$NODE"
    rm f.cow
}

# Its users are told of another size, or keep the one that they know.
grows() {
    local size
    size=$(blockdev --getsize64 "$NODE")
    check "resize" cowdisk resize f.cow +16M
    case $1 in
    -UPDATE_SIZE) ;;
    *) lacks UPDATE_SIZE || size=$((size + 16777216)) ;;
    esac
    check "the device has the size that it should have" is "$(blockdev --getsize64 "$NODE")" "$size"
}

# without_recovery LIST: the disk cannot be left to another daemon.
without_recovery() {
    must "create" cowdisk create f.cow --base base.raw --base-format raw
    serve f.cow --ublk-features "$1"
    check "disk reads as its base" same_as_base
    check "stop" cowdisk stop f.cow
    check "daemon ended with 0" exits 0 30 "$SERVE_PID"
    rm f.cow
}

refused() {
    must "create" cowdisk create f.cow --size 16M
    check_exit 1 "+$1 is refused" timeout 30 cowdisk serve f.cow --frontend ublk --ublk-features "+$1"
    check "the refusal names it" said "does not have $1"
    check "no device is left behind" absent /dev/ublkc0
    rm f.cow
}

for name in USER_RECOVERY CMD_IOCTL_ENCODE USER_COPY AUTO_BUF_REG UPDATE_SIZE QUIESCE SAFE_STOP_DEV NO_AUTO_PART_SCAN; do
    if lacks $name; then refused $name; else life +$name; fi
done
for name in CMD_IOCTL_ENCODE USER_COPY UPDATE_SIZE QUIESCE SAFE_STOP_DEV NO_AUTO_PART_SCAN GET_DEV_INFO2 DEL_DEV_ASYNC; do
    life -$name
done
without_recovery -USER_RECOVERY
without_recovery -USER_RECOVERY_REISSUE
check_exit 64 "an unknown feature is bad usage" cowdisk serve f.cow --ublk-features +NO_SUCH_THING
