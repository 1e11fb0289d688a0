// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sif-project/sif/internal/atomicfile"
	"github.com/sif-project/sif/internal/wellknown"
)

const (
	cniPlugin     = "sif"
	cniConfigFile = "sif.conflist"
	pluginTimeout = "30s"
)

// pluginName is the plugin's file beside the sif binary, and libexecPlugin the path at which
// packages install it.
const (
	pluginName    = "sif-cni"
	libexecPlugin = "/usr/libexec/sif/sif-cni"
)

// installCNI installs the CNI plugin and the network configuration in the directories of the node's
// Nomad client. It does not write files that are up to date. socket is the path at which the plugin
// calls the agent.
func installCNI(pluginDir, configDir, socket string) error {
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("install the CNI plugin: find the path of this program: %w", err)
	}
	candidates := []string{filepath.Join(filepath.Dir(executable), pluginName), libexecPlugin}
	return installCNIFrom(candidates, pluginDir, configDir, socket)
}

func installCNIFrom(candidates []string, pluginDir, configDir, socket string) error {
	plugin, err := readFirst(candidates)
	if err != nil {
		return fmt.Errorf("install the CNI plugin: %w", err)
	}
	config, err := cniConfig(socket)
	if err != nil {
		return fmt.Errorf("install the CNI plugin: %w", err)
	}
	// The configuration comes last because Nomad uses the network as soon as it exists.
	if err := installFile(filepath.Join(pluginDir, cniPlugin), plugin, 0o755); err != nil {
		return fmt.Errorf("install the CNI plugin: %w", err)
	}
	if err := installFile(filepath.Join(configDir, cniConfigFile), config, 0o644); err != nil {
		return fmt.Errorf("install the CNI configuration: %w", err)
	}
	return nil
}

// installation is what tells whether the installed files were changed: of the plugin and of the
// network configuration.
type installation [2]struct {
	size     int64
	mode     fs.FileMode
	modified time.Time
}

// inspectCNI looks at the installed files, of which one that is missing has zero values.
func inspectCNI(pluginDir, configDir string) (in installation) {
	for i, path := range []string{filepath.Join(pluginDir, cniPlugin), filepath.Join(configDir, cniConfigFile)} {
		if info, err := os.Stat(path); err == nil {
			in[i].size, in[i].mode, in[i].modified = info.Size(), info.Mode(), info.ModTime()
		}
	}
	return in
}

// repairCNI installs the plugin and the network configuration again if somebody changed them.
func (a *Agent) repairCNI() error {
	c := a.node.Config.CNI
	if inspectCNI(c.PluginDir, c.ConfigDir) == a.installed {
		return nil
	}
	if err := installCNI(c.PluginDir, c.ConfigDir, c.Socket); err != nil {
		return err
	}
	a.installed = inspectCNI(c.PluginDir, c.ConfigDir)
	a.node.PutBack(kindCNI, []string{"the CNI plugin or network in " + c.PluginDir + " and " + c.ConfigDir})
	return nil
}

// cniConfig returns the network configuration list. It has no loopback plugin, which may not be
// installed on the node: the agent brings "lo" up. It is not for garbage collection: libcni would
// detach what other runtimes attached to a network of this name, and Nomad never collects.
func cniConfig(socket string) ([]byte, error) {
	type plugin struct {
		Type         string          `json:"type"`
		Capabilities map[string]bool `json:"capabilities"`
		Socket       string          `json:"socket"`
		Timeout      string          `json:"timeout"`
	}
	data, err := json.MarshalIndent(struct {
		CNIVersion string   `json:"cniVersion"`
		Name       string   `json:"name"`
		DisableGC  bool     `json:"disableGC"`
		Plugins    []plugin `json:"plugins"`
	}{"1.0.0", wellknown.CNINetwork, true, []plugin{{cniPlugin, map[string]bool{"portMappings": true}, socket, pluginTimeout}}}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the CNI configuration: %w", err)
	}
	return append(data, '\n'), nil
}

func readFirst(candidates []string) ([]byte, error) {
	for _, path := range candidates {
		data, err := os.ReadFile(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return data, err
		}
	}
	return nil, fmt.Errorf("found at none of %q: install sif-cni beside the sif binary", candidates)
}

// installFile writes the file unless it has this content and mode already.
func installFile(path string, data []byte, perm fs.FileMode) error {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm() == perm && info.Size() == int64(len(data)) {
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, data, perm)
}
