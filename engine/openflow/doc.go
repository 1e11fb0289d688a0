// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package openflow is a small OpenFlow 1.4 controller side for one Open
// vSwitch bridge, spoken over the bridge's management socket. It exists
// because ovs-ofctl costs tens of milliseconds a call and an endpoint has to be
// programmed while its workload waits.
//
// It knows the protocol: messages, matches, actions, bundles, flow dumps. It
// must not know what the flows mean: tables, registers and cookies are the
// caller's.
//
// Version 1.4 is the first with bundles and the last with flow statistics of a
// fixed form. Registers and connection tracking are the Nicira extensions that
// Open vSwitch documents in ovs-fields(7) and ovs-actions(7); the wire formats
// are those of the OpenFlow Switch Specification 1.4.0 and of Open vSwitch's
// include/openvswitch/nicira-ext.h and lib/ofp-actions.c.
package openflow
