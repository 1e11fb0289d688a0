// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/cli"
	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity"
)

// joining is a Vault that is set up for a fabric, and a Consul without ACLs.
type joining struct {
	vault, consul string
	root          *vaultapi.Client
	settings      join.Settings
	nodes         map[fabric.NodeID]join.Grant
}

// newJoining creates nodes in a Vault that is set up.
func newJoining(t *testing.T, vault string, root *vaultapi.Client, consul string, nodes ...setuptest.Node) *joining {
	j := &joining{vault: vault, root: root, consul: consul, settings: setuptest.Settings("test", "sif.test"), nodes: map[fabric.NodeID]join.Grant{}}
	j.settings.Vault.Address = vault
	j.settings.Consul.AuthMethod, j.settings.Consul.TokenRole = "", ""
	for _, n := range nodes {
		j.nodes[n.NodeID] = setuptest.Machine(t, root, j.settings, n.NodeID, join.Kind(n.Kind))
	}
	return j
}

func startJoining(t *testing.T) *joining {
	vault, root := testhost.Vault(t)
	consul, _ := testhost.Consul(t)
	setuptest.Vault(t, root, setuptest.Settings("test", "sif.test"))
	return newJoining(t, "http://"+vault.Address, root, "http://"+consul.Address, workloadNode("w1"), workloadNode("w2"))
}

func workloadNode(name string) setuptest.Node {
	return setuptest.Node{NodeID: fabric.NodeID{Zone: "aws1", Name: name}, Kind: fabric.KindWorkload}
}

// token returns a join token of a node, as sif node create makes it.
func (j *joining) token(t *testing.T, name string, change func(*join.Grant)) string {
	t.Helper()
	g := j.nodes[fabric.NodeID{Zone: "aws1", Name: name}]
	g.Controllers = []string{"127.0.0.1:8440"}
	if change != nil {
		change(&g)
	}
	token, err := setup.Wrap(t.Context(), j.root, g, 5*time.Minute)
	must.NoError(t, err)
	return token.String()
}

// call runs sif node join for the machine whose directories are in dir.
func (j *joining) call(dir string, args ...string) (code int, stdout, stderr string) {
	ui := cli.NewMockUi()
	args = append([]string{
		"-no-start", "-consul-address=" + j.consul, "-underlay-address=127.0.0.1",
		"-config-dir=" + filepath.Join(dir, "etc"), "-data-dir=" + filepath.Join(dir, "var"), "-run-dir=" + filepath.Join(dir, "run"), "-bpf-dir=" + filepath.Join(dir, "bpf"),
		"-cni-plugin-dir=" + filepath.Join(dir, "cni-bin"), "-cni-config-dir=" + filepath.Join(dir, "cni-conf"), "-nomad-address=http://127.0.0.1:1",
	}, args...)
	code = newRunner(ui, "node join", &NodeJoinCommand{}).Run(args)
	return code, ui.OutputWriter.String(), ui.ErrorWriter.String()
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	entries, err := os.ReadDir(filepath.Join(dir, "etc"))
	if os.IsNotExist(err) {
		return all
	}
	must.NoError(t, err)
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, "etc", e.Name()))
		must.NoError(t, err)
		all[e.Name()] = string(text)
	}
	return all
}

func TestNodeJoin(t *testing.T) {
	j := startJoining(t)
	t.Setenv("NOMAD_TOKEN", "")
	refused := func(dir, text string, args ...string) {
		t.Helper()
		before := files(t, dir)
		code, stdout, stderr := j.call(dir, args...)
		must.Eq(t, 1, code, must.Sprint(stdout, stderr))
		must.StrContains(t, stderr, text)
		must.Eq(t, before, files(t, dir), must.Sprint("a refused join changed the machine"))
	}
	dir := t.TempDir()
	first := j.token(t, "w1", nil)
	refused(dir, "there is nothing to resume", "-resume")
	refused(dir, "takes one argument: the join token, or -, or the token in SIF_JOIN_TOKEN")
	refused(dir, "it does not begin with", "hvs.x")
	refused(dir, "the join token is damaged", first[:len(first)-9])
	refused(dir, "-resume takes no token", "-resume", first)
	refused(dir, "no interface of this machine has the address 192.0.2.9", "-underlay-address=192.0.2.9", first)

	code, stdout, stderr := j.call(dir, first)
	must.Eq(t, 0, code, must.Sprint(stdout, stderr))
	for _, text := range []string{"this machine is aws1/w1 of fabric test", "127.0.0.1 on lo", "sif link -run-dir=" + dir, "sif agent -config=" + dir, "systemctl reload nomad", "sif node status aws1/w1"} {
		must.StrContains(t, stdout, text)
	}
	have := files(t, dir)
	must.Eq(t, j.nodes[fabric.NodeID{Zone: "aws1", Name: "w1"}].SecretID+"\n", have["vault-secret-id"])
	info, err := os.Stat(filepath.Join(dir, "etc", "vault-secret-id"))
	must.NoError(t, err)
	must.Eq(t, 0o600, info.Mode().Perm())
	for name, text := range have {
		if name != "vault-secret-id" {
			must.StrNotContains(t, text, strings.TrimSpace(have["vault-secret-id"]), must.Sprint(name))
		}
	}

	// The daemon gets its identity by what was written.
	c, err := config.Load(filepath.Join(dir, "etc", "agent.hcl"), config.RoleAgent)
	must.NoError(t, err)
	must.Eq(t, "aws1/w1", c.NodeID().String())
	must.Eq(t, filepath.Join(dir, "cni-conf"), c.CNI.ConfigDir)
	must.Eq(t, j.consul, c.Consul.Address)
	conf := c.Identity()
	conf.DataDir = t.TempDir()
	source, err := identity.Open(t.Context(), conf, hclog.NewNullLogger())
	must.NoError(t, err)
	must.NotNil(t, source.Certificate())

	// Again: the same token, no token, and what was said the first time is still said.
	for _, args := range [][]string{{first}, {"-resume"}} {
		code, stdout, stderr = j.call(dir, args...)
		must.Eq(t, 0, code, must.Sprint(stdout, stderr))
		must.StrContains(t, stdout, "going on with its credential")
		must.Eq(t, have["agent.hcl"], files(t, dir)["agent.hcl"])
	}

	// On another machine the token is used up.
	other := t.TempDir()
	refused(other, "somebody else may have: make a new one with sif node create -again", first)

	// The token of another node or fabric is not used up by a machine that has joined.
	second := j.token(t, "w2", nil)
	foreign := j.token(t, "w1", func(g *join.Grant) { g.Settings.Fabric = "foreign" })
	refused(dir, "this machine is node aws1/w1 of fabric test already, so the token was not used", second)
	refused(dir, "this machine is node aws1/w1 of fabric test already, so the token was not used", foreign)
	t.Setenv(tokenVariable, second)
	code, stdout, stderr = j.call(other, "-json")
	must.Eq(t, 0, code, must.Sprint(stdout, stderr))
	var reply joinReply
	must.NoError(t, json.Unmarshal([]byte(stdout), &reply))
	must.Eq(t, "aws1/w2", reply.Node)
	must.Eq(t, []string{"workload"}, reply.Kinds)
	must.Greater(t, 3, len(reply.Steps))
	t.Setenv(tokenVariable, "")

	// A join that is interrupted after the token was used goes on without it.
	half := t.TempDir()
	code, _, stderr = j.call(half, "-consul-address=http://127.0.0.1:1", foreign)
	must.Eq(t, 1, code)
	must.StrContains(t, stderr, "find the Consul agent of this machine")
	must.StrContains(t, stderr, "go on with: sif node join -resume")
	must.MapNotContainsKey(t, files(t, half), "agent.hcl")
	code, stdout, stderr = j.call(half, "-resume")
	must.Eq(t, 0, code, must.Sprint(stdout, stderr))
	must.MapContainsKey(t, files(t, half), "agent.hcl")

	// The credential was ended: the machine says so, and a new token of the same node heals it.
	path := "auth/sif-approle/role/sif-node-aws1--w1"
	secret, err := j.root.Logical().Write(path+"/secret-id/destroy", map[string]any{"secret_id": strings.TrimSpace(have["vault-secret-id"])})
	must.NoError(t, err)
	must.Nil(t, secret)
	refused(dir, "Vault refuses the credential of this machine", "-resume")
	wrong := j.token(t, "w2", nil)
	refused(dir, "the token is of node aws1/w2 of fabric test, but this machine is node aws1/w1 of fabric test", wrong)
	id := fabric.NodeID{Zone: "aws1", Name: "w1"}
	j.nodes[id] = setuptest.Machine(t, j.root, j.settings, id, join.Workload)
	again := j.token(t, "w1", nil)
	code, stdout, stderr = j.call(dir, again)
	must.Eq(t, 0, code, must.Sprint(stdout, stderr))
}

// A Nomad client tells where CNI plugins go, and which node it is. With ACLs it needs a token.
func TestNodeJoinFindsNomad(t *testing.T) {
	testhost.RequireRoot(t)
	j := startJoining(t)
	plugins, networks := t.TempDir(), t.TempDir()
	server, client := testhost.Nomad(t, `
name = "IP-10-0-0-1.eu-central-1.Compute.Internal"
client {
  cni_path       = "`+plugins+`"
  cni_config_dir = "`+networks+`"
}`)
	t.Setenv("NOMAD_ADDR", "http://"+server.Address)
	var nodes []*nomadapi.NodeListStub
	eventually(t, func() (err error) {
		if nodes, _, err = client.Nodes().List(nil); err == nil && len(nodes) != 1 {
			err = errors.New("the Nomad client has not registered yet")
		}
		return err
	})
	found := []string{"-nomad-address=", "-cni-plugin-dir=", "-cni-config-dir="}
	dir := t.TempDir()
	code, _, stderr := j.call(dir, append(found, j.token(t, "w1", func(g *join.Grant) { g.NomadNode = "5a1a5e11-0000-4000-8000-000000000000" }))...)
	must.Eq(t, 1, code)
	must.StrContains(t, stderr, "but the join token is for Nomad node 5a1a5e11-0000-4000-8000-000000000000")

	dir = t.TempDir()
	code, stdout, stderr := j.call(dir, append(found, j.token(t, "w1", func(g *join.Grant) { g.NomadNode = nodes[0].ID }))...)
	must.Eq(t, 0, code, must.Sprint(stdout, stderr))
	c, err := config.Load(filepath.Join(dir, "etc", "agent.hcl"), config.RoleAgent)
	must.NoError(t, err)
	must.Eq(t, plugins, c.CNI.PluginDir)
	must.Eq(t, networks, c.CNI.ConfigDir)
	must.Eq(t, "http://"+server.Address, c.Nomad.Address)
	must.StrContains(t, stdout, nodes[0].ID)
}

// A removal that fails halfway says what it did.
func TestNodeRemoveSaysWhatItDid(t *testing.T) {
	j := startJoining(t)
	t.Setenv(vaultapi.EnvVaultAddress, j.vault)
	t.Setenv(vaultapi.EnvVaultToken, j.root.Token())
	ui := cli.NewMockUi()
	must.Eq(t, 1, newRunner(ui, "node remove", &NodeRemoveCommand{}).Run([]string{"-auto-approve", "-address=https://127.0.0.1:1", "aws1/w1"}))
	must.StrContains(t, ui.ErrorWriter.String(), "Its credential in Vault is deleted already")
	role, err := j.root.Logical().Read("auth/sif-approle/role/sif-node-aws1--w1")
	must.NoError(t, err)
	must.Nil(t, role)
}

// Nothing is joined in, or taken away from, a directory of others.
func TestDirectoriesOfOthers(t *testing.T) {
	testhost.RequireRoot(t)
	args := []string{"-data-dir=/var/lib", "-config-dir=" + t.TempDir()}
	for _, run := range []func(*cli.MockUi) int{
		func(ui *cli.MockUi) int {
			return newRunner(ui, "node join", &NodeJoinCommand{}).Run(append(args, "-no-start", "-resume"))
		},
		func(ui *cli.MockUi) int {
			return newRunner(ui, "node leave", &NodeLeaveCommand{}).Run(append(args, "-dry-run"))
		},
	} {
		ui := cli.NewMockUi()
		must.Eq(t, 1, run(ui))
		must.StrContains(t, ui.ErrorWriter.String(), "-data-dir=/var/lib is a directory of others")
	}
}
