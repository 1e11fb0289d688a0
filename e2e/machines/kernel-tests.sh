#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Runs, on a virtual machine, the tests that need the kernel's WireGuard and the kernel's datapath of Open vSwitch, and
# those of what the outside needs of a distribution's kernel: kernel-tests.sh [IMAGE]. A test whose requirement is
# missing there fails. It needs root and bin/sif-machine.
# With BENCH=1 it also measures two zones against plain routing; the figures are those of an emulated machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

image=${1:-debian12}
world=kernel$$
binaries=$(mktemp -d)
machine() { bin/sif-machine -world "$world" "$@"; }
clean_up() {
  machine down || true
  rm -rf "$binaries"
}
trap clean_up EXIT

packages=(./internal/node/link ./internal/node/daemon ./internal/node/firewall ./agent ./bpf ./engine/exit ./engine/ovs ./engine/port)
for package in "${packages[@]}"; do
  CGO_ENABLED=0 go test -c -o "$binaries/$(basename "$package").test" "$package"
done
machine up k1 -image="$image" -memory=2048
machine exec k1 -- mkdir -p /root/tests
machine cp "$binaries"/*.test k1:/root/tests/

# There the machine's own Open vSwitch would only be in the way.
machine exec k1 -- systemctl stop openvswitch-switch

failed=0
tests() {
  local binary=$1
  shift
  printf '\n== %s on %s\n' "$binary" "$image"
  machine exec k1 -- sh -c "cd /root/tests && exec env CI=true SIF_TEST_MACHINE=1 SIF_TEST_DATAPATH=system ./$binary.test -test.v -test.timeout 30m $*" || failed=1
}
tests link "-test.run 'Kernel|ChangeOfKind'"
tests daemon "-test.run 'TakenPorts|DeviceOfLinks'"
tests exit
tests agent "-test.run 'OutsideOfNode|TestGuest$|NamespaceOfAGuest|TapIs'"
tests bpf "-test.run Guest"
# Those with other firewalls need programs that a server does not have.
tests firewall "-test.run 'Egress|Exposed|Published|Rules|PortMappings|Tracked'"
tests port
# Those without a switch are the same everywhere, and slow in emulation.
tests ovs "-test.skip 'TestChangeIsNeverWider|TestDifference|TestDescribe|TestOwnFlows|TestAnyFlow|TestMasks'"
if [[ -n ${BENCH:-} ]]; then
  tests port "-test.run '^\$' -test.bench TwoZones -test.benchtime 30x"
fi
((failed == 0))
