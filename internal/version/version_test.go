// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package version

import (
	"runtime/debug"
	"testing"

	"github.com/shoenig/test/must"
)

func TestFill(t *testing.T) {
	was := [3]string{Version, Commit, Date}
	t.Cleanup(func() { Version, Commit, Date = was[0], was[1], was[2] })
	settings := []debug.BuildSetting{{Key: "vcs.revision", Value: "4196d5f"}, {Key: "vcs.time", Value: "2026-11-28T11:00:00Z"}, {Key: "GOOS", Value: "linux"}}
	for name, c := range map[string]struct {
		set, want [3]string
		module    string
	}{
		"by the linker":    {set: [3]string{"1.2.3", "abc", "then"}, module: "v9.9.9", want: [3]string{"1.2.3", "abc", "then"}},
		"of the module":    {module: "v0.2.0-rc1", want: [3]string{"0.2.0-rc1", "4196d5f", "2026-11-28T11:00:00Z"}},
		"of a development": {module: "(devel)", want: [3]string{"", "4196d5f", "2026-11-28T11:00:00Z"}},
		"not recorded":     {want: [3]string{"", "4196d5f", "2026-11-28T11:00:00Z"}},
	} {
		Version, Commit, Date = c.set[0], c.set[1], c.set[2]
		fill(&debug.BuildInfo{Main: debug.Module{Version: c.module}, Settings: settings})
		must.Eq(t, c.want, [3]string{Version, Commit, Date}, must.Sprint(name))
	}
}

func TestThereIsAlwaysAVersion(t *testing.T) {
	must.NotEq(t, "", Current().Version)
	must.NotEq(t, "", Current().Go)
}
