// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package machine is what a machine has as a member of the fabric, outside the kernel: its
// configuration files and credential, its units, and the agents of Consul and Nomad on it. Joining
// makes it and leaving takes it away.
//
// It knows the forms of the files and the names of the units. It does not talk to Vault, and does
// not know what daemons do.
package machine
