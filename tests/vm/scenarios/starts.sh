# shellcheck shell=dash
# limit: 300
# The daemon is killed at fifteen points of its start: the next one always comes up.
# shellcheck source=lib.sh
. /vm/lib.sh

must "create" cowdisk create st.cow --base base.raw --base-format raw
N=0
while [ $N -lt 15 ]; do
    N=$((N + 1))
    kill_after $((N * 40)) st.cow
    serve st.cow
    check "disk reads as its base" cmp -n 65536 "$NODE" base.raw
    check "stop" cowdisk stop st.cow
    check "daemon ended with 0" exits 0 30 "$SERVE_PID"
done
check "check --data finds nothing" cowdisk check --data st.cow
