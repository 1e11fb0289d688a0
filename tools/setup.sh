#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Makes a Debian machine ready to build SIF and to run its lab: Debian packages, and Consul, Vault and Nomad.
# Ends with links to the three servers in $1 (default: bin/servers in the repository).
# It can be interrupted and run again at any time, also twice at once: a server is built to a temporary name,
# under a lock, and renamed.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
links=${1:-$repo/bin/servers}
cache=${SIF_CACHE:-/var/cache/sif}/servers

packages=(
  bpftool busybox-static ca-certificates clang conntrack curl docker.io ethtool gcc git iproute2 jq
  libbpf-dev libc6-dev llvm make nftables openvswitch-switch procps shellcheck tcpdump util-linux wireguard-tools
)

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

install_packages() {
  local missing=() package
  for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  if [[ ${#missing[@]} -eq 0 ]]; then
    return
  fi
  [[ $EUID -eq 0 ]] || die "these Debian packages are missing, run this as root once: ${missing[*]}"
  say "installing Debian packages: ${missing[*]}"
  # The lab starts Docker and Open vSwitch itself, one per node: keep the packages from starting theirs.
  export DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 RUNLEVEL=1
  apt-get -qq update
  apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
}

# version_on_path NAME prints the version of the NAME on PATH, such as 1.20.6, or nothing.
version_on_path() {
  command -v "$1" >/dev/null || return 0
  "$1" version 2>/dev/null | sed -nE '1s/^[A-Za-z]+ v([0-9]+\.[0-9]+\.[0-9]+).*/\1/p'
}

# build NAME TAGS OUTPUT compiles a server and says every 15 s that it is still at it.
build() {
  local name=$1 tags=$2 output=$3 log=$3.log began=$SECONDS next=15 pid
  [[ $name != nomad ]] || command -v gcc >/dev/null || die "nomad needs gcc to build"
  say "building $name from tools/$name: once, takes 5 to 10 minutes on two cores"
  nice -n 5 go build -C "$repo/tools/$name" -tags "$tags" -trimpath -ldflags '-s -w' \
    -o "$output" "github.com/hashicorp/$name" >"$log" 2>&1 &
  pid=$!
  # shellcheck disable=SC2064 # the pid of now is meant
  trap "kill $pid 2>/dev/null || true; rm -rf '$(dirname "$output")'" EXIT
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.5
    if ((SECONDS - began >= next)); then
      say "building $name: $((SECONDS - began)) s so far"
      next=$((next + 15))
    fi
  done
  if ! wait "$pid"; then
    tail -n 20 "$log" >&2
    die "building $name failed"
  fi
  rm -f "$log"
  say "built $name in $((SECONDS - began)) s"
}

# server NAME MINOR TAGS finds or builds one server and links it into $links.
server() {
  local name=$1 minor=$2 tags=$3 version hash home temporary
  version=$(version_on_path "$name")
  if [[ $version == "$minor".* ]]; then
    say "$name $version is on PATH"
    ln -sfn "$(readlink -f "$(command -v "$name")")" "$links/$name"
    return
  fi
  hash=$(cat "$repo/tools/$name/go.mod" "$repo/tools/$name/go.sum" | sha256sum | cut -c1-16)
  home=$cache/$name-$hash
  if [[ ! -x $home/$name ]]; then
    mkdir -p "$cache"
    # A build that outlived its script holds the lock too: then its result is waited for.
    exec 9>"$cache/.lock"
    flock -n 9 || say "waiting for another build of the servers to end" && flock 9
    if [[ ! -x $home/$name ]]; then
      rm -rf "$cache/.building-$name".*
      temporary=$(mktemp -d "$cache/.building-$name.XXXXXX")
      build "$name" "$tags" "$temporary/$name"
      chmod 755 "$temporary"
      rm -rf "$home"
      mv -T "$temporary" "$home"
      trap - EXIT
    fi
    exec 9>&-
  fi
  say "$name is in $home"
  ln -sfn "$home/$name" "$links/$name"
}

command -v go >/dev/null || die "Go is not on PATH: install the version that go.mod names (https://go.dev/dl)"
install_packages
mkdir -p "$links"
server consul 1.20 ''
server vault 1.21 minimal
# Without the tag "release" nomad registers a mock driver.
server nomad 1.10 release
