// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// serverLines are the version lines that the lab supports. tools/setup.sh looks for the same.
var serverLines = map[string]string{"consul": "1.20.", "vault": "1.21.", "nomad": "1.10."}

// checkPrograms finds the servers. Its error lists everything that is missing.
func (l *Lab) checkPrograms(ctx context.Context) error {
	var missing []error
	need := []string{"ip", "nsenter", "nft"}
	for _, n := range l.Topology.Nodes() {
		if n.HasSwitch() {
			need = append(need, "ovsdb-server", "ovsdb-tool", "ovs-vswitchd", "ovs-vsctl")
		}
		for driver, programs := range map[string][]string{"docker": {"dockerd"}, "java": {"java", "ldd"}, "qemu": {"qemu-system-x86_64"}} {
			if n.HasDriver(driver) {
				need = append(need, programs...)
			}
		}
	}
	seen := map[string]bool{}
	for _, name := range need {
		if seen[name] {
			continue
		}
		seen[name] = true
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, err)
		}
	}
	l.servers = make(map[string]string)
	for name, line := range serverLines {
		path, err := findServer(ctx, name, line, filepath.Join(l.Bin, "servers"))
		if err != nil {
			missing = append(missing, err)
		}
		l.servers[name] = path
	}
	if _, err := os.Stat(busybox); err != nil {
		missing = append(missing, err)
	}
	ours := []string{"sif", "sif-cni"}
	if len(l.Topology.Internet.Outside) > 0 {
		ours = append(ours, "sif-internet")
	}
	for _, name := range ours {
		if _, err := os.Stat(filepath.Join(l.Bin, name)); err != nil {
			missing = append(missing, fmt.Errorf("%w: run `make build`", err))
		}
	}
	if err := errors.Join(missing...); err != nil {
		return fmt.Errorf("programs are missing, run `make setup`:\n%w", err)
	}
	return nil
}

// findServer looks for a server of a version line, first on PATH, then among the links that
// tools/setup.sh made.
func findServer(ctx context.Context, name, line, links string) (string, error) {
	candidates := []string{filepath.Join(links, name)}
	if path, err := exec.LookPath(name); err == nil {
		candidates = append([]string{path}, candidates...)
	}
	for _, path := range candidates {
		out, err := exec.CommandContext(ctx, path, "version").Output()
		if err != nil {
			continue
		}
		// "Consul v1.20.6", "Vault v1.21.0, built ...", "Nomad v1.10.5"
		if _, version, ok := strings.Cut(string(out), " v"); ok && strings.HasPrefix(version, line) {
			return filepath.EvalSymlinks(path)
		}
	}
	return "", fmt.Errorf("%s %sx is neither on PATH nor in %s", name, line, links)
}
