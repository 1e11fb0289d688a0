// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"context"
	"fmt"

	"github.com/hashicorp/nomad/api"
)

// nomadRules are the rules of the policies in Nomad.
var nomadRules = map[string]string{
	// For attestation: which allocation is on which node, from which version of which job.
	controllerPolicy: `
namespace "*" {
  capabilities = ["list-jobs", "read-job", "parse-job"]
}
node {
  policy = "read"
}
`,
	// For `sif job run`.
	OperatorPolicy: `
namespace "*" {
  policy       = "write"
  capabilities = ["alloc-exec", "alloc-lifecycle", "read-logs", "read-fs"]
}
node {
  policy = "read"
}
agent {
  policy = "read"
}
`,
}

// NomadResult contains the ACL tokens for the controller and the operator.
type NomadResult struct {
	Controller string // reads jobs, allocations and nodes
	Operator   string // submits jobs
}

// Nomad writes the ACL policies and issues the tokens. The client's token must be a management
// token.
func Nomad(ctx context.Context, client *api.Client, spec Spec) (*NomadResult, error) {
	spec, err := spec.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("set up Nomad: %w", err)
	}
	write := (&api.WriteOptions{}).WithContext(ctx)
	tokens := make(map[string]string)
	for name, rules := range nomadRules {
		policy := &api.ACLPolicy{Name: name, Description: "SIF", Rules: rules}
		if _, err := client.ACLPolicies().Upsert(policy, write); err != nil {
			return nil, fmt.Errorf("set up Nomad: write policy %s: %w", name, err)
		}
		token, _, err := client.ACLTokens().Create(&api.ACLToken{
			Name:     fmt.Sprintf("SIF %s: %s", spec.Fabric, name),
			Type:     "client",
			Policies: []string{name},
		}, write)
		if err != nil {
			return nil, fmt.Errorf("set up Nomad: create the token of %s: %w", name, err)
		}
		tokens[name] = token.SecretID
	}
	return &NomadResult{Controller: tokens[controllerPolicy], Operator: tokens[OperatorPolicy]}, nil
}
