// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package wellknown

// What sif setup creates in Vault and the daemons use, unless the configuration names others.
const (
	JWTMount       = "sif-nomad"    // mount of the auth method for Nomad's workload identities
	PKIMount       = "sif-pki"      // mount of the fabric's CA
	TransitMount   = "sif-transit"  // mount of the signing key
	TransitKey     = "sif"          // name of the signing key
	AppRoleMount   = "sif-approle"  // mount of the auth method of the fabric's machines
	SettingsMount  = "sif-settings" // mount of the fabric's settings
	Prefix         = "sif"          // of the names of policies, roles and auth methods
	ControllerRole = "controller"   // PKI role of the controller's own certificate
)

// JWTKey returns the name of the transit key that signs JWT-SVIDs, by that of the fabric's signing
// key.
func JWTKey(transitKey string) string { return transitKey + "-jwt" }

// NodeRole returns the name of a node's PKI role and the suffix of its AppRole's name. Names
// contain no "--" (fabric.CheckName), so no two nodes share one.
func NodeRole(zone, node string) string { return NodeRolePrefix + zone + "--" + node }

// NodeRolePrefix begins the names of nodes' PKI roles.
const NodeRolePrefix = "node-"
