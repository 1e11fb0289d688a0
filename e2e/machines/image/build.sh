#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Builds the base image of a virtual machine: a stock Debian with systemd, udev, networkd, OpenSSH, Docker, Open
# vSwitch, unattended upgrades and hardened sysctls, as one finds it on a server. Nothing of ours is in it.
# build.sh NAME prints the directory of the image: vmlinuz, initrd.img, root.img (ext4) and packages.
#
# Images are cached by what they are built from, outside the repository: in ${SIF_CACHE:-/var/cache/sif}/machines.
# The script may be interrupted and run again at any time, also concurrently: an image is built under a temporary
# name, under a lock, and renamed. It needs root, mmdebstrap, e2fsprogs and a Debian mirror: the one that this
# machine uses.
set -euo pipefail

# The caller reads the directory of the image; what programs print about their work is not for it.
exec 3>&1 >&2

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SIF_CACHE:-/var/cache/sif}/machines

say() { printf 'machine-images: %s\n' "$*"; }
die() {
  say "$*"
  exit 1
}

# The suite of each image. Its kernel is linux-image-cloud-amd64 of that suite: 6.1 in bookworm, 6.12 in trixie.
declare -A suites=([debian12]=bookworm [debian13]=trixie)
name=${1:-}
suite=${suites[$name]:-}
[[ -n $suite ]] || die "usage: build.sh IMAGE, where IMAGE is one of: ${!suites[*]}"

packages=(
  bash-completion bpftool ca-certificates chrony conntrack containernetworking-plugins curl dbus docker.io ethtool
  initramfs-tools iproute2 iptables iputils-ping jq kmod less linux-image-cloud-amd64 logrotate netbase nftables
  openssh-server openvswitch-switch procps systemd-resolved systemd-sysv tcpdump udev unattended-upgrades
  wireguard-tools
)

# What the image is made of, and thus the name of its directory. Debian's updates within a suite do not change it.
key=$(printf '%s\n' "$name" "$suite" "${packages[@]}" | cat - "$here/build.sh" <(cd "$here" && find files -type f -exec sha256sum {} + | sort) | sha256sum | cut -c1-16)
image=$cache/$name-$key
if [[ -e $image/root.img ]]; then
  echo "$image" >&3
  exit
fi

((EUID == 0)) || die "building an image needs root"
for program in mmdebstrap mkfs.ext4; do
  command -v $program >/dev/null || die "$program is not installed: run make setup"
done

temporary='' running=''
clean_up() {
  [[ -z $running ]] || kill "$running" 2>/dev/null || true
  [[ -z $temporary ]] || rm -rf --one-file-system "$temporary"
}
trap clean_up EXIT

mkdir -p "$cache"
exec 9>"$cache/.lock-$name"
flock -n 9 || { say "waiting for another build of $name" && flock 9; }
if [[ -e $image/root.img ]]; then
  echo "$image" >&3
  exit
fi
rm -rf --one-file-system "$cache/.building-$name".*
free=$(df --output=avail -BM "$cache" | tr -dc '0-9\n' | tail -n 1)
((free >= 4096)) || die "an image needs 4 GiB of disk, $cache has $free MiB free: free disk space, or set SIF_CACHE to a directory with more"
temporary=$(mktemp -d "$cache/.building-$name.XXXXXX")

# The mirrors are those of this machine, with the suite of the image.
mirror() { sed -nE "s|^URIs:[[:space:]]*([^[:space:]]*)|\1|p" /etc/apt/sources.list.d/debian.sources 2>/dev/null | grep "$1" | head -n 1; }
main=$(mirror '/debian/\?$' || true) security=$(mirror security || true)
main=${main:-http://deb.debian.org/debian} security=${security:-http://deb.debian.org/debian-security}

began=$SECONDS
say "building $name from $suite: this happens once and takes about 5 minutes"
nice -n 5 mmdebstrap --variant=minbase --quiet \
  --aptopt='Acquire::Retries "3"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --include="$(IFS=,; echo "${packages[*]}")" \
  --essential-hook="mkdir -p \$1/etc/initramfs-tools/conf.d && printf '%s\n' MODULES=list RESUME=none COMPRESS=gzip >\$1/etc/initramfs-tools/conf.d/machine && printf '%s\n' virtio_pci virtio_blk ext4 >\$1/etc/initramfs-tools/modules" \
  --customize-hook="'$here/customize.sh' \"\$1\" '$here/files'" \
  "$suite" "$temporary/root" \
  "deb $main $suite main" "deb $main $suite-updates main" "deb $security $suite-security main" >"$temporary/log" 2>&1 &
running=$!
next=15
while kill -0 "$running" 2>/dev/null; do
  sleep 0.5
  if ((SECONDS - began >= next)); then
    say "$name: $((SECONDS - began)) s so far, $(tail -n 1 "$temporary/log" | cut -c1-100)"
    next=$((next + 15))
  fi
done
wait "$running" || {
  tail -n 30 "$temporary/log"
  die "building $name failed after $((SECONDS - began)) s"
}
running=
cp "$temporary"/root/boot/vmlinuz-* "$temporary/vmlinuz"
cp "$temporary"/root/boot/initrd.img-* "$temporary/initrd.img"
dpkg-query --admindir="$temporary/root/var/lib/dpkg" -W >"$temporary/packages"
mkfs.ext4 -q -E lazy_itable_init=1 -L root -d "$temporary/root" "$temporary/root.img" 6G
rm -rf --one-file-system "$temporary/root" "$temporary/log"
chmod 755 "$temporary"
mv -T "$temporary" "$image"
temporary=
say "built $name in $((SECONDS - began)) s: $image, $(du -sm "$image" | cut -f1) MiB"
# An image of an older recipe is of no use any more, unless a machine still uses it.
for old in "$cache/$name"-*; do
  [[ $old == "$image" ]] || grep -qsF "$old" /var/lib/sif-machines/*/world.json || rm -rf --one-file-system "$old"
done
echo "$image" >&3
