// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package bpf is the policy data path of a workload node: two eBPF programs at the host
// side of every endpoint's veth pair, the maps from which they decide, and their loader.
//
// It knows packets, addresses, interfaces and maps. Identities and contracts are numbers
// here that the caller chose and that mean nothing outside the node. The package must not
// know Consul, the fabric's model or any other package of ours.
//
// Programs and maps are pinned in a BPF filesystem, so what is enforced stays enforced when
// the process ends. What the maps hold is a cache of the declared state: every map can be
// dumped, compared and repaired.
//
// What it takes away takes effect on flows that exist: every call that removes or alters
// something raises the generation, and connections of an older generation are judged again
// by their next packet.
package bpf

//go:generate go tool bpf2go -target bpfel -cc clang -strip llvm-strip -type reason -type direction -type conn_flag -type conn_state -type config_flag -type event endpoint endpoint.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter
