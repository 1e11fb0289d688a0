// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"strings"
	"time"
)

// stopwatch measures the parts of a piece of work.
type stopwatch struct {
	last  time.Time // the end of the part before
	parts []string  // name=duration
}

// lap ends a part.
func (s *stopwatch) lap(name string) {
	now := time.Now()
	s.parts = append(s.parts, name+"="+now.Sub(s.last).String())
	s.last = now
}

// String returns the parts in the form of logkey.Parts.
func (s *stopwatch) String() string { return strings.Join(s.parts, ",") }
