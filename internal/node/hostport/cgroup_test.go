// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hostport

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/testhost"
)

// A unit is found where systemd puts it, and not where a user can.
func TestFindUnit(t *testing.T) {
	testhost.RequireRoot(t) // to give directories to a user
	root := t.TempDir()
	for _, dir := range []string{
		"system.slice/db.service/worker", "system.slice/two.service", "other.slice/two.service", "user.slice/user-1000.slice/user@1000.service/app.slice/db.service",
		"user.slice/user-1000.slice/user@1000.service/app.slice/own.service",
	} {
		must.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	must.NoError(t, os.Chown(filepath.Join(root, "user.slice/user-1000.slice/user@1000.service"), 1000, 1000))
	for name, want := range map[string]string{
		"db.service": "/system.slice/db.service", "two.service": "", "own.service": "", "none.service": "", "system.slice": "/system.slice",
	} {
		group, err := findUnit(root, name)
		must.Eq(t, want == "", err != nil, must.Sprint(name, err))
		must.Eq(t, Group(want), group)
	}
	must.Eq(t, 2, Group("/system.slice/db.service").level())
	for slice, want := range map[string]string{
		"system.slice": "/system.slice", "system-postgresql.slice": "/system.slice/system-postgresql.slice", "a-b-c.slice": "/a.slice/a-b.slice/a-b-c.slice", "-.slice": "",
	} {
		must.Eq(t, want, slicePath(slice))
	}
}

func TestParseGroup(t *testing.T) {
	root, err := hierarchy()
	if err != nil {
		testhost.Unmet(t, err.Error())
	}
	for path, want := range map[string]Group{
		"system.slice/db.service": "/system.slice/db.service", "/system.slice/": "/system.slice", root + "/a/b": "/a/b", "/a/../b": "/b",
		"": "", "/": "", root: "", "..": "", "/a\nb": "",
	} {
		group, err := ParseGroup(path)
		must.Eq(t, want == "", err != nil, must.Sprint(path, err))
		must.Eq(t, want, group)
	}
	for _, name := range []string{"", "db", "a/b.service"} {
		_, err := FindUnit(name)
		must.Error(t, err)
	}
	n, err := Group("/sif-no-such-cgroup").number()
	must.NoError(t, err)
	must.Zero(t, n)
}

func FuzzDisjoint(f *testing.F) {
	f.Add([]byte{10, 0, 0, 0, 8, 10, 1, 0, 0, 16, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var list []netip.Prefix
		for ; len(data) >= 5; data = data[5:] {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte(data)), int(data[4]%33)))
		}
		result := disjoint(list, families[0])
		for i, p := range result {
			for _, q := range result[i+1:] {
				must.False(t, p.Overlaps(q))
			}
		}
		for _, p := range list {
			covered := false
			for _, q := range result {
				covered = covered || q.Contains(p.Addr()) && q.Bits() <= p.Bits()
			}
			must.True(t, covered)
		}
		must.SliceEmpty(t, disjoint(list, families[1]))
	})
}
