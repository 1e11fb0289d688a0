// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package agent is the policy agent of a workload node: it attaches workloads
// to the fabric, programs eBPF for each of them, requests their connectivity
// from the engines of its zone, and answers their DNS questions.
//
// It knows the endpoints of its node and, from the engines, their
// counterparts. It does not decide who may talk to whom: the controller admits
// and fabric applies the one rule to the signed revision.
//
// An endpoint begins with the CNI plugin's ADD (attach.go): an address is
// taken (address.go), the controller admits it (admit.go), the interface is
// made with the programs in place before it is up (interface.go), and its
// connectivity is requested (engines.go). What the kernel must hold follows
// from endpoints, counterparts and documents alone (policy.go) and is written
// by difference (program.go).
package agent
