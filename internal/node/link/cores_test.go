// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

func TestMonitorSettingIsAddedOnce(t *testing.T) {
	const added = "GODEBUG=schedtrace=2147483647"
	for _, c := range []struct {
		name     string
		environ  []string
		expected []string
	}{
		{"no setting", []string{"A=1", "B=2"}, []string{"A=1", "B=2", added}},
		{"an empty one", []string{"GODEBUG=", "A=1"}, []string{"A=1", added}},
		{"others are kept", []string{"GODEBUG=madvdontneed=1,gctrace=1"}, []string{added + ",madvdontneed=1,gctrace=1"}},
		{"a chosen one is kept", []string{"GODEBUG=gctrace=1,schedtrace=0"}, nil},
		{"its own", []string{added}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			environ, changed := withMonitorAwake(c.environ)
			must.Eq(t, c.expected != nil, changed)
			if !changed {
				c.expected = c.environ
			}
			must.Eq(t, c.expected, environ)
			_, again := withMonitorAwake(environ)
			must.False(t, again)
		})
	}
}

func TestCoresFollowTraffic(t *testing.T) {
	for _, c := range []struct {
		name        string
		cores, most int
		busy        float64
		expected    int
	}{
		{"idle", 1, 4, 0, 1},
		{"one is busy", 1, 4, 0.95, 2},
		{"one is busy, and there are no more", 1, 1, 1, 1},
		{"two are enough", 2, 4, 1.3, 2},
		{"two keep less than one busy", 2, 4, 0.7, 2},
		{"one is enough", 2, 4, 0.5, 1},
		{"all are busy", 4, 4, 4, 4},
	} {
		t.Run(c.name, func(t *testing.T) { must.Eq(t, c.expected, nextCores(c.cores, c.most, c.busy)) })
	}
}

// Steady traffic does not make the number of cores go up and down, whatever it is.
func TestCoresSettle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 64).Draw(t, "most")
		traffic := rapid.Float64Range(0, 80).Draw(t, "traffic")
		cores := rapid.IntRange(1, most).Draw(t, "cores")
		for range most {
			cores = nextCores(cores, most, min(traffic, float64(cores)))
		}
		must.Between(t, 1, cores, most)
		must.Eq(t, cores, nextCores(cores, most, min(traffic, float64(cores))))
	})
}
