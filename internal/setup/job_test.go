// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package setup_test

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/setup"
)

// What a controller that is a Nomad job needs is made, found again, and taken away.
func TestControllerJob(t *testing.T) {
	c := newCluster(t)
	before := c.everything(t)
	given := join.Settings{ControllerJob: "default/sif-controller/controller/controller"}
	given.Nomad.Address = c.nomad
	s := setup.New(c.Clients, c.settings(t, given))
	must.NoError(t, s.Apply(t.Context(), func(setup.Item) {}))
	report, err := setup.New(c.Clients, c.settings(t, join.Settings{})).Check(t.Context()) // the job is in the settings
	must.NoError(t, err)
	names := map[string]bool{}
	for _, i := range report.Items {
		must.Eq(t, setup.Well, i.State, must.Sprint(i, i.Differences))
		names[i.String()] = true
	}
	for _, name := range []string{
		`Vault jwt auth method "sif-nomad"`, `Vault JWT configuration "auth/sif-nomad/config"`, `Vault JWT role "auth/sif-nomad/role/sif-controller"`,
		`Vault policy "sif-controller-job"`, `Vault identity token role "sif-consul-job"`, `Vault identity token role "sif-nomad-job"`,
	} {
		must.MapContainsKey(t, names, name)
	}
	gone, err := s.CheckDestroy(t.Context())
	must.NoError(t, err)
	must.NoError(t, s.Destroy(t.Context(), gone, func(setup.Item) {}))
	must.Eq(t, before, c.everything(t))
}

func TestControllerJobIsNamedInFull(t *testing.T) {
	for _, name := range []string{"sif-controller", "default/sif-controller/controller", "default//controller/controller", "a/b/c/d:e"} {
		s := setup.Defaults(join.Settings{ControllerJob: name})
		must.ErrorContains(t, setup.Check(s), "namespace/job/group/task")
	}
	s := setup.Defaults(join.Settings{ControllerJob: "a/b/c/d"})
	must.ErrorContains(t, setup.Check(s), "-nomad-address")
	s.Nomad.Address = "http://127.0.0.1:4646"
	must.NoError(t, setup.Check(s))
}
