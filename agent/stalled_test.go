// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
)

// ADD waits at the begin of an outage only: after two minutes of failures they come at once, until
// one succeeds or was refused, or nobody has tried for two minutes.
func TestStalled(t *testing.T) {
	var o stalled
	begin, gone := time.Now(), fmt.Errorf("wrapped: %w", away{errors.New("gone")})
	now := func(after time.Duration) time.Time { return begin.Add(after) }
	must.True(t, o.young(begin))
	for at := time.Duration(0); at < outageMost; at += 30 * time.Second {
		must.True(t, o.young(now(at)))
		o.record(now(at), now(at+25*time.Second), gone)
	}
	must.False(t, o.young(now(outageMost)))
	o.record(now(outageMost), now(outageMost), gone)
	must.False(t, o.young(now(outageMost+time.Second)))
	must.True(t, o.young(now(3*outageMost))) // another one, perhaps
	o.record(now(3*outageMost), now(3*outageMost), gone)
	must.True(t, o.young(now(4*outageMost-time.Second)))
	for _, err := range []error{nil, errors.New("refused")} {
		o.record(now(5*outageMost), now(7*outageMost-time.Second), gone)
		must.False(t, o.young(now(7*outageMost)))
		o.record(now(7*outageMost), now(7*outageMost), err)
		must.True(t, o.young(now(7*outageMost)))
	}
}

func TestMissing(t *testing.T) {
	must.NoError(t, missing(nil))
	must.True(t, isAway(missing(errors.New("connection refused"))))
	for code, want := range map[string]bool{
		api.CodeUnavailable: true, api.CodeNomad: true, api.CodeNotLeader: true, api.CodeNotRegistered: true, api.CodeTooMany: true,
		api.CodeForbidden: false, api.CodeNotPlaced: false, api.CodeNoSelector: false, api.CodeAddress: false, api.CodeInternal: false,
	} {
		err := missing(fmt.Errorf("admit: %w", api.Errorf(http.StatusTeapot, code, "no")))
		must.Eq(t, want, isAway(err), must.Sprint(code))
		must.Eq(t, want, isAway(refusal(err)), must.Sprint(code))
		must.True(t, api.IsCode(err, code))
	}
}

// What is away is tried again until the attachment may not wait any longer; a refusal is not.
func TestInsist(t *testing.T) {
	a := &Agent{log: hclog.NewNullLogger()}
	gone, refused := away{errors.New("gone")}, errors.New("refused")
	for name, tc := range map[string]struct {
		patience time.Duration
		answers  []error
		tries    int
		err      error
	}{
		"at once":          {time.Minute, []error{nil}, 1, nil},
		"it comes":         {time.Minute, []error{gone, gone, nil}, 3, nil},
		"it refuses then":  {time.Minute, []error{gone, refused}, 2, refused},
		"refused at once":  {time.Minute, []error{refused}, 1, refused},
		"no patience":      {0, []error{gone}, 1, gone},
		"it does not come": {comingInterval * 3 / 2, []error{gone, gone, gone}, 3, gone},
	} {
		t.Run(name, func(t *testing.T) {
			tries := 0
			err := a.insist(t.Context(), &attachment{until: time.Now().Add(tc.patience)}, func() error {
				tries++
				return tc.answers[tries-1]
			})
			must.Eq(t, tc.err, err)
			must.Eq(t, tc.tries, tries)
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must.Eq(t, error(gone), a.insist(ctx, &attachment{until: time.Now().Add(time.Minute)}, func() error { return gone }))
}
