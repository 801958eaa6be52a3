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

if [ -x /usr/bin/kata-agent ]; then
    # The initrd is the whole root. It is mounted over itself: no container could pivot_root out of the first root.
    mount --bind / /mnt || fail "cannot mount the root over itself"
    # While /proc is here: mount reads it.
    mount -o remount,bind,ro /mnt || fail "cannot make the root read-only"
    for directory in dev proc sys; do
        mount --move "/$directory" "/mnt/$directory" || fail "cannot move /$directory to the root"
    done
    cd /mnt || fail "cannot enter the root"
    mount --move . / || fail "cannot move the root to /"
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
    exec chroot . /usr/bin/kata-agent
fi

while read -r module; do
    insmod "/modules/$module" || fail "cannot load $module"
done </modules/order

read -r type disk </modules/root
tries=0
until [ -b "$disk" ]; do
    tries=$((tries + 1))
    [ "$tries" -le 50 ] || fail "no root disk: $disk did not appear within 5 s"
    sleep 0.1
done
case "$command_line" in
*'dm-mod.create="'*)
    # The kernel's own parameter, for a device mapper that is part of it (admin-guide/device-mapper/dm-init.rst). Where it
    # is a module, dmsetup takes the same words. No udev: nobody would answer.
    table=${command_line#*'dm-mod.create="'}
    [ -b /dev/dm-0 ] || dmsetup create --noudevrules --noudevsync --concise "${table%%'"'*}" ||
        fail "cannot check the root disk by dm-verity"
    disk=/dev/dm-0
    ;;
esac
mount -t "$type" -o ro "$disk" /sysroot || fail "cannot mount the root disk $disk as $type"
[ -x /sysroot/usr/bin/kata-agent ] || fail "the root disk has no /usr/bin/kata-agent"

for directory in dev proc sys; do
    mount --move "/$directory" "/sysroot/$directory" || fail "cannot move /$directory to the root disk"
done
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
exec /bin/switch_root /sysroot /usr/bin/kata-agent
