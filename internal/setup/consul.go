// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"context"
	"fmt"

	"github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
)

// consulRules are the rules of the policies in Consul. The controller reads ACLs because it needs
// to know which policies the roles of operators' tokens have.
var consulRules = map[string]string{
	controllerPolicy: `
key_prefix "sif/" {
  policy = "write"
}
session_prefix "" {
  policy = "write"
}
service_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}
agent_prefix "" {
  policy = "read"
}
acl = "read"
`,
	nodePolicy: `
key_prefix "` + kvkey.Root + `" {
  policy = "read"
}
service_prefix "" {
  policy = "read"
}
service_prefix "sif-" {
  policy = "write"
}
node_prefix "" {
  policy = "read"
}
agent_prefix "" {
  policy = "read"
}
`,
	OperatorPolicy: `
key_prefix "sif/" {
  policy = "read"
}
service_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}
agent_prefix "" {
  policy = "read"
}
`,
	ReadPolicy: "", // only its name matters
}

// ConsulResult contains the ACL tokens for daemons and the operator.
type ConsulResult struct {
	Controller string                   // writes the fabric's keys, reads the catalog and ACLs
	Operator   string                   // has OperatorPolicy
	Nodes      map[fabric.NodeID]string // read the fabric's keys and the catalog, register services named sif-*
}

// Consul writes the ACL policies and issues the tokens. The client's token needs acl = "write".
func Consul(ctx context.Context, client *api.Client, spec Spec) (*ConsulResult, error) {
	spec, err := spec.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("set up Consul: %w", err)
	}
	for name, rules := range consulRules {
		if err := consulPolicy(ctx, client, name, rules); err != nil {
			return nil, fmt.Errorf("set up Consul: %w", err)
		}
	}
	issue := func(holder, policy string) (string, error) {
		token, _, err := client.ACL().TokenCreate(&api.ACLToken{
			Description: fmt.Sprintf("SIF %s: %s", spec.Fabric, holder),
			Policies:    []*api.ACLTokenPolicyLink{{Name: policy}},
		}, (&api.WriteOptions{}).WithContext(ctx))
		if err != nil {
			return "", fmt.Errorf("set up Consul: create the token of %s: %w", holder, err)
		}
		return token.SecretID, nil
	}
	result := &ConsulResult{Nodes: map[fabric.NodeID]string{}}
	if result.Controller, err = issue("controller", controllerPolicy); err != nil {
		return nil, err
	}
	if result.Operator, err = issue("operator", OperatorPolicy); err != nil {
		return nil, err
	}
	for _, n := range spec.Nodes {
		if result.Nodes[n.NodeID], err = issue("node "+n.String(), nodePolicy); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// consulPolicy creates a policy, or updates the one that exists.
func consulPolicy(ctx context.Context, client *api.Client, name, rules string) error {
	query, write := (&api.QueryOptions{}).WithContext(ctx), (&api.WriteOptions{}).WithContext(ctx)
	policies, _, err := client.ACL().PolicyList(query)
	if err != nil {
		return fmt.Errorf("list policies: %w", err)
	}
	policy := &api.ACLPolicy{Name: name, Description: "SIF", Rules: rules}
	for _, p := range policies {
		if p.Name == name {
			policy.ID = p.ID
		}
	}
	if policy.ID != "" {
		_, _, err = client.ACL().PolicyUpdate(policy, write)
	} else {
		_, _, err = client.ACL().PolicyCreate(policy, write)
	}
	if err != nil {
		return fmt.Errorf("write policy %s: %w", name, err)
	}
	return nil
}
