// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
)

// A token that somebody got with a machine's credential ends within an hour of the credential,
// however often it is renewed; also if the name is made again.
func TestStolenTokenEnds(t *testing.T) {
	server, root := testhost.Vault(t)
	settings := setuptest.Settings("test", trustDomain)
	settings.Vault.Address = "http://" + server.Address
	setuptest.Vault(t, root, settings)
	machine := setup.Machine{ID: w1.NodeID, Kinds: []join.Kind{join.Workload}}
	first, err := setup.CreateNode(t.Context(), root, settings, machine)
	must.NoError(t, err)
	// As an earlier version wrote it.
	_, err = root.Logical().Write("auth/sif-approle/role/sif-node-aws1--w1", map[string]any{"token_period": 3600})
	must.NoError(t, err)
	thief := login(t, root, first)
	machine.Again = true
	_, err = setup.CreateNode(t.Context(), root, settings, machine)
	must.NoError(t, err)

	role, err := root.Logical().Read("auth/sif-approle/role/sif-node-aws1--w1")
	must.NoError(t, err)
	must.Eq(t, "0", fmt.Sprint(role.Data["token_period"]))
	renewed, err := thief.Auth().Token().RenewSelf(0)
	must.NoError(t, err)
	time.Sleep(2 * time.Second)
	again, err := thief.Auth().Token().RenewSelf(0)
	must.NoError(t, err)
	must.Less(t, renewed.Auth.LeaseDuration, again.Auth.LeaseDuration, must.Sprint("its end does not move"))
}
