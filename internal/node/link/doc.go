// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package link manages a node's encrypted links: WireGuard devices and their peers. A Kernel
// configures devices of the kernel. Where the kernel has none, a Server is the process `sif link`,
// which runs the devices in user space, so that a restart of the agent or the engine does not
// interrupt a tunnel; a Client is how the agent and the engine configure it.
//
// It knows devices, keys, peers, network namespaces and the routes to peers. It must not know
// zones, services, policy, Consul or Vault: its callers decide who is a peer, and for which
// addresses.
//
// The client uses two protocols. Key, listen port and peers go over the device's UAPI socket, <run
// dir>/<device>.sock, in WireGuard's cross-platform configuration protocol
// (https://www.wireguard.com/xplatform/). What that protocol does not cover (that the device
// exists, its namespace, its MTU, whether it has routes) goes over HTTP on <run dir>/link.sock.
// Private keys therefore never pass through the HTTP API.
//
// A device in user space has a persistent TUN interface, which stays with its routes when `sif
// link` ends, and drops packets until the next `sif link` takes it over. An alias says whose it is.
//
// Packets of a device can take another one for a while (Divert), which has another key.
//
// A device of the kernel keeps its UDP socket in the namespace in which it was made, whichever one
// it is moved into. So does a user-space device, whose socket is opened by the process.
package link
