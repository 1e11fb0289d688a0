// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/sif-project/sif/internal/logkey"
)

// hook is one concern of an endpoint: what ADD does for it, and what takes that back.
type hook interface {
	// name says in errors and logs which concern it is.
	name() string
	// attach does the concern's part of ADD.
	attach(ctx context.Context, at *attachment) error
	// detach takes back what attach did, and ends when ctx does. It must also work after attach
	// failed half-way or never ran, and for an endpoint that an earlier agent attached. What it
	// cannot do now, it leaves to a regular repair, or to something that ends by itself.
	detach(ctx context.Context, d *detachment) error
}

// hooks returns the concerns of an endpoint. ADD goes through them in this order, and so does the
// way back: the interface goes first, so that traffic ends before anything else does.
func (a *Agent) hooks() []hook {
	return []hook{
		interfaceHook{a}, addressHook{a}, portsHook{a}, slotHook{a}, admissionHook{a}, recordHook{a},
		connectivityHook{a}, guestHook{a}, datapathHook{a}, processHook{a}, answersHook{a}, catalogHook{a},
	}
}

// attachment is an ADD in progress. The hooks build its endpoint, and recordHook stores it once.
type attachment struct {
	namespace ns.NetNS // of the workload
	endpoint  endpoint
	pair      veth
	until     time.Time // how long to wait for what is away
	patience  time.Time // how long to wait for an address that rests
	again     bool      // what the workload runs goes on: only its interface was removed
	parts     stopwatch
	background
}

// detachment is the way back of an endpoint.
type detachment struct {
	endpoint  endpoint
	namespace ns.NetNS // of the workload, if it is at hand
	background
}

// background is work of hooks that runs beside those that follow. Of an ADD, datapathHook waits for
// all of it before it brings the interface up.
type background struct{ waits []func() error }

func (b *background) start(do func() error) { b.waits = append(b.waits, start(do)) }

// wait waits for all work that was started.
func (b *background) wait() error {
	var errs []error
	for _, wait := range b.waits {
		errs = append(errs, wait())
	}
	b.waits = nil
	return errors.Join(errs...)
}

// start runs do in a goroutine and returns a function that waits for its outcome.
func start(do func() error) (wait func() error) {
	done := make(chan struct{})
	var err error
	go func() {
		err = do()
		close(done)
	}()
	return func() error {
		<-done
		return err
	}
}

// attachAll runs the hooks. Nothing of a failed attempt stays.
func (a *Agent) attachAll(ctx context.Context, at *attachment) error {
	for _, h := range a.hooks() {
		err := h.attach(ctx, at)
		if err != nil {
			_ = at.wait() // it must have ended before it is taken back; err says what failed first
			a.takeBack(ctx, &detachment{endpoint: at.endpoint, namespace: at.namespace})
			return err
		}
		at.parts.lap(h.name())
	}
	return nil
}

// detachAll removes all that there is of an endpoint, here and elsewhere, even if ctx has ended.
// What fails is repaired later, or ends by itself.
func (a *Agent) detachAll(ctx context.Context, ep endpoint) {
	a.takeBack(ctx, &detachment{endpoint: ep})
}

func (a *Agent) takeBack(ctx context.Context, d *detachment) {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, h := range a.hooks() {
		if err := h.detach(ctx, d); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", h.name(), err))
		}
	}
	if err := errors.Join(append(errs, d.wait())...); err != nil {
		a.log.Error("endpoint not detached everywhere yet", logkey.Endpoint, d.endpoint.ID, logkey.Error, err)
	}
}
