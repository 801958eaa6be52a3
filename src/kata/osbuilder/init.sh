#!/bin/sh
# The first process of the guest: load what reaches the root disk, mount it, hand over to the agent.
# Whatever fails is said in one line on the console, and the machine resets: under QEMU's -no-reboot it exits.
PATH=/bin
export PATH

fail() {
    echo "kata-init: $*"
    reboot -f
}

mount -t devtmpfs dev /dev || fail "cannot mount /dev"
mount -t proc proc /proc || fail "cannot mount /proc"

read -r command_line </proc/cmdline
case " $command_line " in
*" kata.probe "*)
    # Asked only whether a guest runs here at all.
    echo kata-probe-ok
    poweroff -f
    ;;
esac

mount -t sysfs sysfs /sys || fail "cannot mount /sys"
while read -r module; do
    insmod "/modules/$module" || fail "cannot load $module"
done </modules/order

tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ "$tries" -le 50 ] || fail "no root disk: /dev/vda did not appear within 5 s"
    sleep 0.1
done
mount -t erofs -o ro /dev/vda /sysroot || fail "cannot mount the root disk /dev/vda as erofs"
[ -x /sysroot/usr/bin/kata-agent ] || fail "the root disk has no /usr/bin/kata-agent"

for directory in dev proc sys; do
    mount --move "/$directory" "/sysroot/$directory" || fail "cannot move /$directory to the root disk"
done
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
exec /bin/switch_root /sysroot /usr/bin/kata-agent
