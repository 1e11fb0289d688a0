// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestTopologiesOfTheRepository(t *testing.T) {
	files, err := filepath.Glob("topology/*.hcl")
	must.NoError(t, err)
	must.NotEq(t, 0, len(files))
	for _, f := range files {
		topology, err := LoadTopology(f)
		must.NoError(t, err)
		for _, n := range topology.Nodes() {
			must.NotEq(t, "", n.Zone)
		}
	}
	d, err := DefaultTopology()
	must.NoError(t, err)
	must.Len(t, 7, d.Nodes())
	must.Len(t, 4, d.Nodes(Workload))
	must.True(t, d.Node("aws1-w1").HasDriver("docker"))
}

// What a file does not say is that of another topology; what it says is its own.
func TestSurroundings(t *testing.T) {
	d, err := DefaultTopology()
	must.NoError(t, err)
	pairs, err := LoadTopology("topology/pairs.hcl")
	must.NoError(t, err)
	must.Len(t, 4, pairs.Nodes(Processor))
	pairs.Zones = d.Zones
	must.Eq(t, d, pairs)
	zone := "zone \"ops\" {\n  subnet = \"10.100.0.0/24\"\n}\n"
	_, err = ParseTopology("t.hcl", []byte("surroundings_of = \"nothing.hcl\"\n"+zone))
	must.ErrorContains(t, err, "topology t.hcl: surroundings_of: read topology: open topology/nothing.hcl")
	_, err = ParseTopology("t.hcl", []byte("surroundings_of = \"two-zones.hcl\"\nfabric = \"other\"\n"+zone))
	must.ErrorContains(t, err, "t.hcl:2,1-7: Unsupported argument")
}

func TestTopologyIsChecked(t *testing.T) {
	src, err := os.ReadFile("topology/two-zones.hcl")
	must.NoError(t, err)
	for name, tc := range map[string]struct{ old, new, want string }{
		"syntax":            {`zone "gcp1" {`, `zone gcp1" {`, "t.hcl:140"},
		"address elsewhere": {`"10.101.0.11"`, `"10.109.0.11"`, "must be in subnet"},
		"gateway":           {`"10.101.0.11"`, `"10.101.0.1"`, "must not be its gateway's"},
		"address twice":     {`"10.101.0.11"`, `"10.101.0.10"`, "another node has address"},
		"name twice":        {`node "aws1-w2"`, `node "aws1-w1"`, "another node has this name"},
		"overlap":           {`"10.102.0.0/24"`, `"10.101.0.0/16"`, "overlaps"},
		"kind":              {`"processor"` + "\n    address  = \"10.101", `"router"` + "\n    address  = \"10.101", "unknown kind"},
		"driver":            {`["docker", "exec", "raw_exec", "qemu"]`, `["podman"]`, "unknown driver"},
		"no driver":         {`drivers  = ["docker", "exec", "raw_exec", "qemu"]`, ``, "must have drivers"},
		"ports":             {`"51820-51899"`, `"51820-70000"`, "out of range"},
		"group":             {`from = ["processor"]`, `from = ["processors"]`, "unknown group"},
		"outside twice":     {`outside "cdn"`, `outside "provider"`, "another machine has this name"},
		"outside as a node": {`outside "cdn"`, `outside "gcp1-w1"`, "another machine has this name"},
		"outside address":   {`["10.20.0.10"]`, `["10.20.0"]`, "outside database: "},
		"outside shares":    {`["10.20.0.10"]`, `["203.0.113.10"]`, "another machine has address"},
		"outside service":   {`port      = 5432`, ``, "belong together"},
		"record":            {`"127.0.0.1", "::1"`, `"localhost"`, "record rebind.example.net: "},
		"address6":          {`"2001:db8:101::10"`, `"2001:db8:102::11"`, "must be in subnet"},
		"mtu":               {`mtu = 1500`, `mtu = 500`, "must be 1280 to 65535"},
		"unknown attribute": {`mtu = 1500`, "mtu = 1500\n  mtuu = 1", "Unsupported argument"},
	} {
		t.Run(name, func(t *testing.T) {
			must.StrContains(t, string(src), tc.old)
			_, err := ParseTopology("t.hcl", []byte(strings.Replace(string(src), tc.old, tc.new, 1)))
			must.ErrorContains(t, err, tc.want)
		})
	}
}
