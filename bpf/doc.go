// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package bpf is the policy data path of a workload node: two eBPF programs at the host side of
// each endpoint's veth pair, the maps that they read and write, and their loader.
//
// A virtual machine has two more programs, in its endpoint's namespace, that join its tap interface
// with the endpoint's interface and drop what it forges (guest.c, guest.go).
//
// It knows packets, addresses, interfaces and maps. Identities and contracts are numbers that the
// caller chooses and that have no meaning outside the node. The package must not know Consul, the
// fabric's model or any other package of ours except internal/portrange.
//
// Programs and maps are pinned in a BPF filesystem, so enforcement continues when the process ends.
// The maps are a cache of the declared state: every map can be dumped, compared and repaired.
//
// Removals also affect established flows: every call that removes or changes an entry raises the
// generation, and a connection of an older generation is evaluated again at its next packet.
package bpf

//go:generate go tool bpf2go -target bpfel -cc clang -strip llvm-strip -type reason -type direction -type conn_flag -type conn_state -type config_flag -type endpoint_flag -type refusal -type record_flag -type event -type record endpoint endpoint.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter
//go:generate go tool bpf2go -target bpfel -cc clang -strip llvm-strip -type guest_verdict guest guest.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter
