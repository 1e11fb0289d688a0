#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# customize.sh ROOT FILES finishes the root file system of an image: build.sh calls it when the packages are there.
set -euo pipefail
root=$1 files=$2

cp -r --preserve=mode "$files/." "$root/"

# Each machine gets a name, keys and an identity of its own from the disk that it is started with.
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/hostname" "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"
echo '/dev/vda / ext4 defaults,errors=remount-ro 0 1' >"$root/etc/fstab"

# Man pages of packages that are installed later stay.
rm -f "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$root"/etc/apt/apt.conf.d/99mmdebstrap

chroot "$root" systemctl enable -q machine-seed.service systemd-networkd.service systemd-resolved.service
ln -sfn ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
# A password is of no use without a console that anybody reads.
chroot "$root" passwd -q -l root
