// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
)

// A lost record is put back within two seconds; one that is lost again and again less and less
// often; one that is found again meanwhile is not put back.
func TestPutBack(t *testing.T) {
	p, now := newPutBack(), time.Now()
	due, _ := p.due(false, now)
	must.False(t, due)

	due, wait := p.due(true, now)
	must.False(t, due)
	must.Between(t, putBackFirst/2, wait, 2*putBackFirst)
	due, _ = p.due(false, now.Add(wait))
	must.False(t, due)

	now = now.Add(time.Hour)
	_, wait = p.due(true, now)
	must.LessEq(t, 2*putBackFirst, wait)
	due, _ = p.due(true, now.Add(wait))
	must.True(t, due)

	// For an hour, something deletes the record whenever it was put back.
	count := 0
	for end := now.Add(time.Hour); now.Before(end); now = now.Add(200 * time.Millisecond) {
		if due, _ := p.due(true, now); due {
			count++
			due, _ := p.due(false, now.Add(100*time.Millisecond))
			must.False(t, due)
		}
	}
	must.Between(t, 60, count, 250)
}

// Others refuse a link statement that is older than the one before, so each is issued later, after
// a restart with a clock that was set back as well.
func TestStatementsAfterTheClockWasSetBack(t *testing.T) {
	c := &config.Config{DataDir: t.TempDir(), Link: &config.Link{Socket: "/nowhere/link.sock"}}
	self := fabric.NodeID{Zone: "aws1", Name: "w1"}
	l, err := openLinks(c, fabric.KindWorkload, hclog.NewNullLogger())
	must.NoError(t, err)
	first, err := l.statement(self)
	must.NoError(t, err)
	l.issued = l.issued.Add(time.Hour) // as if the clock had been an hour ahead
	must.NoError(t, l.save())

	again, err := openLinks(c, fabric.KindWorkload, hclog.NewNullLogger())
	must.NoError(t, err)
	second, err := again.statement(self)
	must.NoError(t, err)
	must.Greater(t, time.Hour, second.Issued.Sub(first.Issued))
	third, err := again.statement(self)
	must.NoError(t, err)
	must.True(t, third.Issued.After(second.Issued))
}
