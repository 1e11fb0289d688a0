// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machine

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// Agent and engine of one machine are ready each by the record in its own data directory.
func TestReady(t *testing.T) {
	dir := t.TempDir()
	j := Joined{Layout: Layout{DataDir: dir}}
	j.Nomad.CNIConfigDir = t.TempDir()
	begun := time.Now()
	for _, unit := range []string{"sif-engine.service", "sif-agent.service"} {
		must.ErrorContains(t, Ready(j, unit, begun), "it has not registered")
	}
	must.NoError(t, os.Mkdir(filepath.Join(dir, "engine"), 0o700))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "engine", recordName), nil, 0o600))
	must.NoError(t, Ready(j, "sif-engine.service", begun))
	must.ErrorContains(t, Ready(j, "sif-agent.service", begun), "it has not registered")
	must.NoError(t, os.WriteFile(filepath.Join(dir, recordName), nil, 0o600))
	must.ErrorContains(t, Ready(j, "sif-agent.service", begun), "it has not installed the network")
	must.NoError(t, os.WriteFile(filepath.Join(j.Nomad.CNIConfigDir, "sif.conflist"), nil, 0o600))
	must.NoError(t, Ready(j, "sif-agent.service", begun))
	must.ErrorContains(t, Ready(j, "sif-engine.service", begun.Add(time.Hour)), "it has not registered") // an earlier one's
}
