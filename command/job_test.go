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

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/testhost"
)

// TestJobScripts runs the job commands against a real Nomad.
func TestJobScripts(t *testing.T) {
	testhost.RequireRoot(t) // Nomad's client
	address := startNomad(t, testhost.RequireProgram(t, "nomad"))
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script/nomad", RequireUniqueNames: true, RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("NOMAD_ADDR", address)
			return withController(env)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// startNomad runs a server and client of Nomad for the test.
func startNomad(t *testing.T, nomad string) (address string) {
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
	cmd := exec.Command(nomad, "agent", "-dev", "-config="+config)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Dir = t.TempDir()
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_") && !strings.HasPrefix(v, "NOMAD_") { // a CA bundle of AWS keeps Nomad from starting
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
