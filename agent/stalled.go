// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
)

const (
	// answerTime is what remains of a caller's patience when ADD stops waiting for what is coming
	// up: the time to take back what was done, and to answer.
	answerTime = 3 * time.Second
	// comingInterval is how often ADD tries what is coming up.
	comingInterval = 500 * time.Millisecond
	// outageMost is the age from which ADD no longer waits for the end of an outage: Nomad runs one
	// call at a time, so each one that waits keeps other workloads from being removed.
	outageMost = 2 * time.Minute
)

// away is an error of ADD that passes by itself when something is there again.
type away struct{ error }

func (e away) Unwrap() error { return e.error }

// missing marks the error of a call to the controller as away if the controller did not answer, or
// answered that it waits for something itself.
func missing(err error) error {
	var refused *api.Error
	codes := []string{api.CodeUnavailable, api.CodeNotLeader, api.CodeNotRegistered, api.CodeNomad, api.CodeTooMany, api.CodeUnregistered}
	if err == nil || errors.As(err, &refused) && !slices.Contains(codes, refused.Code) {
		return err
	}
	return away{err}
}

func isAway(err error) bool { return errors.As(err, new(away)) }

// stalled remembers since when every ADD failed for want of something that was away.
type stalled struct {
	mu          sync.Mutex
	began, last time.Time
}

// young reports whether ADD may wait for the end of the outage, if there is one.
func (o *stalled) young(now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return now.Sub(o.last) > outageMost || now.Sub(o.began) < outageMost
}

// record takes down how an ADD ended.
func (o *stalled) record(began, ended time.Time, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case !isAway(err):
		o.began, o.last = time.Time{}, time.Time{}
	case began.Sub(o.last) > outageMost: // nobody knows what was in between
		o.began, o.last = began, ended
	default:
		o.last = ended
	}
}

// insist calls do until it succeeds, fails for another reason than that something is away, or the
// attachment may not wait any longer.
func (a *Agent) insist(ctx context.Context, at *attachment, do func() error) error {
	for tries := 0; ; tries++ {
		err := do()
		if !isAway(err) || !time.Now().Before(at.until) {
			return err
		}
		if tries == 0 {
			a.log.Info("waiting for what is not there yet", logkey.Endpoint, at.endpoint.ID, logkey.Error, err)
		}
		if !retry.Sleep(ctx, comingInterval) {
			return err
		}
	}
}
