// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/join"
)

// What a machine uses refuses a pool that overlaps it, what Docker may use warns.
func TestPoolProblems(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		must.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	resolvers, err := resolverRanges(file("resolv.conf", "# x\nnameserver 100.100.2.136\nnameserver 127.0.0.53\nnameserver fd00::53%eth0\n"))
	must.NoError(t, err)
	must.Len(t, 2, resolvers)
	docker, err := dockerRanges(file("daemon.json", `{"default-address-pools": [{"base": "100.80.0.0/16", "size": 24}]}`))
	must.NoError(t, err)
	must.Len(t, 1, docker)
	_, err = dockerRanges(file("damaged.json", "{"))
	must.ErrorContains(t, err, "damaged.json")
	none, err := dockerRanges(filepath.Join(dir, "absent"))
	must.NoError(t, err)
	must.Len(t, len(dockerPools), none)
	list := append(append(resolvers, docker...), Range{Prefix: netip.MustParsePrefix("100.96.0.0/16"), Use: "route by tun0", Sure: true})

	warnings, err := PoolProblems(overlapping(list, join.Pools{IPv4: DefaultPool4, IPv6: DefaultPool6}))
	must.ErrorContains(t, err, "this machine uses 100.100.2.136/32 (resolver), which the fabric's pool 100.64.0.0/10 overlaps: give it another one with -pool4")
	must.ErrorContains(t, err, "100.96.0.0/16 (route by tun0)")
	must.StrNotContains(t, err.Error(), "fd00::53")
	must.Eq(t, 1, len(warnings))
	must.StrContains(t, strings.Join(warnings, ""), "100.80.0.0/16 (Docker's default-address-pools in ")

	for i := range list {
		list[i].Pool = ""
	}
	warnings, err = PoolProblems(overlapping(list, join.Pools{IPv4: "10.64.0.0/12", IPv6: "fd00::/48"}))
	must.ErrorContains(t, err, "fd00::53/128 (resolver), which the fabric's pool fd00::/48 overlaps: give it another one with -pool6")
	must.SliceEmpty(t, warnings)
}

func TestAtLeast(t *testing.T) {
	for version, tooOld := range map[string]bool{
		"1.11.0": false, "1.21.0": false, "2.0.0": false, "1.11.0+ent": false, "v1.12.3-beta.1": false,
		"1.10.9": true, "0.99.99": true, "1.9.0+ent.hsm": true, "dev": false, "": false,
	} {
		must.Eq(t, tooOld, atLeast("Vault", version, OldestVault) != nil, must.Sprint(version))
	}
}
