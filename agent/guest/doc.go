// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package guest answers what a virtual machine asks the node on its tap interface: DHCPv4, DHCPv6
// and router solicitations. So a guest needs no preparation. It answers for just one guest, with
// just its endpoint's addresses; questions for Ethernet addresses are answered by the eBPF programs
// at the interface (package bpf), also while no Responder runs.
//
// The package knows frames, packets and one packet socket. It does not know endpoints or policy.
package guest
