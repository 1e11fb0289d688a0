// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/inspect/matrix"
)

// matrix runs `sif matrix -json` and fails unless declared and observed agree for every probe.
func (f *fabricUnderTest) matrix(t *testing.T, args ...string) matrix.Report {
	t.Helper()
	r := f.sif(t, append([]string{"matrix", "-json"}, args...)...)
	var report matrix.Report
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &report), must.Sprintf("%s\n%s", r.stdout, r.stderr))
	between, outside := report.Disagreements()
	for _, o := range between {
		t.Errorf("%s from %s to %s: observed %t, request %q: %s", o, o.From.Node, o.To.Node, o.Observed, o.Request, o.Why)
	}
	for _, o := range outside {
		t.Errorf("%s on %s to %s %s/%d: answered %t: %s", o.From.Service, o.From.Node, o.To, o.Protocol, o.Port, o.Answered, o.Why)
	}
	must.Zero(t, r.code, must.Sprint(r.stderr))
	must.Eq(t, 100, report.Agreement)
	must.Eq(t, report.Probes, report.Agreed)
	return report
}

// TestMatrixAgreesInEverything compares the graphs of both applications with what every pair of
// endpoints can do.
func TestMatrixAgreesInEverything(t *testing.T) {
	world.allWell(t, 30*time.Second)
	report := world.matrix(t)
	t.Logf("%d pairs, %d probes, %d requests", report.Pairs, report.Probes, report.Requests)

	// The matrix covered every declared contract between running services, and pairs without a
	// contract.
	seen := map[string]bool{}
	silent := 0
	for _, o := range report.Outcomes {
		if o.Declared() {
			seen[o.Contract.String()] = true
		} else {
			silent++
		}
	}
	for _, want := range []fabric.Ref{
		{Domain: "getaway-app", Name: "frontend"}, {Domain: "getaway-app", Name: "news-api"},
		{Domain: "getaway-app", Name: "places-api"}, {Domain: "getaway-app", Name: "weather-api"},
		{Domain: "voting-app", Name: "voting-frontend"}, {Domain: "voting-app", Name: "voting-backend"},
		{Domain: "voting-app", Name: "voting-worker"}, {Domain: "voting-app", Name: "result-worker"},
		{Domain: "voting-app", Name: "result-frontend"}, {Domain: "voting-app", Name: "result-backend"},
	} {
		must.True(t, seen[want.String()], must.Sprintf("contract %s was not probed", want))
	}
	must.Greater(t, report.Probes/2, silent)
	must.Positive(t, report.Requests)
}
