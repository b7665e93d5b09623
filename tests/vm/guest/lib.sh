# shellcheck shell=dash disable=SC2034
# What scenarios are made of. A scenario is sourced text for dash with `set -eu`: a command that fails outside of a
# check ends it, and that is a failure, too.

set -eu

TAP=/tmp/tap
LOG=/tmp/log
CHECKS=0
DAEMONS=0

# --- Checks ---------------------------------------------------------------------------------------------------------

# report "ok"|"not ok" TEXT. It goes to the kernel's log, too: there one sees what happened when.
report() {
    CHECKS=$((CHECKS + 1))
    echo "$1 $CHECKS - $2" | tee -a $TAP
    echo "vm: $1 $CHECKS - $2" >/dev/kmsg
}

note() { echo "# $*"; }

# check TEXT COMMAND...: the command must succeed. What it printed is shown if it does not.
check() { check_exit 0 "$@"; }

# check_exit STATUS TEXT COMMAND...
check_exit() {
    local wanted=$1 text=$2 status=0
    shift 2
    [ ! -e /tmp/check.out ] || mv /tmp/check.out /tmp/said.out
    "$@" >/tmp/check.out 2>&1 || status=$?
    if [ "$status" = "$wanted" ]; then
        report "ok" "$text"
        return 0
    fi
    report "not ok" "$text (exit $status, not $wanted: $*)"
    tail -n 20 /tmp/check.out | sed 's/^/# /'
    FAILED=yes
}

# must TEXT COMMAND...: a check without which the rest makes no sense.
must() {
    FAILED=no
    check "$@"
    [ $FAILED = no ] || exit 1
}

# --- Conditions, for check and wait_for -----------------------------------------------------------------------------

# What the command of the check before printed.
said() { grep -q -- "$1" /tmp/said.out || { cat /tmp/said.out && return 1; }; }
said_nothing_of() { ! grep -i -- "$1" /tmp/said.out; }

is() { [ "$1" = "$2" ] || { echo "is: $1" && echo "not: $2" && return 1; }; }
is_not() { [ "$1" != "$2" ] || { echo "is: $1" && return 1; }; }
greater() { [ "$1" -gt "$2" ] || { echo "$1 is not greater than $2" && return 1; }; }
file_is() { is "$(cat "$1")" "$2"; }
file_greater() { greater "$(cat "$1")" "$2"; }
absent() { [ ! -e "$1" ]; }
absent_in() { ! grep -- "$2" "$1"; }
# A dead child stays in the process table until the shell waits for it.
dead() { ! grep -q '^State:[[:space:]]*[^ZX]' "/proc/$1/status" 2>/dev/null; }
alive() { ! dead "$1"; }
# same_bytes LENGTH A B [SKIP-A [SKIP-B]]
same_bytes() {
    local length=$1
    shift
    cmp -n "$length" "$@"
}

# --- Waiting --------------------------------------------------------------------------------------------------------

uptime_seconds() { cut -d. -f1 /proc/uptime; }

# wait_for SECONDS COMMAND...: until the command succeeds; fails after SECONDS.
wait_for() {
    local end=$(($(uptime_seconds) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(uptime_seconds)" -lt $end ] || { echo "waited in vain for: $*" && return 1; }
        sleep 0.1
    done
}

# exits STATUS SECONDS PID: this child of ours ends in time, with this status.
exits() {
    local status=0
    wait_for "$2" dead "$3" || return 1
    # dash prints "Killed" for a child that a signal ended.
    wait "$3" 2>/dev/null || status=$?
    is "$status" "$1"
}

# --- cowdisk --------------------------------------------------------------------------------------------------------

# serve IMAGE [OPTIONS]: starts a daemon and waits until it is ready. Sets SERVE_PID and NODE.
serve() {
    start_serve "$@"
    must "serve $* is ready" wait_for 60 ready_or_dead
    must "serve $* prints one line, ready DEVICE" is "$(sed 's,^ready /dev/ublkb[0-9]*$,ready,' "$SERVE_OUT")" ready
    NODE=$(sed -n 's/^ready //p' "$SERVE_OUT")
}

start_serve() {
    DAEMONS=$((DAEMONS + 1))
    SERVE_OUT=$LOG/serve-$DAEMONS.out
    cowdisk serve "$@" --frontend ublk >"$SERVE_OUT" 2>"$LOG/serve-$DAEMONS.err" &
    SERVE_PID=$!
}

ready_or_dead() { [ -s "$SERVE_OUT" ] || dead "$SERVE_PID"; }

# kill -9, and the process is gone when this returns.
kill_daemon() {
    kill -9 "$SERVE_PID"
    check "killed daemon ends" exits 137 60 "$SERVE_PID"
}

# kill_after MILLISECONDS OPTIONS: a daemon is started and dies. This is about points in time, whatever happens there.
kill_after() {
    local time=$1
    shift
    start_serve "$@"
    sleep "$(printf '0.%03d' "$time")"
    kill -9 "$SERVE_PID" 2>/dev/null || true
    check "killed after $time ms" exits 137 60 "$SERVE_PID"
}

# status_has IMAGE STATE. The exit status of `status` says how well the image is, which is not asked here.
status_has() {
    cowdisk status "$1" --json >/tmp/status.json || true
    grep -Eq "\"state\": *\"$2\"" /tmp/status.json || { cat /tmp/status.json && return 1; }
}

# requests IMAGE KIND: how many the server has had, the number after the first such key below "requests" of its status.
requests() {
    cowdisk status "$1" --json | tr -d '\n ' | sed 's/^.*"requests"://' |
        grep -oE "\"$2(es|s)?\":(\{\"[a-z_]+\":)?[0-9]+" | head -n 1 | grep -oE '[0-9]+$' || echo 0
}

# --- Disks ----------------------------------------------------------------------------------------------------------

name_of() { basename "$1"; }

# Writes that device $1 has completed since it exists, whoever served it.
writes_done() { awk '{ print $5 }' "/sys/block/$(name_of "$1")/stat"; }
writes_beyond() { greater "$(writes_done "$1")" "$2"; }

# load_goes_on N: fio, which writes to $NODE in the background as $FIO, has another N writes done.
load_goes_on() {
    local from
    from=$(writes_done "$NODE")
    must "load goes on" wait_for 60 writes_beyond "$NODE" $((from + $1))
    must "fio is running" alive "$FIO"
}

drop_caches() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
}

# What the kernel logs in between may name I/O errors: the scenario causes them.
errors_expected() { echo "vm: I/O errors expected" >/dev/kmsg; }
errors_over() { echo "vm: I/O errors over" >/dev/kmsg; }
