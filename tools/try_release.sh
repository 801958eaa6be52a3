#!/bin/sh
# In a clean root, as tools/try_release.py makes it: install by one way (deb, archive, wheel), run a container by `kata
# run` and by containerd, remove everything, compare the lists of all files. And what can be in the way: another Kata, an
# older version with a sandbox that runs, a full disk, a read-only /opt. `make dist` comes first.
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

# A command that has to fail, with words in what it says.
refused() {
    words=$1
    shift
    if "$@" >/tmp/refused 2>&1 || ! grep -q "$words" /tmp/refused; then
        cat /tmp/refused
        say "this had to be refused: $*"
        exit 1
    fi
    say "$(grep "$words" /tmp/refused | head -1)"
}
# A sandbox that runs while something is done to the installation.
begin_sandbox() {
    ctr run --detach --runtime io.containerd.kata.v2 --rootfs "$root" "$1" /bin/busybox sleep 600
    sleep 7
}
end_sandbox() {
    kill -0 "$(ctr task ls | awk -v id="$1" '$1 == id { print $2 }')"
    say "the sandbox goes on after $2"
    ctr task kill --signal KILL "$1"
    until ctr task ls | grep -q STOPPED; do sleep 1; done
    ctr task delete "$1" >/dev/null
    ctr container delete "$1"
}

install_older_deb() {
    mkdir /root/older
    for package in pykata pykata-guest; do
        dpkg-deb --raw-extract dist/${package}_*.deb /root/older/$package
        sed -i -E 's/^(Version: |Depends: pykata \(= )[0-9.]+/\10.0.1/' /root/older/$package/DEBIAN/control
        dpkg-deb --root-owner-group -Znone --build /root/older/$package /root/older/$package.deb >/dev/null
    done
    apt-get install -qy --no-install-recommends /root/older/*.deb >/tmp/apt.log
    rm -r /root/older
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

case $way in
    deb)
        timed install_older_deb
        "$kata" setup containerd --yes >/dev/null
        start_containerd
        begin_sandbox older
        timed install_deb
        dpkg-query -W pykata pykata-guest
        end_sandbox older "the upgrade"
        stop_containerd
        "$kata" unset --yes >/dev/null
        ;;
    archive)
        mkdir /tmp/small
        mount -t tmpfs -o size=40m tmpfs /tmp/small
        refused "No space left" tar -C /tmp/small -xf dist/pykata-*-amd64.tar.xz
        refused "a part of this installation is missing" /tmp/small/opt/kata/bin/kata setup
        umount /tmp/small
        timed install_archive
        rm /opt/kata/lib/pykata/kata/monitor/main.py
        refused "1 of this installation's files" "$kata" setup
        install_archive
        mount --bind /opt/kata /opt/kata
        mount -o remount,bind,ro /opt/kata
        ;;
    wheel) timed install_wheel ;;
esac
"$kata" --version
timed "$kata" run --rootfs "$root" -- /bin/busybox uname -r
timed "$kata" run --rootfs "$root" -- /bin/busybox uname -r
refused "dockerd is not installed" "$kata" setup docker --yes
printf '\177ELF' >/usr/local/bin/containerd-shim-kata-v2
refused "another Kata is installed" "$kata" setup containerd --yes
rm /usr/local/bin/containerd-shim-kata-v2
"$kata" setup containerd --yes
"$kata" setup containerd --yes
start_containerd
timed ctr run --rm --runtime io.containerd.kata.v2 --rootfs "$root" hello /bin/busybox echo "by containerd"
begin_sandbox stays
# Removal leaves what runs alone.
[ $way != archive ] || umount /opt/kata
case $way in
    deb) apt-get remove -qy pykata-guest pykata >/tmp/apt.log ;;
    *) mv "${kata%/bin/kata}" /opt/away ;;
esac
end_sandbox stays "the removal"
stop_containerd
[ ! -d /opt/away ] || mv /opt/away "${kata%/bin/kata}"
timed "remove_$way"
files >/tmp/after
diff /tmp/before /tmp/after && say "$(wc -l </tmp/before) files before and after"
