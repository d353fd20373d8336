#!/bin/busybox sh
# The first process of a guest: runs what /tests names, one after the other, says on the second serial line what
# became of each, and switches the machine off. Lines of /tests: name, folder, executable.
busybox=/bin/busybox
$busybox mount -t devtmpfs none /dev
exec </dev/null >/dev/ttyS1 2>&1
$busybox stty -onlcr <&1
say() {
    echo "guest: $*"
}

$busybox mount -t proc none /proc
$busybox mount -t sysfs none /sys
$busybox mount -t securityfs none /sys/kernel/security
$busybox mount -t tmpfs none /run
$busybox mount -t cgroup2 none /sys/fs/cgroup
echo "+cpu +memory" >/sys/fs/cgroup/cgroup.subtree_control
$busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
ip link set lo up
for module in /modules/*; do
    case $module in
    *.xz) xzcat "$module" >/tmp/module && insmod /tmp/module ;;
    *) insmod "$module" ;;
    esac || say "cannot load $module"
done
say "kernel $(uname -r)"
. /environment
"$SMP_AGENT" doctor
while read -r name folder executable; do
    say "begin $name"
    (cd "$folder" && exec "$executable" --test-threads 1 --color never) </dev/null
    say "end $name $?"
done </tests
say "done"
poweroff -f
