// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/shoenig/test/must"
)

func TestInstallCNI(t *testing.T) {
	dir := t.TempDir()
	source, plugins, configs := filepath.Join(dir, "sif-cni"), filepath.Join(dir, "cni", "bin"), filepath.Join(dir, "cni", "config")
	candidates := []string{filepath.Join(dir, "none"), source}
	must.ErrorContains(t, installCNIFrom(candidates, plugins, configs, "/run/sif/cni.sock"), "found at none of")

	must.NoError(t, os.WriteFile(source, []byte("one"), 0o600))
	must.NoError(t, installCNIFrom(candidates, plugins, configs, "/run/sif/cni.sock"))
	installed := filepath.Join(plugins, "sif")
	first, err := os.Stat(installed)
	must.NoError(t, err)
	must.Eq(t, 0o755, first.Mode().Perm())

	list, err := libcni.ConfListFromFile(filepath.Join(configs, "sif.conflist"))
	must.NoError(t, err)
	must.Eq(t, "sif", list.Name)
	must.Eq(t, "1.0.0", list.CNIVersion)
	must.Len(t, 1, list.Plugins)
	must.Eq(t, "sif", list.Plugins[0].Network.Type)
	must.True(t, list.Plugins[0].Network.Capabilities["portMappings"])
	must.StrContains(t, string(list.Plugins[0].Bytes), `"/run/sif/cni.sock"`)

	must.NoError(t, installCNIFrom(candidates, plugins, configs, "/run/sif/cni.sock"))
	again, err := os.Stat(installed)
	must.NoError(t, err)
	must.True(t, os.SameFile(first, again)) // not written when nothing changed

	must.NoError(t, os.WriteFile(source, []byte("two"), 0o600))
	must.NoError(t, installCNIFrom(candidates, plugins, configs, "/run/sif/cni.sock"))
	content, err := os.ReadFile(installed)
	must.NoError(t, err)
	must.Eq(t, "two", string(content))
}
