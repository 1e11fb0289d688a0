#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Prepares a Debian machine to build SIF and to run its lab: installs Debian packages, downloads Go modules, finds
# or builds Consul, Vault and Nomad, and links the three servers into $1 (default: bin/servers in the repository).
# All downloads of a build happen here, with retries.
# It may be interrupted and run again at any time, also concurrently: a server is built under a temporary name,
# under a lock, and renamed.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
links=${1:-$repo/bin/servers}
# Caches of servers that were built. A new server goes to the first one that is writable.
caches=("${SIF_CACHE:-/var/cache/sif}/servers")
home=~ # is set even if HOME is not
[[ -n ${SIF_CACHE:-} ]] || caches+=("${XDG_CACHE_HOME:-$home/.cache}/sif/servers")

packages=(
  bpftool busybox-static ca-certificates clang clang-format conntrack curl docker.io ethtool gcc git iproute2 iptables iputils-ping jq
  libbpf-dev libc6-dev llvm make nftables openvswitch-switch patch procps shellcheck tcpdump util-linux wireguard-tools
  openjdk-17-jre-headless # for the tests of Nomad's java driver
  fish logrotate man-db rpm systemd zsh # for the packages' check
  dnsmasq-base e2fsprogs mmdebstrap openssh-client qemu-system-x86 qemu-utils # for virtual machines
)

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

# The version line and the build tags of each server. Without the tag "release", Nomad registers a mock driver.
declare -A minor=([consul]=1.20 [vault]=1.21 [nomad]=1.10)
declare -A tags=([consul]='' [vault]=minimal [nomad]=release)

# Disk space to build servers, in GiB: modules, Go's build cache and the linker's output. Vault alone peaked at 6.9,
# all three took 10 before they were linked.
gib_at_all=5 gib_per_server=3

# retry COMMAND... runs a command up to three times, for failures of the network.
retry() {
  local try
  for try in 1 2 3; do
    if "$@"; then
      return
    fi
    ((try == 3)) || say "trying again in $((try * 10)) s"
    ((try == 3)) || sleep $((try * 10))
  done
  return 1
}

# progress WHAT LOG COMMAND... runs a command with its output in LOG and prints every 15 s that it is still running.
# If the command fails, it prints the end of LOG.
progress() {
  local what=$1 log=$2 began=$SECONDS next=15 last
  shift 2
  "$@" >"$log" 2>&1 &
  running=$!
  while kill -0 "$running" 2>/dev/null; do
    sleep 0.5
    if ((SECONDS - began >= next)); then
      last=$(tail -n 1 "$log")
      say "$what: $((SECONDS - began)) s so far${last:+, $last}"
      next=$((next + 15))
    fi
  done
  if ! wait "$running"; then
    running=
    tail -n 20 "$log" >&2
    say "$what failed after $((SECONDS - began)) s"
    return 1
  fi
  running=
}

# The running command and the incomplete files that clean_up removes on exit.
running='' temporary=''
clean_up() {
  [[ -z $running ]] || kill "$running" 2>/dev/null || true
  [[ -z $temporary ]] || rm -rf "$temporary"
}
trap clean_up EXIT

install_packages() {
  local missing=() package
  for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  if [[ ${#missing[@]} -eq 0 ]]; then
    return
  fi
  [[ $EUID -eq 0 ]] || die "Debian packages are missing: run this once as root to install ${missing[*]}"
  say "installing Debian packages: ${missing[*]}"
  # The lab starts Docker and Open vSwitch itself, one per node: the packages must not start their services.
  export DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 RUNLEVEL=1
  # Wait for other installations, such as the upgrades that a new machine runs.
  local options=(-qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
  retry apt-get "${options[@]}" update || die "apt-get update failed: is a Debian mirror reachable? See /etc/apt"
  retry apt-get "${options[@]}" -y --no-install-recommends install "${missing[@]}" >/dev/null ||
    die "apt-get install failed: SIF needs the packages of Debian 12, and this is $(sed -nE 's/^PRETTY_NAME="(.*)"/\1/p' /etc/os-release)"
}

# require_room GIB WHAT DIRECTORY... exits with an error unless GIB are free on the file system of each directory,
# which need not exist yet.
require_room() {
  local want=$1 what=$2 place free
  shift 2
  for place in "$@"; do
    until [[ -e $place ]]; do place=$(dirname "$place"); done
    free=$(df --output=avail -BM "$place" | tr -dc '0-9\n' | tail -n 1)
    ((free >= want * 1024)) ||
      die "$what needs $want GiB of disk, $place has $free MiB free: free disk space (go clean -cache -modcache), or set TMPDIR, GOCACHE, GOMODCACHE and SIF_CACHE to directories with more"
  done
}

# fetch_modules downloads the Go modules of the repository's programs, tests and linters.
fetch_modules() {
  temporary=$(mktemp -d)
  if ! retry progress "downloading Go modules" "$temporary/log" timeout 900 \
    go list -C "$repo" -deps -test -tags e2e ./... ||
    ! retry progress "downloading the linters" "$temporary/log" timeout 900 \
      go list -C "$repo" -modfile=tools/lint/go.mod -deps tool ||
    ! retry progress "downloading the packager" "$temporary/log" timeout 900 \
      go list -C "$repo" -modfile=tools/nfpm/go.mod -deps tool ||
    ! retry progress "downloading the CNI project's plugins" "$temporary/log" timeout 900 \
      go list -C "$repo/tools/cni" -deps tool; then
    die "cannot download the Go modules from GOPROXY=$(go env GOPROXY)"
  fi
  rm -rf "$temporary"
  temporary=
}

# version_on_path NAME prints the version of program NAME on PATH, such as 1.20.6. It prints nothing if there is none.
version_on_path() {
  command -v "$1" >/dev/null || return 0
  "$1" version 2>/dev/null | sed -nE '1s/^[A-Za-z]+ v([0-9]+\.[0-9]+\.[0-9]+).*/\1/p'
}

# build NAME OUTPUT compiles a server.
build() {
  local name=$1 output=$2 began=$SECONDS
  [[ $name != nomad ]] || command -v gcc >/dev/null || die "nomad needs gcc to build"
  say "building $name from tools/$name: this happens once and takes 5 to 10 minutes on two cores"
  retry progress "downloading the modules of $name" "$output.log" timeout 900 \
    go list -C "$repo/tools/$name" -deps -tags "${tags[$name]}" "github.com/hashicorp/$name" ||
    die "cannot download the modules of $name from GOPROXY=$(go env GOPROXY)"
  progress "building $name" "$output.log" nice -n 5 go build -C "$repo/tools/$name" -tags "${tags[$name]}" -trimpath \
    -ldflags '-s -w' -o "$output" "github.com/hashicorp/$name" || die "building $name failed"
  rm -f "$output.log"
  say "built $name in $((SECONDS - began)) s"
}

# key NAME prints the name of the cache entry for the server that tools/NAME builds.
key() { printf '%s-%s' "$1" "$(cat "$repo/tools/$1/go.mod" "$repo/tools/$1/go.sum" | sha256sum | cut -c1-16)"; }

# built KEY prints the directory of a cached server. It prints nothing if there is none.
built() {
  local cache
  for cache in "${caches[@]}"; do
    [[ ! -x $cache/$1/${1%-*} ]] || { echo "$cache/$1" && return; }
  done
}

# writable_cache prints the first cache that is writable.
writable_cache() {
  local cache
  for cache in "${caches[@]}"; do
    if mkdir -p "$cache" 2>/dev/null && [[ -w $cache ]]; then
      echo "$cache" && return
    fi
  done
  die "no cache for the servers is writable: ${caches[*]}; set SIF_CACHE to a writable directory"
}

# fits NAME succeeds if the server on PATH has the required version.
fits() { [[ $(version_on_path "$1") == "${minor[$1]}".* ]]; }

# require_room_for_servers exits with an error unless there is disk space for all servers that must be built. It runs
# before the first build.
require_room_for_servers() {
  local name cache need=0
  for name in "${!minor[@]}"; do
    fits "$name" || [[ -n $(built "$(key "$name")") ]] || need=$((need + gib_per_server))
  done
  if ((need > 0)); then
    cache=$(writable_cache)
    require_room $((need + gib_at_all)) "building the servers" "$cache" "$(go env GOCACHE)" "$(go env GOMODCACHE)" "${TMPDIR:-/tmp}"
  fi
}

# server NAME finds or builds a server and links it into $links.
server() {
  local name=$1 key home cache
  if fits "$name"; then
    say "$name $(version_on_path "$name") is on PATH"
    ln -sfn "$(readlink -f "$(command -v "$name")")" "$links/$name"
    return
  fi
  key=$(key "$name")
  home=$(built "$key")
  if [[ -z $home ]]; then
    cache=$(writable_cache)
    home=$cache/$key
    # A build that outlived its script keeps the lock; its result is used when it ends.
    exec 9>"$cache/.lock"
    flock -n 9 || say "waiting for another build of the servers" && flock 9
    if [[ ! -x $home/$name ]]; then
      rm -rf "$cache/.building-$name".*
      temporary=$(mktemp -d "$cache/.building-$name.XXXXXX")
      build "$name" "$temporary/$name"
      chmod 755 "$temporary"
      rm -rf "$home"
      mv -T "$temporary" "$home"
      temporary=
    fi
    exec 9>&-
  fi
  say "$name is in $home"
  ln -sfn "$home/$name" "$links/$name"
}

command -v go >/dev/null || die "Go is not on PATH: install the version in go.mod (https://go.dev/dl)"
install_packages
[[ ! -e $repo/.git ]] || git -C "$repo" rev-parse --git-dir >/dev/null ||
  die "git cannot read $repo, and go build and make lint need it: see the error above"
require_room_for_servers
fetch_modules
mkdir -p "$links"
server consul
server vault
server nomad
