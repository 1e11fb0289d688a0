// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package link makes a node's encrypted links: WireGuard devices and their
// peers. A Server is the process `sif link`, which holds the devices in user
// space so that a restart of agent or engine does not touch a tunnel; a Client
// is what agent and engine tell it their wishes with.
//
// It knows devices, keys, peers, network namespaces and the routes to peers.
// It must not know zones, services, policy, Consul or Vault: who is a peer,
// and for which addresses, is decided by its callers.
//
// Two protocols divide the work. What WireGuard's cross-platform configuration
// protocol (UAPI, https://www.wireguard.com/xplatform/) has words for, key,
// listen port and peers, goes over the device's UAPI socket,
// <run dir>/<device>.sock. What it has none for, that a device exists, in which
// namespace, with which MTU and with routes or without, goes over HTTP on
// <run dir>/link.sock. Private keys therefore never pass through the HTTP API.
//
// The kernel's own WireGuard is not used yet, also where there is one.
package link
