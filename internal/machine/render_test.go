// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machine

import (
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/testhost"
)

// The daemons of one machine share no data directory, the engine of a machine with workloads has no
// switch, and the node's firewall lets others reach the machine's controller.
func TestRenderDaemonsOfOneMachine(t *testing.T) {
	read := func(daemon config.Role, hasSwitch bool, kinds ...join.Kind) *config.Config {
		t.Helper()
		j := Joined{Layout: DefaultLayout(), Grant: join.Grant{
			Node: fabric.NodeID{Zone: "z", Name: "n"}, Kinds: kinds, RoleID: "r", Controllers: []string{"192.0.2.9:8440"},
			Settings: join.Settings{Fabric: "f", TrustDomain: "sif.example"},
		}}
		j.Grant.Settings.Pools.IPv4, j.Grant.Settings.Pools.IPv6 = "100.64.0.0/10", "fd5f:7369:6600::/48"
		f := Found{Underlay: Underlay{Address: netip.MustParseAddr("192.0.2.1"), Interface: "eth0", MTU: 1500}, Switch: hasSwitch}
		text := render(j, f, string(daemon), func(string) string { return "" })
		c, err := config.Parse(text, "x.hcl", daemon)
		must.NoError(t, err, must.Sprint(string(text)))
		return c
	}
	for _, tc := range []struct {
		installed, want bool
		kinds           []join.Kind
	}{
		{true, true, []join.Kind{join.Processor}},
		{false, false, []join.Kind{join.Processor}},
		{true, false, []join.Kind{join.Processor, join.Workload}},
	} {
		_, has := read(config.RoleEngine, tc.installed, tc.kinds...).Switch()
		must.Eq(t, tc.want, has)
	}
	all := []join.Kind{join.Controller, join.Processor, join.Workload}
	dirs := map[string]bool{}
	for _, role := range []config.Role{config.RoleController, config.RoleEngine, config.RoleAgent} {
		dirs[read(role, false, all...).DataDir] = true
	}
	must.MapLen(t, 3, dirs)
	must.SliceContains(t, read(config.RoleAgent, false, all...).Underlay.Management, "tcp/8440")
	for _, role := range []config.Role{config.RoleEngine, config.RoleAgent} {
		must.Eq(t, "report", read(role, false, all...).Firewall.Mode)
	}
	must.Eq(t, config.DefaultManagement, read(config.RoleAgent, false, join.Workload).Underlay.Management)
}

// The user of a machine's controller owns the credential, and only reads the files by which
// daemons that run as root are configured.
func TestFilesOfControllersUser(t *testing.T) {
	testhost.RequireRoot(t)
	serviceUser = "nobody"
	t.Cleanup(func() { serviceUser = "sif" })
	l := DefaultLayout()
	l.ConfigDir = t.TempDir()
	j := Joined{Layout: l, Grant: join.Grant{
		Node: fabric.NodeID{Zone: "z", Name: "n"}, Kinds: []join.Kind{join.Controller, join.Processor}, RoleID: "r", SecretID: "s",
		Settings: join.Settings{Fabric: "f", TrustDomain: "sif.example", Pools: join.Pools{IPv4: "100.64.0.0/10", IPv6: "fd5f:7369:6600::/48", NodePrefix: 20}},
	}}
	must.NoError(t, l.Keep(j))
	must.NoError(t, Write(j, Found{Underlay: Underlay{Address: netip.MustParseAddr("192.0.2.1"), Interface: "eth0", MTU: 1500}, FabricCA: "x"}))
	want := ownerOf(j.Grant)
	must.Positive(t, want.uid)
	for name, uid := range map[string]int{"vault-secret-id": want.uid, "controller.hcl": 0, "engine.hcl": 0, "fabric-ca.pem": 0} {
		info, err := os.Stat(filepath.Join(l.ConfigDir, name))
		must.NoError(t, err)
		stat := info.Sys().(*syscall.Stat_t)
		must.Eq(t, []int{uid, want.gid}, []int{int(stat.Uid), int(stat.Gid)}, must.Sprint(name))
		must.Zero(t, info.Mode().Perm()&0o022)
	}
}
