// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/agent/catalog"
	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/verify"
)

// What the controller does not know changes nothing, and what it says of others is not taken.
func TestLives(t *testing.T) {
	l := &lives{}
	here := map[string]bool{"a": true, "b": true}
	take := func(lives map[string]api.EndpointLife) bool { return l.take(api.EndpointLives{Endpoints: lives}, here) }
	ready, waits := api.EndpointLife{State: api.LifeReady}, api.EndpointLife{State: "restarting", Why: "waits for its restart"}

	must.Eq(t, catalog.Life{Unknown: true}, l.of("a"))
	l.begin("a", false)
	must.Eq(t, catalog.Life{Waits: "waits for its start"}, l.of("a"))
	must.False(t, take(map[string]api.EndpointLife{"a": {}, "b": {Why: "is not known"}}))
	must.Eq(t, catalog.Life{Waits: "waits for its start"}, l.of("a"))
	must.Eq(t, catalog.Life{Unknown: true}, l.of("b"))

	must.True(t, take(map[string]api.EndpointLife{"a": ready, "c": ready}))
	must.Eq(t, catalog.Life{}, l.of("a"))
	must.Eq(t, catalog.Life{Unknown: true}, l.of("c")) // it is not here
	must.True(t, take(map[string]api.EndpointLife{"a": waits}))
	must.False(t, take(map[string]api.EndpointLife{"a": waits}))
	must.False(t, take(nil))
	must.Eq(t, catalog.Life{Waits: "waits for its restart"}, l.of("a"))
	must.True(t, take(map[string]api.EndpointLife{"a": {State: "ended"}}))
	must.Eq(t, catalog.Life{Waits: "cannot be called: it is ended"}, l.of("a"))

	// A controller of an earlier version says nothing: checks alone count, as before.
	must.True(t, l.outdated())
	must.False(t, l.outdated())
	must.Eq(t, catalog.Life{}, l.of("a"))
	must.True(t, take(map[string]api.EndpointLife{"a": waits}))
	must.Eq(t, catalog.Life{Waits: "waits for its restart"}, l.of("a"))

	here = map[string]bool{"b": true}
	must.True(t, take(nil))
	must.Eq(t, catalog.Life{Unknown: true}, l.of("a"))

	a := &Agent{}
	must.Eq(t, catalog.Life{}, a.lifeOf(endpoint{ID: "x", Attached: &fabric.Attached{}}))
	must.Eq(t, catalog.Life{Unknown: true}, a.lifeOf(endpoint{ID: "x"}))
}

// The catalog is read of what DNS can answer with, not of who calls.
func TestFollowed(t *testing.T) {
	docs := verify.Documents(shopGraph([2]fabric.Ref{svcWeb, svcAPI}, [2]fabric.Ref{svcAPI, svcStore}), time.Now())
	endpointOf := func(service fabric.Ref, originate ...string) endpoint {
		adm := fabric.Admission{Service: service}
		for _, name := range originate {
			adm.Roles.Originate = append(adm.Roles.Originate, refOf("shop/"+name))
		}
		return endpoint{Admission: adm}
	}
	for _, tc := range []struct {
		endpoints []endpoint
		want      []fabric.Ref
	}{
		{nil, nil},
		{[]endpoint{endpointOf(svcWeb, "c0")}, []fabric.Ref{svcAPI, svcWeb}},
		{[]endpoint{endpointOf(svcWeb)}, []fabric.Ref{svcWeb}}, // it does not want to call
		{[]endpoint{endpointOf(svcAPI, "c1")}, []fabric.Ref{svcAPI, svcStore}},
		{[]endpoint{endpointOf(svcStore)}, []fabric.Ref{svcStore}},
		{[]endpoint{endpointOf(svcStore), endpointOf(svcWeb, "c0")}, []fabric.Ref{svcAPI, svcStore, svcWeb}},
	} {
		must.Eq(t, tc.want, followed(tc.endpoints, docs))
	}
}
