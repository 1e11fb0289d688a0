// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

// Names of policies in Consul, Vault and Nomad. From the first four, in Consul or Vault, the
// controller knows what the holder of a token may do; see docs/policy.md. Policies for single
// domains are created by the operator.
const (
	OperatorPolicy = "sif-operator" // everything
	ReadPolicy     = "sif-read"     // read every domain, the status and the history
	PlanPolicy     = "sif-plan"     // exists only for single domains: read one and plan changes of it
	ApplyPolicy    = "sif-apply"    // exists only for single domains: read one, plan and apply changes of it

	VerifyPolicy = "sif-verify" // for people and pipelines that verify signatures: read the public keys in Vault

	controllerPolicy = "sif-controller"
	nodePolicy       = "sif-node"
)

// DomainPolicy returns the name of ReadPolicy, PlanPolicy or ApplyPolicy for a single domain.
func DomainPolicy(policy, domain string) string { return policy + "-" + domain }
