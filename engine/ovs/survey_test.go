// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs_test

import (
	"context"
	"os/exec"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
)

// TestSurvey looks at a switch, then takes away what it needs.
func TestSurvey(t *testing.T) {
	i := ovstest.Start(t)
	sw := ovs.NewSwitch(i.Config)
	got, err := sw.Survey(t.Context())
	must.NoError(t, err)
	version, err := exec.Command("ovs-vswitchd", "--version").Output()
	must.NoError(t, err)
	must.StrContains(t, string(version), got.Version+"\n")
	must.Eq(t, "netdev", got.Datapath)
	must.True(t, got.Offload)

	gone := i.Config
	gone.Control += ".gone"
	_, err = ovs.NewSwitch(gone).Survey(context.Background())
	must.ErrorIs(t, err, ovs.ErrNoSwitch)
	gone.Database = i.Config.RunDir + "/nothing.sock"
	_, err = ovs.NewSwitch(gone).Survey(context.Background())
	must.ErrorIs(t, err, ovs.ErrNoDatabase)
	t.Setenv("PATH", "/nowhere")
	_, err = ovs.NewSwitch(gone).Survey(context.Background())
	must.ErrorIs(t, err, ovs.ErrNotInstalled)
}
