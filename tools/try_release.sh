#!/bin/sh
# In a clean root, as tools/try_release.py makes it: install by one way (deb, archive, wheel), run a container by `kata
# run` and by containerd, remove everything, compare the lists of all files. `make dist` comes first.
set -eu
way=$1
export DEBIAN_FRONTEND=noninteractive
root=/tmp/rootfs
packages="busybox-static ca-certificates containerd erofs-utils python3 qemu-system-x86 runc"
case $way in
    archive) packages="$packages xz-utils" ;;
    wheel) packages="$packages python3-venv" ;;
esac

say() { echo "== $way: $*"; }
timed() {
    begin=$(date +%s)
    "$@"
    say "$1: $(($(date +%s) - begin)) s"
}
# Not ours: apt's and dpkg's own records, containerd's state, what Python and readers of man pages cache.
files() {
    find / /run -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /mnt -o -path /root -o -path /var/lib/apt \
        -o -path /var/lib/dpkg -o -path /var/cache/apt -o -path /var/cache/man -o -path /var/log -o -path /var/lib/containerd \
        -o -path /run/containerd -o -path /var/cache/ldconfig -o -name __pycache__ \) -prune -o -print | sort -u
    md5sum /etc/containerd/config.toml 2>/dev/null || true
}
start_containerd() {
    containerd >/tmp/containerd.log 2>&1 &
    containerd=$!
    until ctr version >/dev/null 2>&1; do
        kill -0 "$containerd" || { tail -5 /tmp/containerd.log; exit 1; }
        sleep 1
    done
}
stop_containerd() {
    kill "$containerd"
    wait "$containerd" || true
}

install_deb() { apt-get install -qy --no-install-recommends ./dist/pykata_*.deb ./dist/pykata-guest_*.deb >/tmp/apt.log; }
remove_deb() { apt-get purge -qy pykata pykata-guest >/tmp/apt.log; }
install_archive() { tar -C / -xf dist/pykata-*-amd64.tar.xz; }
remove_archive() {
    "$kata" unset --yes >/dev/null
    rm -rf /opt/kata /var/lib/kata /run/kata
}
install_wheel() {
    python3 -m venv /opt/pykata
    /opt/pykata/bin/pip install --quiet --disable-pip-version-check dist/*.whl
    # Without a network: an image of `kata image export`.
    if [ -f dist/guest.tar.zst ]; then
        "$kata" image import dist/guest.tar.zst --switch >/tmp/image.log
    else
        "$kata" image build >/tmp/image.log
    fi
}
remove_wheel() {
    "$kata" unset --yes >/dev/null
    rm -rf /opt/pykata /var/lib/kata /var/cache/kata /run/kata
}
case $way in
    deb) kata=/usr/bin/kata ;;
    archive) kata=/opt/kata/bin/kata ;;
    wheel) kata=/opt/pykata/bin/kata ;;
esac

# dpkg is asked first: a root that has everything needs no network for this.
dpkg-query -W -f '${Status}\n' $packages 2>/dev/null | grep -c 'ok installed' | grep -qx "$(echo $packages | wc -w)" || {
    apt-get update -q >/tmp/apt.log
    apt-get install -qy --no-install-recommends $packages >/tmp/apt.log
}
mkdir -p "$root/bin" && cp /bin/busybox "$root/bin/"
start_containerd
stop_containerd
files >/tmp/before

timed "install_$way"
"$kata" --version
timed "$kata" run --rootfs "$root" -- /bin/busybox uname -r
timed "$kata" run --rootfs "$root" -- /bin/busybox uname -r
"$kata" setup containerd --yes
"$kata" setup containerd --yes
start_containerd
timed ctr run --rm --runtime io.containerd.kata.v2 --rootfs "$root" hello /bin/busybox echo "by containerd"
ctr run --detach --runtime io.containerd.kata.v2 --rootfs "$root" stays /bin/busybox sleep 600
pid=$(ctr task ls | awk '$1 == "stays" { print $2 }')
sleep 7
# Removal leaves what runs alone.
case $way in
    deb) apt-get remove -qy pykata-guest pykata >/tmp/apt.log ;;
    *) mv "${kata%/bin/kata}" /opt/away ;;
esac
kill -0 "$pid" && say "the sandbox goes on after the removal"
ctr task kill --signal KILL stays
until ctr task ls | grep -q STOPPED; do sleep 1; done
ctr task delete stays >/dev/null
ctr container delete stays
stop_containerd
[ ! -d /opt/away ] || mv /opt/away "${kata%/bin/kata}"
timed "remove_$way"
files >/tmp/after
diff /tmp/before /tmp/after && say "$(wc -l </tmp/before) files before and after"
