// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package outage measures for how long a daemon has been without those whose word ends and renews
// what it holds. While that lasts, and for a bound that the operator sets, the daemon honours
// beyond its end what it held in force when the outage began. The package knows times, and not what
// is held, nor whom the daemon asks.
package outage

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/statefile"
)

const (
	// DefaultBound is how long an outage may last, unless the operator says otherwise.
	DefaultBound = 72 * time.Hour
	// patience is how long nobody may answer before that is an outage. What is held is renewed
	// earlier than that before its end.
	patience = 10 * time.Second
	// settling is how long what was honoured stays so when all answer again: it is renewed
	// meanwhile. Everybody wants that at the same time.
	settling = 5 * time.Minute
	// least is how long it stays so in any case: others may not have noticed yet, and show
	// certificates that have ended.
	least = time.Minute
	// noteInterval is how often it is written to disk that all answer.
	noteInterval = time.Minute
)

// Outage is what a daemon has measured. Its methods are safe for concurrent use. Nil has measured
// none.
type Outage struct {
	now   func() time.Time
	bound time.Duration
	file  statefile.File[state]
	log   hclog.Logger

	mu    sync.Mutex
	state state
	back  time.Time // all answer again since; zero: they do not
	noted time.Time // state.Reached on disk
	why   string    // what was missed last
}

// state is what a restart does not end.
type state struct {
	Reached time.Time `json:"reached,omitzero"` // when all answered last
	Began   time.Time `json:"began,omitzero"`   // of the outage; zero: there is none
}

// Open returns what an earlier process has measured, by the file at path. A daemon that was stopped
// may have missed an outage: until all answer, it counts from when they last did. With a bound of
// zero, nothing is ever honoured beyond its end.
func Open(path string, bound time.Duration, now func() time.Time, log hclog.Logger) (*Outage, error) {
	o := &Outage{now: now, bound: bound, log: log, file: statefile.File[state]{Path: path, What: "the last contact", Lazy: true}}
	var err error
	if o.state, _, err = o.file.Read(); errors.Is(err, statefile.ErrCorrupt) {
		log.Warn("cannot use what is on disk about the last outage, starting without", logkey.Error, err)
	} else if err != nil {
		return nil, err
	}
	o.noted = o.state.Reached
	if o.state.Began.IsZero() && !o.state.Reached.IsZero() && now().Sub(o.state.Reached) > noteInterval+patience {
		o.state.Began, o.why = o.state.Reached, "this daemon was not running"
	}
	return o, nil
}

// Reached notes that all answer. settled says that nothing is honoured beyond its end, so that the
// outage, if there was one, need not go on until it is.
func (o *Outage) Reached(settled bool) error {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.now()
	o.state.Reached = now
	write := now.Sub(o.noted).Abs() >= noteInterval
	if !o.state.Began.IsZero() {
		if o.back.IsZero() {
			o.back = now
		}
		if back := now.Sub(o.back); settled && back >= least || back >= settling {
			o.log.Info("all answer again, and nothing is honoured beyond its end any more", logkey.Duration, now.Sub(o.state.Began).Round(time.Second))
			o.state.Began, o.back, o.why, write = time.Time{}, time.Time{}, "", true
		}
	}
	if !write {
		return nil
	}
	return o.write(now)
}

// Missed notes that somebody does not answer, and why. Who never reached all holds nothing.
func (o *Outage) Missed(why string) error {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.why, o.back = why, time.Time{}
	now := o.now()
	if !o.state.Began.IsZero() || o.state.Reached.IsZero() || now.Sub(o.state.Reached) <= patience {
		return nil
	}
	o.state.Began = now
	o.log.Warn("an outage: what is in force now stays so beyond its end", logkey.Until, now.Add(o.bound).Format(time.RFC3339), logkey.Error, why)
	return o.write(now)
}

func (o *Outage) write(now time.Time) error {
	err := o.file.Write(o.state)
	if err == nil {
		o.noted = now
	}
	return err
}

// Began returns when the outage began, if what was held in force then is honoured now; zero
// otherwise.
func (o *Outage) Began() time.Time {
	if o == nil {
		return time.Time{}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if began := o.state.Began; !began.IsZero() && o.now().Before(began.Add(o.bound)) {
		return began
	}
	return time.Time{}
}

// Status returns the outage for people, or nil if there is none.
func (o *Outage) Status() *api.Outage {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.state.Began.IsZero() {
		return nil
	}
	return &api.Outage{Since: o.state.Began, Until: o.state.Began.Add(o.bound), Why: o.why, Back: o.back}
}

// Holds reports whether what ends at a time is in force now, or is honoured beyond its end because
// it was in force when the outage began, which is zero if there is none.
func Holds(end, now, began time.Time) bool {
	return now.Before(end) || !began.IsZero() && began.Before(end)
}
