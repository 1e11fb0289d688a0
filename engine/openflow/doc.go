// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package openflow is the controller's side of OpenFlow 1.4 for one Open vSwitch bridge, over the
// bridge's management socket. It exists because a call of ovs-ofctl takes tens of milliseconds, and
// a workload waits while its endpoint is programmed.
//
// It knows the protocol: messages, matches, actions, bundles, flow dumps. It must not know what the
// flows mean: tables, registers and cookies are the caller's.
//
// Version 1.4 is the first with bundles and the last with flow statistics of a fixed form.
// Registers and connection tracking are the Nicira extensions that Open vSwitch documents in
// ovs-fields(7) and ovs-actions(7). The wire formats are those of the OpenFlow Switch Specification
// 1.4.0 and of Open vSwitch's include/openvswitch/nicira-ext.h and lib/ofp-actions.c.
package openflow
