// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package wellknown

// What internal/setup creates in Vault and the daemons use, unless the configuration names others.
const (
	JWTMount       = "sif-nomad"   // mount of the auth method for Nomad's workload identities
	PKIMount       = "sif-pki"     // mount of the fabric's CA
	TransitMount   = "sif-transit" // mount of the signing key
	TransitKey     = "sif"         // name of the signing key
	ControllerRole = "controller"  // PKI role of the controller's own certificate
)

// NodeRole returns the name of a node's PKI role, of its AppRole, and the suffix of its policy.
func NodeRole(zone, node string) string { return "node-" + zone + "-" + node }
