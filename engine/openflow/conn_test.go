// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package openflow_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	of "github.com/sif-project/sif/engine/openflow"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/ovs/ovstest"
)

func bridge(t testing.TB) (*of.Conn, *ovstest.Instance) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	instance := ovstest.Start(t)
	sw := ovs.NewSwitch(instance.Config)
	must.NoError(t, sw.Create(ctx))
	conn, err := sw.Dial(ctx)
	must.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn, instance
}

func numbered(table uint8, n uint32) of.Flow {
	return of.Flow{
		Key:          of.Key{Table: table, Priority: 5, Match: of.NewMatch(of.Is32(of.Reg(3), n))},
		Cookie:       uint64(n) << 32,
		Instructions: of.Drop.Goto(table + 1),
	}
}

func TestAgainstOpenVSwitch(t *testing.T) {
	conn, instance := bridge(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	flows := func(filter of.Filter) []of.Flow {
		list, err := conn.Flows(ctx, filter)
		must.NoError(t, err)
		var out []of.Flow
		for _, f := range list {
			must.False(t, f.Foreign)
			out = append(out, f.Flow)
		}
		return out
	}
	all := of.Filter{Table: of.AllTables}
	must.SliceEmpty(t, flows(all))

	must.NoError(t, conn.Apply(ctx, of.Add(numbered(1, 1)), of.Add(numbered(2, 2)), of.Add(numbered(2, 3))))
	must.SliceLen(t, 3, flows(all))
	must.SliceLen(t, 2, flows(of.Filter{Table: 2}))
	got := flows(of.Filter{Table: of.AllTables, Cookie: 3 << 32, CookieMask: ^uint64(0)})
	must.SliceLen(t, 1, got)
	must.True(t, got[0] == numbered(2, 3))

	changed := numbered(2, 3)
	changed.Instructions = of.Drop.Goto(9)
	must.NoError(t, conn.Apply(ctx, of.Add(changed)))
	must.True(t, flows(of.Filter{Table: of.AllTables, Cookie: 3 << 32, CookieMask: ^uint64(0)})[0] == changed)

	must.NoError(t, conn.Bundle(ctx, of.DeleteStrict(changed.Key), of.DeleteStrict(numbered(1, 1).Key)))
	must.SliceLen(t, 1, flows(all))

	t.Run("a bundle is atomic", func(t *testing.T) {
		// The switch finds the first fault when the change is added, the second when the bundle is
		// committed.
		badForm := of.Flow{Key: of.Key{Match: of.NewMatch(of.Is16(of.TCPDst, 1))}}
		badTable := numbered(3, 1)
		badTable.Instructions = of.Drop.Goto(1)
		for _, bad := range []of.Flow{badForm, badTable} {
			err := conn.Bundle(ctx, of.Add(numbered(7, 7)), of.Add(bad), of.Add(numbered(7, 8)))
			var refused *of.Error
			must.True(t, errors.As(err, &refused), must.Sprint(err))
			must.Eq(t, of.Add(bad).String(), refused.Request)
			must.SliceLen(t, 1, flows(all))
		}
	})
	t.Run("changes without a bundle stay up to the refused one", func(t *testing.T) {
		err := conn.Apply(ctx, of.Add(numbered(7, 7)), of.Add(of.Flow{Key: of.Key{Match: of.NewMatch(of.Is16(of.TCPDst, 1))}}))
		must.ErrorContains(t, err, "prerequisite")
		must.SliceLen(t, 2, flows(all))
	})
	t.Run("many at once", func(t *testing.T) {
		errs := make(chan error)
		for worker := range 8 {
			go func() {
				for i := range 50 {
					n := uint32(1000*worker + i + 1000)
					if err := conn.Bundle(ctx, of.Add(numbered(20, n)), of.Add(numbered(21, n))); err != nil {
						errs <- fmt.Errorf("bundle: %w", err)
						return
					}
					if _, err := conn.Flows(ctx, of.Filter{Table: 20}); err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
		for range 8 {
			must.NoError(t, <-errs)
		}
		must.SliceLen(t, 400, flows(of.Filter{Table: 21}))
	})
	t.Run("the connection survives a cancelled call", func(t *testing.T) {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		_, err := conn.Flows(gone, all)
		must.ErrorIs(t, err, context.Canceled)
		short, cancel := context.WithTimeout(ctx, 100*time.Microsecond)
		defer cancel()
		_, _ = conn.Flows(short, all)
		_, err = conn.Flows(ctx, all)
		must.NoError(t, err)
	})
	t.Run("the end of the connection is reported", func(t *testing.T) {
		conn, err := ovs.NewSwitch(instance.Config).Dial(ctx)
		must.NoError(t, err)
		instance.RestartSwitch()
		select {
		case <-conn.Done():
		case <-ctx.Done():
			t.Fatal("the connection did not end")
		}
		must.Error(t, conn.Err())
		must.Error(t, conn.Apply(ctx, of.Add(numbered(1, 1))))
	})
}

func TestDialNobody(t *testing.T) {
	_, err := of.Dial(context.Background(), t.TempDir()+"/nothing.mgmt")
	must.ErrorContains(t, err, "connect to the bridge's management socket")
}
