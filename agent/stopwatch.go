// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import "time"

// stopwatch notes what the parts of a piece of work took.
type stopwatch struct {
	last time.Time // the end of the part before
	laps []any     // for a log: name, duration, name, ...
}

// lap ends a part.
func (s *stopwatch) lap(name string) {
	now := time.Now()
	s.laps = append(s.laps, name, now.Sub(s.last))
	s.last = now
}
