// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
)

// withoutPause is the environment of commands that the tests start: one with the race detector does
// not sleep for a second before it ends.
var withoutPause = [2]string{"GORACE", "atexit_sleep_ms=0"}

func TestMain(m *testing.M) {
	_ = os.Setenv(withoutPause[0], withoutPause[1]) // for those started without testscript
	testscript.Main(m, map[string]func(){"sif": func() { os.Exit(Run(os.Args[1:])) }, "take-notes": takeNotes})
}

// TestScripts runs the scripts that need no controller.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", RequireUniqueNames: true, RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error { env.Setenv(withoutPause[0], withoutPause[1]); return nil },
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// TestControllerScripts runs each script against a controller without a graph.
func TestControllerScripts(t *testing.T) {
	s := startServers(t)
	for _, path := range glob(t, "testdata/script/controller/*.txtar") {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			c := s.startController(t)
			testscript.Run(t, testscript.Params{
				Files: []string{path}, RequireUniqueNames: true, RequireExplicitExec: true,
				Setup: func(env *testscript.Env) error { c.setenv(env); return nil },
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"exits": exits, "consul-token": s.consulToken, "vault-login": s.vaultLogin, "cut-audit": s.cutAudit,
				},
			})
		})
	}
}

// cutAudit takes the end of each audit log out of Consul: "cut-audit".
func (s *servers) cutAudit(ts *testscript.TestScript, _ bool, _ []string) {
	list, _, err := s.consul.KV().List(kvkey.Audit, nil)
	ts.Check(err)
	for _, kv := range list {
		if _, _, err := kvkey.ParseAuditSegment(kv.Key); err == nil {
			_, err := s.consul.KV().Delete(kv.Key, nil)
			ts.Check(err)
		}
	}
}

// exits runs a program and checks its exit code: "exits 2 sif job run x".
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code program [args...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if exit, ok := err.(interface{ ExitCode() int }); ok {
		code = strconv.Itoa(exit.ExitCode())
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, not %s", code, args[0])
	}
}

// servers are a Consul and a Vault, set up for a fabric.
type servers struct {
	consulAddress, vaultAddress string
	consul                      *consulapi.Client
	vault                       *vaultapi.Client
	tokens                      *setuptest.ConsulTokens
	secrets                     *setuptest.Credentials
	dir, ca                     string
}

func startServers(t *testing.T) *servers {
	t.Helper()
	const management = "8e3b2a61-2f6c-4b26-9d3c-0d1f6f2a7f10"
	consul, _ := testhost.Consul(t, fmt.Sprintf(`
acl {
  enabled        = true
  default_policy = "deny"
  tokens {
    initial_management = %q
    agent              = %q
  }
}`, management, management))
	vault, vaultClient := testhost.Vault(t)
	s := &servers{consulAddress: consul.Address, vaultAddress: "http://" + vault.Address, vault: vaultClient, dir: t.TempDir()}
	var err error
	s.consul, err = consulapi.NewClient(&consulapi.Config{Address: consul.Address, Token: management})
	must.NoError(t, err)
	settings := setuptest.Settings("test", "sif.test")
	s.tokens = setuptest.Consul(t, s.consul, settings)
	s.secrets = setuptest.Vault(t, s.vault, settings)
	setuptest.LogIns(t, setup.Clients{Vault: s.vault, Consul: s.consul}, settings, s.vaultAddress)
	must.NoError(t, s.vault.Sys().EnableAuthWithOptions("userpass", &vaultapi.EnableAuthOptions{Type: "userpass"}))
	s.ca = filepath.Join(s.dir, "ca.pem")
	must.NoError(t, os.WriteFile(s.ca, []byte(s.secrets.CA), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(s.dir, "secret-id"), []byte(s.secrets.Controller.SecretID), 0o600))
	return s
}

// consulToken creates a Consul token with policies: "consul-token VARIABLE policy...".
func (s *servers) consulToken(ts *testscript.TestScript, _ bool, args []string) {
	token := &consulapi.ACLToken{Description: args[0]}
	for _, name := range args[1:] {
		_, _, err := s.consul.ACL().PolicyCreate(&consulapi.ACLPolicy{Name: name}, nil)
		if err != nil && !strings.Contains(err.Error(), "already exists") {
			ts.Fatalf("%v", err)
		}
		token.Policies = append(token.Policies, &consulapi.ACLTokenPolicyLink{Name: name})
	}
	made, _, err := s.consul.ACL().TokenCreate(token, nil)
	ts.Check(err)
	ts.Setenv(args[0], made.SecretID)
}

// vaultLogin logs a user in whose entity has policies: "vault-login VARIABLE user policy...".
func (s *servers) vaultLogin(ts *testscript.TestScript, _ bool, args []string) {
	write := func(path string, data map[string]any) *vaultapi.Secret {
		secret, err := s.vault.Logical().Write(path, data)
		ts.Check(err)
		return secret
	}
	password := map[string]any{"password": "x"}
	write("auth/userpass/users/"+args[1], password)
	login := write("auth/userpass/login/"+args[1], password)
	write("identity/entity/id/"+login.Auth.EntityID, map[string]any{"policies": args[2:]})
	ts.Setenv(args[0], login.Auth.ClientToken)
}

// controllerProcess is a running `sif controller`.
type controllerProcess struct {
	*servers
	address string
	dataDir string
	config  string
	process *os.Process
}

// freeAddress returns an address on which a server can listen.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// startController starts a controller without a graph, and waits until it is the leader.
func (s *servers) startController(t *testing.T) *controllerProcess {
	t.Helper()
	_, err := s.consul.KV().DeleteTree("sif/", nil)
	must.NoError(t, err)
	dir := t.TempDir()
	c := &controllerProcess{
		servers: s, address: freeAddress(t),
		dataDir: filepath.Join(dir, "data"), config: filepath.Join(dir, "controller.hcl"),
	}
	must.NoError(t, os.WriteFile(c.config, fmt.Appendf(nil, `
fabric       = "test"
trust_domain = "sif.test"
data_dir     = %q
listen       = %q
consul {
  address     = %q
  auth_method = "sif"
  token_role  = "sif-consul"
}
vault {
  address        = %q
  role_id        = %q
  secret_id_file = %q
}
`, c.dataDir, c.address, s.consulAddress, s.vaultAddress, s.secrets.Controller.RoleID, filepath.Join(s.dir, "secret-id")), 0o600))
	var log bytes.Buffer
	cmd := exec.Command("sif", "controller", "-config="+c.config)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "CONSUL_") || strings.HasPrefix(v, "VAULT_") || strings.HasPrefix(v, "NOMAD_")
	})
	must.NoError(t, cmd.Start())
	c.process = cmd.Process
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		err := cmd.Wait()
		if err != nil {
			t.Errorf("sif controller: %v", err)
		}
		if t.Failed() {
			t.Logf("The controller's log:\n%s", log.String())
		}
	})
	client := c.client(t)
	eventually(t, func() error {
		_, err := client.Health(t.Context())
		return err
	})
	return c
}

func (c *controllerProcess) client(t *testing.T) *api.Client {
	t.Helper()
	client, err := api.NewClient(api.Config{Address: c.address, Token: c.tokens.Operator, CACert: c.ca})
	must.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// setenv sets the environment of a script for the controller.
func (c *controllerProcess) setenv(env *testscript.Env) {
	env.Setenv(withoutPause[0], withoutPause[1])
	env.Setenv(api.EnvAddress, "https://"+c.address)
	env.Setenv(api.EnvCACert, c.ca)
	env.Setenv(api.EnvToken, c.tokens.Operator)
	env.Setenv("CONTROLLER", c.address)
	env.Setenv("VAULT", c.vaultAddress)
	env.Setenv("VAULT_ROOT", c.vault.Token())
}

// eventually waits until try succeeds.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestControllerHangup sends SIGHUP, as logrotate does.
func TestControllerHangup(t *testing.T) {
	c := startServers(t).startController(t)
	client, path := c.client(t), filepath.Join(c.dataDir, "audit.log")
	recorded := func() int {
		_, err := client.DeleteDomain(context.Background(), "nothing") // refused, and written to the audit log
		must.True(t, api.IsCode(err, api.CodeNotFound), must.Sprint(err))
		data, err := os.ReadFile(path)
		if err != nil {
			return 0
		}
		return bytes.Count(data, []byte(`"refused":`))
	}
	must.Eq(t, 1, recorded())
	// The audit log is reopened even if the configuration is not valid.
	must.NoError(t, os.WriteFile(c.config, []byte("{"), 0o600))
	must.NoError(t, os.Rename(path, path+".1"))
	must.Eq(t, 0, recorded())
	must.NoError(t, c.process.Signal(syscall.SIGHUP))
	eventually(t, func() error {
		_, err := os.Stat(path)
		return err
	})
	must.Eq(t, 1, recorded())
}
