# shellcheck shell=dash
# limit: 240
# Names of devices without udev: who gets one, who keeps it, and when it goes. And what doctor says of a machine with ublk,
# what a detached daemon does, and an image that has come to lie on its own disk.
# shellcheck source=lib.sh
. /vm/lib.sh

link_is() { is "$(readlink "$1")" "$2"; }
id_of() { cowdisk info "$1" --json | grep -oE '"disk_id": *"[^"]*"' | cut -d'"' -f4; }
pid_of() { cowdisk status "$1" --json | grep -oE '"pid": *[0-9]+' | grep -oE '[0-9]+$'; }
served_by_another() { is_not "$(pid_of "$1")" "$2" && is_not "$(pid_of "$1")" ""; }

verdict=0
cowdisk doctor /scratch --json >/tmp/doctor.json || verdict=$?
check "doctor finds the driver, and at most limits" absent_in /tmp/doctor.json '"level":"failed"'
check "its exit status says so" test "$verdict" = 0 -o "$verdict" = 2
check "it names features" grep -q '"ublk_features":\["' /tmp/doctor.json
note "$(cowdisk doctor | grep -v '^ok')"

must "create" cowdisk create vm.cow --size 64M
mkdir other
must "create another of that name" cowdisk create other/vm.cow --size 64M
serve vm.cow
FIRST=$SERVE_PID
check "the name of the file leads to the device" link_is /dev/cowdisk/vm ../ublkb0
check "so does its id" link_is "/dev/cowdisk/by-id/$(id_of vm.cow)" ../../ublkb0
check "status takes the name" cowdisk status /dev/cowdisk/vm
check "udev would be told both" is "$(cowdisk udev /dev/ublkb0 | tr '\n' ' ')" "COWDISK_NAME=vm COWDISK_DISK_ID=$(id_of vm.cow) "

serve other/vm.cow
check "a second one does not get the name" link_is /dev/cowdisk/vm ../ublkb0
check "it is told whose it is" grep -q "no link /dev/cowdisk/vm: it is /dev/ublkb0" "$LOG/serve-$DAEMONS.err"
check "its id leads to it" link_is "/dev/cowdisk/by-id/$(id_of other/vm.cow)" ../../ublkb1
check "udev gets no name that it does not have" is "$(cowdisk udev /dev/ublkb1)" "COWDISK_DISK_ID=$(id_of other/vm.cow)"

SERVE_PID=$FIRST
kill_daemon
check "status says waiting" wait_for 20 status_has vm.cow waiting
check "the name stays while the device waits" link_is /dev/cowdisk/vm ../ublkb0
check "stop of the second" cowdisk stop other/vm.cow
check "its id is gone" absent "/dev/cowdisk/by-id/$(id_of other/vm.cow)"
serve other/vm.cow
check "a device that waits keeps its name" link_is /dev/cowdisk/vm ../ublkb0
check "stop of the second, by its id" cowdisk stop "/dev/cowdisk/by-id/$(id_of other/vm.cow)"

serve vm.cow
check "the next daemon has the name" link_is /dev/cowdisk/vm ../ublkb0
must "mkfs.ext4" mkfs.ext4 -q -F /dev/cowdisk/vm
check "stop" cowdisk stop /dev/cowdisk/vm
check "nothing is left" absent /dev/cowdisk

serve vm.cow --temporary
check "a temporary disk has a name" link_is /dev/cowdisk/vm "../$(name_of "$NODE")"
check "but not the id of the disk it comes from" absent "/dev/cowdisk/by-id/$(id_of vm.cow)"
check "stop" cowdisk stop "$NODE"

# A detached daemon dies under a mounted file system, and its parent starts another one.
must "serve --detach returns when it is ready" cowdisk serve vm.cow --frontend ublk --detach
NODE=/dev/cowdisk/vm
must "mount" mount $NODE /mnt
BEFORE=$(pid_of vm.cow)
kill -9 "$BEFORE"
check "another daemon serves" wait_for 60 served_by_another vm.cow "$BEFORE"
check "the file system goes on" dd if=/dev/zero of=/mnt/file bs=64k count=16 conv=fsync
note "idle, one queue of 64: $(grep -E 'VmRSS|VmLck' "/proc/$(pid_of vm.cow)/status" | tr -s '\t ' ' ' | tr '\n' ',')"
must "umount" umount /mnt
check "stop" cowdisk stop $NODE
check "nothing is left" absent /dev/cowdisk

# The disk is mounted over the directory of its image, with an image of that name on it.
mkdir own
must "create" cowdisk create own/self.cow --size 96M
serve own/self.cow
must "mkfs.ext4" mkfs.ext4 -q -F "$NODE"
must "mount it over its image" mount "$NODE" own
must "with an image of that name on it" cowdisk create own/self.cow --size 16M --journal-size 256k
sync
kill_daemon
check_exit 75 "an image on its own disk is refused" sh -c 'cowdisk serve own/self.cow --frontend ublk 2>/tmp/own.err'
check "with the reason" grep -q "lies on its own disk" /tmp/own.err
errors_expected
check "the device can be removed" cowdisk stop "$NODE" --force
umount -l own || true
