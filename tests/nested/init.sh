#!/bin/sh
# The first process of level 1: the host's root over 9p, read-only, as root of a machine that has an IOMMU.
# Modules come from the project's own guest image, which is the disk /dev/vda.
PATH=/bin
export PATH

fail() {
    echo "level 1: $*"
    reboot -f
}

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
while read -r module; do
    insmod "/modules/$module" || fail "cannot load $module"
done </modules/order
mount -t erofs -o ro /dev/vda /sysroot || fail "no guest image"
mount -t proc proc /sysroot/proc
mount -t sysfs sysfs /sysroot/sys
busybox chroot /sysroot /sbin/modprobe -a 9p 9pnet_virtio vfio-pci vfio_iommu_type1 e1000e vmw_vsock_virtio_transport || fail "modules are missing"
busybox mkdir /host
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "ro,cache=loose,$options" hostroot /host || fail "no root"
mount -t 9p -o "cache=none,$options" work /host/mnt || fail "no work directory"
for directory in dev proc sys; do
    mount --move "/$directory" "/host/$directory"
done
mkdir() { busybox mkdir "$@"; }
mount -t tmpfs run /host/run
mount -t tmpfs tmp /host/tmp
mkdir -p /host/dev/shm /host/dev/pts
mount -t tmpfs shm /host/dev/shm
mount -t devpts devpts /host/dev/pts
exec switch_root /host /bin/sh /mnt/job.sh
