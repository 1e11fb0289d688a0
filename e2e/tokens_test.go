// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"
)

// TestTokensDeletedInConsul deletes every token of the fabric's daemons in Consul, and those of the
// controller in Nomad. They log in again by themselves: a change of the graph arrives on every
// node, and workloads start.
func TestTokensDeletedInConsul(t *testing.T) {
	world.allWell(t, 30*time.Second)
	deleted := map[string]bool{}
	tokens, _, err := world.consul.ACL().TokenListFiltered(consul.ACLTokenFilterOptions{AuthMethod: "sif"}, nil)
	must.NoError(t, err)
	must.GreaterEq(t, len(world.status(t).Nodes)+1, len(tokens), must.Sprint("each daemon has logged in"))
	for _, token := range tokens {
		deleted[token.AccessorID] = true
		_, err := world.consul.ACL().TokenDelete(token.AccessorID, nil)
		must.NoError(t, err)
	}
	atNomad, _, err := world.nomad.ACLTokens().List(nil)
	must.NoError(t, err)
	count := 0
	for _, token := range atNomad {
		if token.ExpirationTime != nil { // the others are not of log-ins
			count++
			_, err := world.nomad.ACLTokens().Delete(token.AccessorID, nil)
			must.NoError(t, err)
		}
	}
	must.Positive(t, count, must.Sprint("the controller has logged in to Nomad"))

	began := time.Now()
	before := world.sequence(t)
	t.Cleanup(func() { must.Zero(t, world.sif(t, "graph", "apply", "-remove-domain=e2e-tokens").code) })
	sequence := world.apply(t, "domain \"e2e-tokens\" {\n  service \"none\" {\n    selector \"nomad\" {\n      job = \"no-such-job\"\n    }\n  }\n}\n")
	must.Greater(t, before, sequence)
	eventually(t, time.Minute, func() error {
		for _, n := range world.status(t).Nodes {
			if n.Sequence != sequence {
				return fmt.Errorf("%s has revision %d, not %d", n.ID(), n.Sequence, sequence)
			}
		}
		return nil
	})
	t.Logf("every node had the change after %.1f s", time.Since(began).Seconds())
	eventually(t, time.Minute, func() error {
		tokens, _, err := world.consul.ACL().TokenListFiltered(consul.ACLTokenFilterOptions{AuthMethod: "sif"}, nil)
		if err == nil && len(tokens) <= len(world.status(t).Nodes) {
			err = errors.New("not all daemons have logged in again")
		}
		return err
	})
	world.allWell(t, time.Minute)
}
