// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/cli"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/hcl"
	"github.com/sif-project/sif/internal/testhost"
)

// TestJobScripts runs the job commands against a real Nomad.
func TestJobScripts(t *testing.T) {
	testhost.RequireRoot(t) // Nomad's client
	address := startNomad(t, testhost.RequireServer(t, "nomad"))
	t.Setenv("NOMAD_ADDR", address)
	t.Run("rewritten", nomadUnderstands)
	t.Run("demo", demoJobsAreValid)
	c := startServers(t).startController(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script/nomad", RequireUniqueNames: true, RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("NOMAD_ADDR", address)
			c.setenv(env)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "consul-token": c.consulToken},
	})
}

// nomadUnderstands has Nomad parse what the stanzas of all sorts of groups are
// turned into.
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
			if strings.Contains(path, "existing") && *g.Name != "all-roles" {
				must.Eq(t, "me", g.Meta["owner"], must.Sprint(*g.Name))
			}
		}
	}
}

// demoJobsAreValid validates the jobs of the demo applications.
func demoJobsAreValid(t *testing.T) {
	for _, path := range glob(t, "../jobs/*/*.nomad.hcl") {
		ui := cli.NewMockUi()
		// The graphs and jobs are checked against each other in package jobs.
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

// startNomad runs a server and client of Nomad for the test.
func startNomad(t *testing.T, program string) (address string) {
	t.Helper()
	ports := freePorts(t, 3)
	config := filepath.Join(t.TempDir(), "nomad.hcl")
	must.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `
bind_addr            = "127.0.0.1"
disable_update_check = true
ports {
  http = %d
  rpc  = %d
  serf = %d
}
client {
  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
consul {
  auto_advertise   = false
  server_auto_join = false
  client_auto_join = false
}
`, ports[0], ports[1], ports[2]), 0o600))
	var log bytes.Buffer
	cmd := exec.Command(program, "agent", "-dev", "-config="+config)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Dir = t.TempDir()
	cmd.Env = []string{"TMPDIR=" + t.TempDir()} // where it keeps allocations and leaves their directories
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_") && !strings.HasPrefix(v, "NOMAD_") && !strings.HasPrefix(v, "TMPDIR=") { // a CA bundle of AWS keeps Nomad from starting
			cmd.Env = append(cmd.Env, v)
		}
	}
	must.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT) // in development mode it ends its allocations
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Nomad's log:\n%s", log.String())
		}
	})
	address = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if ready(address) {
			return address
		}
		if time.Now().After(deadline) {
			t.Fatal("Nomad has no ready node after 60 s")
		}
	}
}

func ready(address string) bool {
	resp, err := http.Get(address + "/v1/nodes?filter=" + "Status==ready")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	return err == nil && resp.StatusCode == http.StatusOK && strings.Contains(b.String(), `"ready"`)
}

func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must.NoError(t, err)
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}
