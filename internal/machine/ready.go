// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/wellknown"
)

// recordName is the file in the data directory with the record that the controller signed for the
// node.
const recordName = "node.json"

// Ready returns an error until a daemon of a node that was started at begun has come as far as the
// fabric needs it: the links' process listens, an engine and an agent have the record that the
// controller signed, and the agent has installed the network.
func Ready(j Joined, unit string, begun time.Time) error {
	l := j.Layout
	if unit == linkUnit {
		if _, err := os.Stat(filepath.Join(l.RunDir, wellknown.LinkDir, wellknown.LinkSocket)); err != nil {
			return fmt.Errorf("it does not listen yet: %w", err)
		}
		return nil
	}
	info, err := os.Stat(filepath.Join(l.dataDir(daemonOf(unit)), recordName))
	if err != nil || info.ModTime().Before(begun.Add(-time.Second)) {
		return errors.New("it has not registered with the controller yet")
	}
	if unit == unitOf("agent") {
		if _, err := os.Stat(filepath.Join(j.Nomad.CNIConfigDir, wellknown.CNINetwork+".conflist")); err != nil {
			return fmt.Errorf("it has not installed the network yet: %w", err)
		}
	}
	return nil
}

// dataDir returns the data directory of a daemon. Those of a machine share none.
func (l Layout) dataDir(daemon string) string {
	if daemon == string(config.RoleAgent) {
		return l.DataDir
	}
	return filepath.Join(l.DataDir, daemon)
}
