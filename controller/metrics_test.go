// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"math"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// An age that is not known is no small one: an alert on it must not sleep.
func TestAgeMetric(t *testing.T) {
	c := &Controller{peers: &peers{}}
	must.Eq(t, math.Inf(1), c.ageSeconds())
	c.peers.view = time.Now().Add(-time.Minute)
	must.GreaterEq(t, 60, c.ageSeconds())
}
