// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadself_test

import (
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/nomadself"
	"github.com/sif-project/sif/internal/testhost"
)

// A real Nomad client tells its own ID and directories, to whom its ACLs permit it.
func TestAsk(t *testing.T) {
	testhost.RequireRoot(t)
	const token = "2b778dd9-f5f1-6f29-b4b4-9a5fa948757a"
	plugins, networks := t.TempDir(), t.TempDir()
	server, _ := testhost.Nomad(t, `
acl {
  enabled = true
}
client {
  cni_path       = "`+plugins+`"
  cni_config_dir = "`+networks+`"
}`)
	client := func(token string) *nomadapi.Client {
		c, err := nomadapi.NewClient(&nomadapi.Config{Address: "http://" + server.Address, SecretID: token})
		must.NoError(t, err)
		return c
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, _, err := client(token).ACLTokens().BootstrapOpts(token, nil)
		if err == nil {
			break
		}
		must.True(t, time.Now().Before(deadline), must.Sprint(err))
	}
	_, err := nomadself.Ask(t.Context(), client(""))
	must.ErrorIs(t, err, nomadself.ErrHidden)
	_, err = nomadself.Ask(t.Context(), client("00000000-0000-4000-8000-000000000000"))
	must.ErrorIs(t, err, nomadself.ErrHidden)

	self, err := nomadself.Ask(t.Context(), client(token))
	must.NoError(t, err)
	must.Eq(t, plugins, self.CNIPath)
	must.Eq(t, networks, self.CNIConfigDir)
	must.StrContains(t, self.Version, ".")
	var nodes []*nomadapi.NodeListStub
	for deadline := time.Now().Add(30 * time.Second); len(nodes) == 0; time.Sleep(50 * time.Millisecond) {
		must.True(t, time.Now().Before(deadline), must.Sprint("the client has not registered"))
		nodes, _, err = client(token).Nodes().List(nil)
		must.NoError(t, err)
	}
	must.Len(t, 1, nodes)
	must.Eq(t, nodes[0].ID, self.NodeID)
}
