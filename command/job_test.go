// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/cli"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/hcl"
	"github.com/sif-project/sif/internal/nomadjob"
	"github.com/sif-project/sif/internal/testhost"
)

// TestJobScripts runs the job commands against a real Nomad.
func TestJobScripts(t *testing.T) {
	address := startNomad(t)
	t.Setenv("NOMAD_ADDR", address)
	t.Run("rewritten", nomadUnderstands)
	t.Run("demo", demoJobsAreValid)
	c := startServers(t).startController(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script/nomad", RequireUniqueNames: true, RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv(withoutPause[0], withoutPause[1])
			env.Setenv("NOMAD_ADDR", address)
			c.setenv(env)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "consul-token": c.consulToken},
	})
}

// nomadUnderstands has Nomad parse the rewritten stanzas of all kinds of groups.
func nomadUnderstands(t *testing.T) {
	client, err := nomad.NewClient(nomad.DefaultConfig())
	must.NoError(t, err)
	for _, path := range glob(t, "../hcl/testdata/stanza/*.nomad.hcl") {
		data, err := os.ReadFile(path)
		must.NoError(t, err)
		spec, diags := hcl.ExtractConnectivity(hcl.Source{Name: path, Data: data})
		must.NoError(t, diags.Err())
		job, err := client.Jobs().ParseHCLOpts(&nomad.JobsParseRequest{JobHCL: string(spec.Plain), Variables: `image = "x"`})
		must.NoError(t, err)
		for _, g := range job.TaskGroups {
			s, ok := spec.Stanzas[*g.Name]
			if !ok {
				continue
			}
			must.Len(t, 1, g.Networks, must.Sprint(*g.Name))
			must.Eq(t, hcl.NetworkMode, g.Networks[0].Mode)
			must.Eq(t, s.Service, g.Meta[hcl.MetaService])
			must.Eq(t, strings.Join(s.Originate, ","), g.Meta[hcl.MetaOriginate])
			must.Eq(t, strings.Join(s.Respond, ","), g.Meta[hcl.MetaRespond])
			foreign, _ := nomadjob.ForeignResolver(g)
			must.Eq(t, "", foreign)
			if strings.Contains(path, "existing") && *g.Name != "all-roles" && !strings.HasPrefix(*g.Name, "resolvers") {
				must.Eq(t, "me", g.Meta["owner"], must.Sprint(*g.Name))
			}
		}
	}
}

// demoJobsAreValid validates the jobs of the demo applications.
func demoJobsAreValid(t *testing.T) {
	for _, path := range slices.Concat(glob(t, "../jobs/getaway/*.nomad.hcl"), glob(t, "../jobs/voting/*.nomad.hcl"),
		glob(t, "../jobs/voting/vm/*.nomad.hcl"), glob(t, "../jobs/mixed/*.nomad.hcl")) {
		ui := cli.NewMockUi()
		// No controller: package jobs checks the jobs against their graphs.
		must.Eq(t, 0, run(ui, "job validate", "-address=https://127.0.0.1:1", path), must.Sprint(path, ui.ErrorWriter.String()))
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	must.NoError(t, err)
	must.SliceNotEmpty(t, paths)
	return paths
}

// startNomad starts a Nomad server with a ready client, and returns its address.
func startNomad(t *testing.T) string {
	t.Helper()
	server, client := testhost.Nomad(t, "disable_update_check = true")
	eventually(t, func() error {
		nodes, _, err := client.Nodes().List(nil)
		if err == nil && !slices.ContainsFunc(nodes, func(n *nomad.NodeListStub) bool { return n.Status == nomad.NodeStatusReady }) {
			err = errors.New("no node is ready")
		}
		return err
	})
	return "http://" + server.Address
}
