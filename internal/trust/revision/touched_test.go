// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revision

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
)

// transactions counts the requests for objects.
type transactions struct {
	http.RoundTripper
	count atomic.Int64
}

func (c *transactions) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/v1/txn") {
		c.count.Add(1)
	}
	return c.RoundTripper.RoundTrip(r)
}

// A node that hosts no touched service reads the pointer and nothing else; it comes back from its
// disk at that pointer, and reads the objects again as soon as it needs them.
func TestUntouchedNodesReadThePointerOnly(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	var compiled *fabric.Compiled
	step := func(g *fabric.Graph) []fabric.Ref {
		pointer := fabric.Pointer{Fabric: name, Time: time.Now()}
		if compiled != nil {
			pointer.Previous = compiled.Root
		}
		next, fresh, touched := compiled.Next(g)
		compiled = next
		l.sequence++
		pointer.Sequence, pointer.Root = l.sequence, next.Root
		pointer.SetTouched(touched)
		must.NoError(t, NewWriter(l.consul, Unfenced(l.consul)).Write(ctx, fresh))
		l.pointer(l.ca.Sign(fabric.KindPointer, pointer))
		return touched
	}
	step(graph(8080, proxy, svc, news))

	counted := &transactions{RoundTripper: http.DefaultTransport}
	client, err := consulapi.NewClient(&consulapi.Config{Address: l.server.Address, HttpClient: &http.Client{Transport: counted}})
	must.NoError(t, err)
	dir := t.TempDir()
	follower := func() *Follower {
		f, err := NewFollower(client, dir, name, l.ca.Keys, hclog.NewNullLogger())
		must.NoError(t, err)
		return f
	}
	f := follower()
	must.True(t, f.consider(ctx, l.get(kvkey.Current)))
	_, err = f.Document(ctx, news)
	must.NoError(t, err)
	before := counted.count.Load()

	for port := uint16(8081); port < 8084; port++ {
		must.Eq(t, []fabric.Ref{svc, proxy}, step(graph(port, proxy, svc, news)))
		must.True(t, f.consider(ctx, l.get(kvkey.Current)))
		must.Eq(t, l.sequence, f.Pointer().Sequence)
	}
	must.Eq(t, before, counted.count.Load())
	f = follower() // from disk
	must.Eq(t, l.sequence, f.Pointer().Sequence)
	must.SliceEmpty(t, f.Degraded())
	must.MapContainsKey(t, f.Documents(), news)
	must.Eq(t, before, counted.count.Load())

	// A new interest is read at the newest root.
	doc, err := f.Document(ctx, proxy)
	must.NoError(t, err)
	must.Eq(t, compiled.Documents[proxy], doc)
	// What touches an interest is read, and so is what does not follow directly.
	step(graph(9000, proxy, svc, news))
	must.True(t, f.consider(ctx, l.get(kvkey.Current)))
	must.Eq(t, compiled.Documents[proxy], f.Documents()[proxy])
	f.Retain(func() map[fabric.Ref]bool { return map[fabric.Ref]bool{svc: true, news: true} })
	step(graph(9001, proxy, svc, news))
	step(graph(0, proxy, svc))
	before = counted.count.Load()
	must.True(t, f.consider(ctx, l.get(kvkey.Current)))
	must.Greater(t, before, counted.count.Load())
	must.Eq(t, fabric.Document{Service: news}, f.Documents()[news])
}
