// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package agent is the policy agent of a workload node: it attaches workloads to the fabric,
// programs eBPF for each of them, requests their connectivity from the engines of its zone, and
// answers their DNS questions.
//
// It knows the endpoints of its node and, from the engines, their counterparts; while no engine of
// the zone answers, from the agents of the zone (neighbours.go, meet.go). It does not decide
// who may talk to whom: the controller admits and fabric applies the one rule to the signed
// revision.
//
// An endpoint begins with the CNI plugin's ADD (attach.go), which goes through one hook for each
// concern (hook.go, *_hook.go): the interface with its programs, the addresses, the controller's
// admission, the record on disk, the connectivity that engines are asked for, the maps, the port
// mappings, the catalog. DEL goes through the same hooks. What the maps must contain is computed by
// fabric/desired, laid out in numbers and interface indexes (image.go), and written by difference
// (program.go).
package agent
