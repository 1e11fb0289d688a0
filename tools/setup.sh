#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Makes a Debian machine ready to build SIF and to run its lab: Debian packages, Go modules, and Consul, Vault and
# Nomad. All that comes over the network comes here, where it is tried again when it fails.
# Ends with links to the three servers in $1 (default: bin/servers in the repository).
# It can be interrupted and run again at any time, also twice at once: a server is built to a temporary name,
# under a lock, and renamed.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
links=${1:-$repo/bin/servers}
# Where servers are looked for; they are built in the first place that can be written.
caches=("${SIF_CACHE:-/var/cache/sif}/servers")
home=~ # also when HOME is not set
[[ -n ${SIF_CACHE:-} ]] || caches+=("${XDG_CACHE_HOME:-$home/.cache}/sif/servers")

packages=(
  bpftool busybox-static ca-certificates clang clang-format conntrack curl docker.io ethtool gcc git iproute2 iputils-ping jq
  libbpf-dev libc6-dev llvm make nftables openvswitch-switch procps shellcheck tcpdump util-linux wireguard-tools
)

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

# The servers: which version line of each, and with which build tags. Without "release" nomad registers a mock driver.
declare -A minor=([consul]=1.20 [vault]=1.21 [nomad]=1.10)
declare -A tags=([consul]='' [vault]=minimal [nomad]=release)

# What building servers takes of disk in GiB: modules, Go's build cache and what the linker writes. Vault alone peaked
# at 6.9, all three took 10 before they were linked.
gib_at_all=5 gib_per_server=3

# retry COMMAND... runs a command up to three times: the network may spoil it.
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

# progress WHAT LOG COMMAND... runs a command with its output in LOG and says every 15 s that it is still at it.
# When the command fails, the end of its output is printed.
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

# What EXIT takes away: the command that runs, and files half made.
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
  [[ $EUID -eq 0 ]] || die "these Debian packages are missing, run this as root once: ${missing[*]}"
  say "installing Debian packages: ${missing[*]}"
  # The lab starts Docker and Open vSwitch itself, one per node: keep the packages from starting theirs.
  export DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 RUNLEVEL=1
  # Another installation, such as the machine's own upgrade at its start, is waited for.
  local options=(-qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
  retry apt-get "${options[@]}" update || die "apt-get update failed: is a Debian mirror reachable? See /etc/apt"
  retry apt-get "${options[@]}" -y --no-install-recommends install "${missing[@]}" >/dev/null ||
    die "apt-get install failed; the packages are those of Debian 12, this is $(sed -nE 's/^PRETTY_NAME="(.*)"/\1/p' /etc/os-release)"
}

# require_room GIB WHAT DIRECTORY... dies unless GIB are free wherever the directories are, or will be.
require_room() {
  local want=$1 what=$2 place free
  shift 2
  for place in "$@"; do
    until [[ -e $place ]]; do place=$(dirname "$place"); done
    free=$(df --output=avail -BM "$place" | tr -dc '0-9\n' | tail -n 1)
    ((free >= want * 1024)) ||
      die "$what needs $want GiB of disk, $place has $free MiB free: make room (go clean -cache -modcache), or set TMPDIR, GOCACHE, GOMODCACHE and SIF_CACHE to other places"
  done
}

# fetch_modules fetches what the repository's own programs, tests and linters are made of.
fetch_modules() {
  temporary=$(mktemp -d)
  if ! retry progress "fetching Go modules" "$temporary/log" timeout 900 \
    go list -C "$repo" -deps -test -tags e2e ./... ||
    ! retry progress "fetching the linters" "$temporary/log" timeout 900 \
      go list -C "$repo" -modfile=tools/lint/go.mod -deps tool; then
    die "the Go modules cannot be fetched from GOPROXY=$(go env GOPROXY)"
  fi
  rm -rf "$temporary"
  temporary=
}

# version_on_path NAME prints the version of the NAME on PATH, such as 1.20.6, or nothing.
version_on_path() {
  command -v "$1" >/dev/null || return 0
  "$1" version 2>/dev/null | sed -nE '1s/^[A-Za-z]+ v([0-9]+\.[0-9]+\.[0-9]+).*/\1/p'
}

# build NAME OUTPUT compiles a server.
build() {
  local name=$1 output=$2 began=$SECONDS
  [[ $name != nomad ]] || command -v gcc >/dev/null || die "nomad needs gcc to build"
  say "building $name from tools/$name: once, takes 5 to 10 minutes on two cores"
  retry progress "fetching the modules of $name" "$output.log" timeout 900 \
    go list -C "$repo/tools/$name" -deps -tags "${tags[$name]}" "github.com/hashicorp/$name" ||
    die "the modules of $name cannot be fetched from GOPROXY=$(go env GOPROXY)"
  progress "building $name" "$output.log" nice -n 5 go build -C "$repo/tools/$name" -tags "${tags[$name]}" -trimpath \
    -ldflags '-s -w' -o "$output" "github.com/hashicorp/$name" || die "building $name failed"
  rm -f "$output.log"
  say "built $name in $((SECONDS - began)) s"
}

# key NAME names the server that tools/NAME makes, the same on every machine.
key() { printf '%s-%s' "$1" "$(cat "$repo/tools/$1/go.mod" "$repo/tools/$1/go.sum" | sha256sum | cut -c1-16)"; }

# built KEY prints the directory of a server that was built before, if there is one.
built() {
  local cache
  for cache in "${caches[@]}"; do
    [[ ! -x $cache/$1/${1%-*} ]] || { echo "$cache/$1" && return; }
  done
}

# writable_cache prints the first of the caches that can be written.
writable_cache() {
  local cache
  for cache in "${caches[@]}"; do
    if mkdir -p "$cache" 2>/dev/null && [[ -w $cache ]]; then
      echo "$cache" && return
    fi
  done
  die "none of these can be written to keep the servers in: ${caches[*]}; set SIF_CACHE to a directory that can"
}

# fits NAME tells whether the server on PATH is of the version line that is needed.
fits() { [[ $(version_on_path "$1") == "${minor[$1]}".* ]]; }

# require_room_for_servers dies unless all servers that have to be built find room, before the first is.
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

# server NAME finds or builds one server and links it into $links.
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
    # A build that outlived its script holds the lock too: then its result is waited for.
    exec 9>"$cache/.lock"
    flock -n 9 || say "waiting for another build of the servers to end" && flock 9
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

command -v go >/dev/null || die "Go is not on PATH: install the version that go.mod names (https://go.dev/dl)"
install_packages
[[ ! -e $repo/.git ]] || git -C "$repo" rev-parse --git-dir >/dev/null ||
  die "git, which go build and make lint ask, refuses $repo: see above"
require_room_for_servers
fetch_modules
mkdir -p "$links"
server consul
server vault
server nomad
