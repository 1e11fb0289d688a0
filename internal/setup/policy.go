// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/wellknown"
)

// Names of policies are the prefix of the fabric and one of these.
const (
	operatorSuffix   = "operator"
	readSuffix       = "read"
	verifySuffix     = "verify"
	controllerSuffix = "controller"
	nodeSuffix       = "node"
	consulSuffix     = "consul"
	nomadSuffix      = "nomad"
)

// Names of policies in Consul, Vault and Nomad, with the default prefix. From the first four, in
// Consul or Vault, the controller knows what the holder of a token may do; see docs/policy.md.
// Policies for single domains are created by the operator.
const (
	OperatorPolicy = wellknown.Prefix + "-" + operatorSuffix // everything
	ReadPolicy     = wellknown.Prefix + "-" + readSuffix     // read every domain, the status and the history
	PlanPolicy     = "sif-plan"                              // exists only for single domains: read one and plan changes of it
	ApplyPolicy    = "sif-apply"                             // exists only for single domains: read one, plan and apply changes of it

	VerifyPolicy = wellknown.Prefix + "-" + verifySuffix // for people and pipelines that verify signatures: read the public keys in Vault
)

// DomainPolicy returns the name of ReadPolicy, PlanPolicy or ApplyPolicy for a single domain.
func DomainPolicy(policy, domain string) string { return policy + "-" + domain }

// named returns the name of a policy or role of a fabric.
func named(s join.Settings, suffix string) string { return s.Prefix + "-" + suffix }

// claimNames are what a machine's identity token says of it.
var claimNames = []string{metaZone, metaNode, metaController, metaMember}

// What a machine's identity token says of it, under "sif", and the metadata of its secret ID, from
// which that comes.
const (
	metaZone       = "zone"
	metaNode       = "node"
	metaController = "controller" // "true" if it runs a controller, else "false"
	metaMember     = "member"     // "true" if it is a processor or workload node, else "false"
)
