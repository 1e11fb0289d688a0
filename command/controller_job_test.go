// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/cli"
	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
)

// TestControllerAsNomadJob runs jobs/fabric on a real Nomad after sif setup -controller-job: the
// controller leads and admits a node, and there is no secret in the job.
func TestControllerAsNomadJob(t *testing.T) {
	const management = "8e3b2a61-2f6c-4b26-9d3c-0d1f6f2a7f10"
	vault, vaultClient := testhost.Vault(t)
	consul, _ := testhost.Consul(t, fmt.Sprintf("acl {\n  enabled = true\n  default_policy = \"deny\"\n  tokens {\n    initial_management = %q\n    agent = %q\n  }\n}", management, management))
	nomad, _ := testhost.Nomad(t, "acl {\n  enabled = true\n}")
	nomadClient, err := nomadapi.NewClient(&nomadapi.Config{Address: "http://" + nomad.Address, SecretID: management})
	must.NoError(t, err)
	eventually(t, func() error {
		_, _, err := nomadClient.ACLTokens().BootstrapOpts(management, nil)
		return err
	})
	for name, value := range map[string]string{
		"VAULT_ADDR": "http://" + vault.Address, "VAULT_TOKEN": vault.Token, "CONSUL_HTTP_ADDR": consul.Address, "CONSUL_HTTP_TOKEN": management,
		"NOMAD_ADDR": "http://" + nomad.Address, "NOMAD_TOKEN": management,
	} {
		t.Setenv(name, value)
	}
	ui := cli.NewMockUi()
	must.Eq(t, 0, run(ui, "setup", "-json", "-trust-domain=sif.test", "-controller-job=default/sif-controller/controller/controller"), must.Sprint(ui.ErrorWriter))

	// The job as it is, with what a cluster must say of itself.
	_, port, err := net.SplitHostPort(freeAddress(t))
	must.NoError(t, err)
	source, err := os.ReadFile("../jobs/fabric/controller.nomad.hcl")
	must.NoError(t, err)
	nodes, _, err := nomadClient.Nodes().List(nil)
	must.NoError(t, err)
	must.Len(t, 1, nodes)
	// Not root: the job's own user is that of the package. Nomad's data directory is a test's here.
	self, err := nomadClient.Agent().Self()
	must.NoError(t, err)
	for dir := self.Config["DataDir"].(string); dir != os.TempDir(); dir = filepath.Dir(dir) {
		must.NoError(t, os.Chmod(dir, 0o755))
	}
	nobody, err := user.Lookup("nobody")
	must.NoError(t, err)
	variables := map[string]string{
		"trust_domain": "sif.test", "node": nodes[0].Name, "port": port, "command": sifFor(t), "user": nobody.Username,
		"vault_address": "http://" + vault.Address, "consul_address": consul.Address, "nomad_address": "http://" + nomad.Address,
	}
	var assigned strings.Builder
	for name, value := range variables {
		fmt.Fprintf(&assigned, "%s = %q\n", name, value)
	}
	job, err := nomadClient.Jobs().ParseHCLOpts(&nomadapi.JobsParseRequest{JobHCL: string(source), Variables: assigned.String()})
	must.NoError(t, err)
	_, _, err = nomadClient.Jobs().Register(job, nil)
	must.NoError(t, err)
	logs := func() string { return logsOf(nomadClient, "sif-controller") }
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(logs())
		}
		stopJob(t, nomadClient, "sif-controller")
	})

	// It answers and leads.
	settings, err := setup.Stored(t.Context(), vaultClient, "sif-settings")
	must.NoError(t, err)
	ca, err := vaultClient.Logical().Read("sif-pki/cert/ca")
	must.NoError(t, err)
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	must.NoError(t, os.WriteFile(caFile, []byte(ca.Data["certificate"].(string)), 0o600))
	address := "127.0.0.1:" + port
	client, err := api.NewClient(api.Config{Address: address, Token: management, CACert: caFile})
	must.NoError(t, err)
	t.Cleanup(client.Close)
	eventually(t, func() error {
		health, err := client.Health(t.Context())
		if err == nil && !health.Leader {
			return errors.New("it does not lead")
		}
		return err
	})

	// It admits a node, which logs in to Consul by itself as well.
	grant := setuptest.Machine(t, vaultClient, settings, fabric.NodeID{Zone: "aws1", Name: "w1"}, join.Workload)
	dir := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(dir, "secret-id"), []byte(grant.SecretID), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "agent.hcl"), fmt.Appendf(nil, `
zone         = "aws1"
node         = "w1"
trust_domain = "sif.test"
data_dir     = "%[1]s/data"
run_dir      = "%[1]s/run"
underlay {
  address = "127.0.0.1"
}
consul {
  address     = %[2]q
  auth_method = "sif"
  token_role  = "sif-consul"
}
vault {
  address        = "http://%[3]s"
  role_id        = %[4]q
  secret_id_file = "%[1]s/secret-id"
}
controller {
  address = %[5]q
}
`, dir, consul.Address, vault.Address, grant.RoleID, address), 0o600))
	c, err := config.Load(filepath.Join(dir, "agent.hcl"), config.RoleAgent)
	must.NoError(t, err)
	node, err := daemon.Join(t.Context(), c, fabric.KindWorkload, hclog.NewNullLogger())
	must.NoError(t, err)
	must.Eq(t, "aws1/w1", node.Self.ID().String())
	must.True(t, node.Self.Pool4.IsValid())

	// What Nomad has of the job contains no secret.
	spec, _, err := nomadClient.Jobs().Info(*job.ID, nil)
	must.NoError(t, err)
	text, err := json.Marshal(spec)
	must.NoError(t, err)
	for _, secret := range []string{management, `"` + vault.Token + `"`, grant.SecretID, "secret_id", "CONSUL_", "VAULT_", "NOMAD_TOKEN"} {
		must.StrNotContains(t, string(text), secret)
	}

	// Another job of the same Nomad gets nothing, whatever it says.
	other := *job.ID + "-2"
	job.ID, job.Name = &other, &other
	job.TaskGroups[0].Networks[0].ReservedPorts[0].Value = freePort(t)
	_, _, err = nomadClient.Jobs().Register(job, nil)
	must.NoError(t, err)
	t.Cleanup(func() { stopJob(t, nomadClient, other) })
	eventually(t, func() error {
		if text := logsOf(nomadClient, other); !strings.Contains(text, "auth/sif-nomad/login") || !strings.Contains(text, "subject") {
			return fmt.Errorf("the other job's log: %s", text)
		}
		return nil
	})
}

// stopJob stops a job and waits until its tasks have ended.
func stopJob(t *testing.T, client *nomadapi.Client, job string) {
	t.Helper()
	_, _, err := client.Jobs().Deregister(job, false, nil)
	must.NoError(t, err)
	eventually(t, func() error {
		allocations, _, err := client.Jobs().Allocations(job, true, nil)
		for _, a := range allocations {
			if a.ClientStatus == nomadapi.AllocClientStatusRunning || a.ClientStatus == nomadapi.AllocClientStatusPending {
				err = fmt.Errorf("allocation %s of %s is %s", a.ID, job, a.ClientStatus)
			}
		}
		return err
	})
}

func freePort(t *testing.T) int {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", freeAddress(t))
	must.NoError(t, err)
	return a.Port
}

// sifFor returns the path to a copy of sif that every user may run.
func sifFor(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("sif")
	must.NoError(t, err)
	program, err := os.ReadFile(path)
	must.NoError(t, err)
	dir, err := os.MkdirTemp("", "sif-job-")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	must.NoError(t, os.Chmod(dir, 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "sif"), program, 0o755))
	return filepath.Join(dir, "sif")
}

// logsOf returns what the tasks of a job wrote to standard error, and what Nomad says of them.
func logsOf(client *nomadapi.Client, job string) string {
	var b strings.Builder
	allocations, _, err := client.Jobs().Allocations(job, true, nil)
	fmt.Fprintln(&b, err)
	for _, stub := range allocations {
		for name, state := range stub.TaskStates {
			for _, e := range state.Events {
				fmt.Fprintln(&b, name, e.Type, e.DisplayMessage)
			}
		}
		alloc, _, err := client.Allocations().Info(stub.ID, nil)
		if err != nil {
			continue
		}
		frames, errs := client.AllocFS().Logs(alloc, false, "controller", "stderr", "start", 0, nil, nil)
		for frames != nil {
			select {
			case f, open := <-frames:
				if !open {
					frames = nil
					break
				}
				b.Write(f.Data)
			case err := <-errs:
				fmt.Fprintln(&b, err)
				frames = nil
			}
		}
	}
	return b.String()
}
