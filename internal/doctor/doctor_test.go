// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package doctor

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/node/host"
	"github.com/sif-project/sif/internal/setup"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
)

// examine returns what is not well of some checks, a sentence each, and all findings.
func examine(t *testing.T, o Options, checks ...string) (list []string, all []host.Finding) {
	t.Helper()
	all, err := Examine(t.Context(), o)
	must.NoError(t, err)
	for _, f := range all {
		must.NotEq(t, "", f.Check)
		must.NotEq(t, "", f.Subject)
		must.NotEq(t, "", f.Detail)
		if f.Result == host.Wrong {
			must.NotEq(t, "", f.Remedy, must.Sprint(f))
		}
		if f.Result != host.Well && slices.Contains(checks, f.Check) {
			list = append(list, string(f.Result)+" "+f.String())
		}
	}
	return list, all
}

func environment(t *testing.T) {
	for _, name := range []string{"CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "CONSUL_CACERT", "VAULT_ADDR", "VAULT_TOKEN", "VAULT_CACERT", "NOMAD_ADDR", "NOMAD_TOKEN", "NOMAD_CACERT"} {
		t.Setenv(name, "")
	}
}

// TestBeforeJoining asks real servers, then servers that are not there.
func TestBeforeJoining(t *testing.T) {
	testhost.RequireRoot(t)
	environment(t)
	consul, _ := testhost.Consul(t)
	vault, client := testhost.Vault(t)
	nomad, _ := testhost.Nomad(t, "client {\n  cni_path = \"/opt/cni/bin:/usr/lib/cni\"\n}\n")
	o := Options{ConfigDir: t.TempDir(), Consul: consul.Address, Nomad: nomad.Address, Vault: "http://" + vault.Address, Kinds: []join.Kind{join.Workload}}
	found, all := examine(t, o, "bpf", "consul", "vault", "nomad", "kernel", "pools")
	must.Eq(t, []string{
		"warning Consul has no ACLs: whoever reaches it can write the fabric's keys, which are signed, and delete them: enable ACLs with default_policy = \"deny\", then sif setup",
		"warning Nomad has no ACLs: whoever reaches it can run a job that has the identity of any service: acl { enabled = true } in Nomad's configuration, then sif setup",
	}, found)
	for _, want := range []string{
		"Vault answers at http://" + vault.Address, "Nomad answers at http://" + nomad.Address, "Nomad's client looks for CNI where the agent installs it",
		"the data path can be loaded, and attached by tcx", "the machine's clock agrees with that of Vault within", "the machine's clock agrees with that of Consul within",
	} {
		must.True(t, slices.ContainsFunc(all, func(f host.Finding) bool { return f.Result == host.Well && strings.HasPrefix(f.String(), want) }), must.Sprint(want))
	}

	// Vault is sealed, Consul does not run, the pool is one that this machine uses.
	must.NoError(t, client.Sys().Seal())
	o.Consul = "127.0.0.1:1"
	own := ownAddress(t)
	o.Pools = []netip.Prefix{netip.PrefixFrom(own, own.BitLen()-4).Masked()}
	found, _ = examine(t, o, "consul", "vault", "pools")
	must.StrContains(t, strings.Join(found, "\n"), own.String()+" lies in the fabric's pool")
	must.SliceContains(t, found, "error Vault is sealed: vault operator unseal")
	must.StrHasPrefix(t, "error Consul cannot be reached", found[len(found)-1])

	o.Vault = ""
	found, _ = examine(t, o, "vault")
	must.Eq(t, []string{"skipped Vault was not asked: its address is not known: set VAULT_ADDR or -vault-addr"}, found)
}

func ownAddress(t *testing.T) netip.Addr {
	t.Helper()
	s, err := host.LookAround(nil)
	must.NoError(t, err)
	for _, f := range s.Within([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}) {
		if _, rest, is := strings.Cut(f.Subject, "own address (on "); is {
			_, text, _ := strings.Cut(rest, ") ")
			return netip.MustParseAddr(text)
		}
	}
	testhost.Unmet(t, "needs a machine with an address")
	return netip.Addr{}
}

// TestNomadClient configures a client so that it does not suit.
func TestNomadClient(t *testing.T) {
	environment(t)
	nomad, _ := testhost.Nomad(t, `
client {
  cni_path         = "/usr/lib/cni"
  min_dynamic_port = 8000
  max_dynamic_port = 9000
  reserved {
    reserved_ports = "22,8442-8443"
  }
}
`)
	o := Options{ConfigDir: t.TempDir(), Consul: "127.0.0.1:1", Nomad: nomad.Address, Kinds: []join.Kind{join.Controller, join.Processor, join.Workload}}
	found, _ := examine(t, o, "nomad")
	must.Len(t, 3, found, must.Sprint(found)) // and a warning of ACLs
	found = found[1:]
	must.StrHasPrefix(t, `error Nomad's client looks for CNI plugins in "/usr/lib/cni", and the agent installs its own in "/opt/cni/bin": cni { plugin_dir = "/usr/lib/cni" } in agent.hcl`, found[0])
	must.Eq(t, `error Nomad's dynamic ports 8000-9000 contain ports of the fabric: 8440, 8441: client { reserved { reserved_ports = "8440,8441" } } in Nomad's configuration`, found[1])

	v := judgeVolume(map[string]any{"HostVolumes": []any{map[string]any{"Name": "sif-workload", "Path": "/run/sif-workload/", "ReadOnly": true}}}, "/run/sif-workload")
	must.Eq(t, host.Well, v.Result)
	must.StrContains(t, v.Detail, "offers the host volume")
	v = judgeVolume(map[string]any{"HostVolumes": []any{map[string]any{"Name": "sif-workload", "Path": "/run/sif-workload"}}}, "/run/sif-workload")
	must.Eq(t, host.Warning, v.Result)
	v = judgeVolume(map[string]any{"HostVolumes": []any{map[string]any{"Name": "sif-workload", "Path": "/srv"}}}, "/run/sif-workload")
	must.Eq(t, host.Wrong, v.Result)
	v = judgeVolume(map[string]any{}, "/run/sif-workload")
	must.StrContains(t, v.Detail, "no job with workload_api is placed here")

	f := judgeNomad(map[string]any{"Enabled": true, "CNIPath": "/opt/cni/bin/", "CNIConfigDir": "/etc/cni"}, "/opt/cni/bin", "/opt/cni/config")
	must.StrContains(t, f.String(), `looks for CNI networks in "/etc/cni"`)
	f = judgeNomad(map[string]any{"Enabled": false}, "/opt/cni/bin", "/opt/cni/config")
	must.StrContains(t, f.String(), "is not enabled on this machine")
}

// TestAfterJoining examines a controller and a workload node with their files, then takes their
// rights away.
func TestAfterJoining(t *testing.T) {
	testhost.RequireRoot(t)
	environment(t)
	const management = "8e3b2a61-2f6c-4b26-9d3c-0d1f6f2a7f10"
	consul, _ := testhost.Consul(t, fmt.Sprintf("acl {\n  enabled = true\n  default_policy = \"deny\"\n  tokens {\n    initial_management = %q\n    agent = %q\n  }\n}", management, management))
	vault, vaultClient := testhost.Vault(t)
	nomad, _ := testhost.Nomad(t)
	consulClient, err := consulapi.NewClient(&consulapi.Config{Address: consul.Address, Token: management})
	must.NoError(t, err)
	node := fabric.NodeID{Zone: "z1", Name: "w1"}
	settings := setuptest.Settings("test", "sif.test")
	member := setuptest.Node{NodeID: node, Kind: fabric.KindWorkload}
	setuptest.Consul(t, consulClient, settings)
	secrets := setuptest.Vault(t, vaultClient, settings, member)
	setuptest.LogIns(t, setup.Clients{Vault: vaultClient, Consul: consulClient}, settings, "http://"+vault.Address)

	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		must.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	common := func(a join.Grant, secret string) string {
		return fmt.Sprintf(`
fabric       = "test"
trust_domain = "sif.test"
data_dir     = %q
consul {
  address     = %q
  auth_method = "sif"
  token_role  = "sif-consul"
}
vault {
  address        = "http://%s"
  role_id        = %q
  secret_id_file = %q
}
nomad {
  address = "http://%s"
}
`, filepath.Join(dir, "data"), consul.Address, vault.Address, a.RoleID, write(secret, a.SecretID), nomad.Address)
	}
	write("controller.hcl", common(secrets.Controller, "controller-secret-id"))
	write("agent.hcl", `
zone = "z1"
node = "w1"
underlay {
  address = "192.0.2.77"
}
controller {
  address = "127.0.0.1:1"
}
`+common(secrets.Nodes[node], "secret-id"))

	issued := func() int { // tokens that log-ins have
		list, _, err := consulClient.ACL().TokenListFiltered(consulapi.ACLTokenFilterOptions{AuthMethod: "sif"}, nil)
		must.NoError(t, err)
		return len(list)
	}
	o := Options{ConfigDir: dir}
	found, all := examine(t, o, "configuration", "vault", "consul", "underlay", "controller")
	must.Eq(t, 0, issued())
	must.Len(t, 2, found, must.Sprint(found))
	must.StrHasPrefix(t, "error the underlay address 192.0.2.77 is not an address of this machine", found[0])
	must.StrHasPrefix(t, "error the controller cannot be reached", found[1])
	for _, want := range []string{
		"Vault grants the credential of controller.hcl what it needs", "Vault grants the credential of agent.hcl what it needs", "Consul grants the token of controller.hcl what it needs", "Consul grants the token of agent.hcl what it needs",
		"Nomad grants the token of controller.hcl and agent.hcl what it needs",
	} {
		must.True(t, slices.ContainsFunc(all, func(f host.Finding) bool { return f.Detail != "" && f.String() == want }), must.Sprint(want))
	}
	nomadFound, _ := examine(t, o, "nomad")
	must.True(t, slices.ContainsFunc(nomadFound, func(s string) bool { return strings.Contains(s, "does not have the network cni/sif") }), must.Sprint(nomadFound))

	// The policy grants less, and the node's secret is void, and so its log-in at Consul.
	must.NoError(t, vaultClient.Sys().PutPolicy("sif-controller", `path "sif-transit/keys/sif" { capabilities = ["read"] }`))
	must.NoError(t, setup.RemoveNode(t.Context(), vaultClient, settings, node))
	found, _ = examine(t, o, "vault", "consul")
	must.Len(t, 4, found, must.Sprint(found))
	must.StrHasPrefix(t, "error Vault refuses the credential of controller.hcl: list sif-pki/issuers (the policy has deny)", found[0])
	must.StrContains(t, found[0], "update sif-transit/sign/sif (the policy has deny)")
	must.StrHasPrefix(t, "error Vault refuses the credential of agent.hcl: ", found[1])
	must.StrContains(t, found[1], "let the machine join again")
	must.StrHasPrefix(t, "error Consul refuses the token of controller.hcl: ", found[2])
	must.StrHasPrefix(t, "error Consul refuses the token of agent.hcl: ", found[3])

	// A file that is not valid keeps nothing else from being examined.
	write("agent.hcl", "zone = \"z1\"\nnode = \"w1\"\nlink {\n  mtu = 1\n}\n")
	found, all = examine(t, o, "configuration")
	must.Len(t, 1, found)
	must.StrContains(t, found[0], filepath.Join(dir, "agent.hcl")+":4:9: link.mtu: 1 is outside")
	must.True(t, slices.ContainsFunc(all, func(f host.Finding) bool { return f.Check == "vault" }))
}

// TestClock asks servers whose clocks are wrong.
func TestClock(t *testing.T) {
	for skew, want := range map[time.Duration]string{
		0: "well ", 8 * time.Second: "well ", time.Hour + time.Minute: "error the machine's clock is about 1h", -time.Hour - time.Minute: "error the machine's clock is about 1h",
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(skew).UTC().Format(http.TimeFormat))
		}))
		findings, reached := server{name: "vault", url: srv.URL}.ask(t.Context())
		srv.Close()
		must.True(t, reached)
		must.Len(t, 2, findings)
		must.StrHasPrefix(t, want, string(findings[1].Result)+" "+findings[1].String())
		must.Eq(t, skew > time.Minute, strings.Contains(findings[1].Detail, "behind"))
		must.Eq(t, skew < -time.Minute, strings.Contains(findings[1].Detail, "ahead"))
	}
}

func TestOlder(t *testing.T) {
	for release, want := range map[string]bool{"6.1.0-50-cloud-amd64": false, "6.0.9": true, "5.15.0-1-amd64": true, "6.18.44-fc": false, "7.0": false, "6": true, "": true} {
		must.Eq(t, want, older(release, "6.1"), must.Sprint(release))
	}
}

// TestTaken has a port that somebody else has.
func TestTaken(t *testing.T) {
	environment(t)
	listener := httptest.NewServer(http.NotFoundHandler())
	defer listener.Close()
	dir := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(dir, "controller.hcl"), fmt.Appendf(nil, `
trust_domain = "sif.test"
listen       = %q
vault {
  role_id        = "x"
  secret_id_file = "/nowhere"
}
`, listener.Listener.Addr()), 0o600))
	found, _ := examine(t, Options{ConfigDir: dir}, "ports")
	must.Len(t, 1, found)
	must.StrContains(t, found[0], fmt.Sprintf("is taken: doctor.test (process %d) listens on %s, and the controller's API needs it", os.Getpid(), listener.Listener.Addr()))
}

func TestUnits(t *testing.T) {
	for _, c := range []struct {
		state  string // LoadState ActiveState UnitFileState
		needed bool
		want   string
	}{
		{"not-found inactive ", false, "warning the unit x.service does not exist"},
		{"masked inactive masked", false, "error the unit x.service is masked: systemctl unmask x.service"},
		{"loaded inactive disabled", false, ""},
		{"loaded failed enabled", true, "error the unit x.service is failed: journalctl -u x.service; systemctl start x.service"},
		{"loaded active disabled", true, "warning the unit x.service runs, and will not be started at the next boot: systemctl enable x.service"},
		{"loaded active enabled", true, ""},
	} {
		s := strings.Split(c.state, " ")
		f := judgeUnit(host.Finding{Check: "units", Subject: "the unit x.service"}, "x.service", map[string]string{"LoadState": s[0], "ActiveState": s[1], "UnitFileState": s[2]}, c.needed)
		if c.want == "" {
			must.Eq(t, "", f.Result)
			continue
		}
		must.StrHasPrefix(t, c.want, string(f.Result)+" "+f.String())
	}
}
