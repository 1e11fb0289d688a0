// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revision

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
)

// A pointer that a newer version of the fabric's key has signed again takes the place of the one
// that is held, also of those between which no root was read.
func TestSignedAgain(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	f := l.follower(dir)
	rev, first := l.publish(graph(8080, proxy, svc, news))
	stop := run(t, f)
	eventually(t, 10*time.Second, "the first revision", func() bool { return f.Pointer().Sequence == 1 })
	_, err := f.Document(context.Background(), news)
	must.NoError(t, err)
	var changes atomic.Int32
	f.OnChange(func(fabric.Pointer, map[fabric.Ref]fabric.Document) { changes.Add(1) })

	// A pointer that touches no interest is followed without another root, unless another version
	// has signed it.
	next := func(sequence uint64, previous fabric.Hash) fabric.Hash {
		rev := fabric.Compile(graph(8080+uint16(sequence), proxy, svc, news))
		p := fabric.Pointer{Fabric: name, Sequence: sequence, Root: rev.Root, Previous: previous, Touched: []fabric.Ref{proxy, svc}, Time: time.Now()}
		signed := l.ca.Sign(fabric.KindPointer, p)
		_, index, err := ReadCurrent(context.Background(), l.consul)
		must.NoError(t, err)
		must.NoError(t, NewWriter(l.consul, Unfenced(l.consul)).Publish(context.Background(), rev, signed, index))
		eventually(t, 10*time.Second, "the next revision", func() bool { return f.Pointer().Sequence == sequence })
		return rev.Root
	}
	root := next(2, rev.Root)
	must.Eq(t, 1, f.Signed())
	must.Len(t, 1, f.view.since)
	l.ca.Rotate()
	root = next(3, root)
	must.Eq(t, 2, f.Signed())
	must.Len(t, 0, f.view.since)
	root = next(4, root)
	must.Len(t, 1, f.view.since)
	eventually(t, 10*time.Second, "three changes", func() bool { return changes.Load() == 3 })

	// The same pointer, signed again.
	l.ca.Rotate()
	l.pointer(l.ca.SignAgain(f.view.signed))
	eventually(t, 10*time.Second, "the signature of the third version", func() bool { return f.Signed() == 3 })
	must.Eq(t, root, f.Pointer().Root)
	stop()
	must.Eq(t, 3, changes.Load()) // nothing has changed

	// What is on disk counts when the older versions are retired, and what comes from elsewhere
	// with their signature does not.
	l.ca.Retire()
	f = l.follower(dir)
	must.SliceEmpty(t, f.Degraded())
	must.Eq(t, 4, f.Pointer().Sequence)
	_, err = f.Document(context.Background(), news)
	must.NoError(t, err)
	l.put(kvkey.Current, fabric.NewObject(first).Data)
	_, _, err = f.judge(l.get(kvkey.Current))
	must.ErrorContains(t, err, "the lowest accepted is 3")

	// A daemon that was away while they were retired begins with what it has kept.
	l.ca.Rotate()
	l.ca.Retire()
	away, err := NewFollower(l.consul, dir, name, l.ca.Keys, hclog.NewNullLogger())
	must.NoError(t, err)
	must.SliceEmpty(t, away.Degraded())
	must.Eq(t, 4, away.Pointer().Sequence)
	l.pointer(l.ca.SignAgain(f.view.signed))
	run(t, away)
	eventually(t, 10*time.Second, "the signature of the fourth version", func() bool { return away.Signed() == 4 })
}
