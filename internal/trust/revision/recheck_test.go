// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revision

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

const management = "0b7c1d8e-6a52-4c0f-9f0c-5e8a3f6b2d41"

// newGuardedLab returns a lab whose Consul requires tokens, and the token of a node.
func newGuardedLab(t *testing.T) (l *lab, token string) {
	t.Helper()
	server, _ := testhost.Consul(t, fmt.Sprintf(`
acl {
  enabled        = true
  default_policy = "deny"
  tokens {
    initial_management = %q
    agent              = %q
  }
}`, management, management))
	client, err := consulapi.NewClient(&consulapi.Config{Address: server.Address, Token: management})
	must.NoError(t, err)
	node := setuptest.Node{NodeID: fabric.NodeID{Zone: "aws1", Name: "w1"}, Kind: fabric.KindWorkload}
	tokens := setuptest.Consul(t, client, setuptest.Settings(name, identitytest.TrustDomain), node)
	return &lab{t: t, server: server, consul: client, ca: identitytest.NewCA(t)}, tokens.Nodes[node.NodeID]
}

// What Consul still holds as it was read is compared with one request, which carries none of it,
// however often; after a restart, and when something was written, it is read again. A node's token
// suffices.
func TestRecheckReadsWhatWasWrittenOnly(t *testing.T) {
	l, token := newGuardedLab(t)
	ctx := context.Background()
	rev, _ := l.publish(graph(8080, proxy, svc, news))
	docs, shards := objectsOf(t, rev)

	counted := &transactions{RoundTripper: http.DefaultTransport}
	client, err := consulapi.NewClient(&consulapi.Config{Address: l.server.Address, Token: token, HttpClient: &http.Client{Transport: counted}})
	must.NoError(t, err)
	dir := t.TempDir()
	follower := func() *Follower {
		f, err := NewFollower(client, dir, name, l.ca.Keys, hclog.NewNullLogger())
		must.NoError(t, err)
		return f
	}
	f := follower()
	must.True(t, f.consider(ctx, l.get(kvkey.Current)))
	for _, r := range []fabric.Ref{proxy, svc} {
		_, err = f.Document(ctx, r)
		must.NoError(t, err)
	}
	const compared, read = 1, 3 // transactions: root, shards, documents
	recheck := func(full bool, transactions int64) []string {
		t.Helper()
		before := counted.count.Load()
		problems, err := f.recheck(ctx, full)
		must.NoError(t, err)
		must.Eq(t, transactions, counted.count.Load()-before)
		return problems
	}
	must.SliceEmpty(t, recheck(false, compared))
	must.SliceEmpty(t, recheck(false, compared))
	must.SliceEmpty(t, recheck(true, read))

	// A change that touches no interest does not cause reads.
	l.publish(graph(8080, proxy, svc))
	must.True(t, f.consider(ctx, l.get(kvkey.Current)))
	must.SliceEmpty(t, recheck(false, compared))

	must.NoError(t, f.save())
	f = follower()
	must.SliceEmpty(t, recheck(false, read)) // the disk does not say where Consul has it
	must.SliceEmpty(t, recheck(false, compared))

	for _, h := range []fabric.Hash{docs[proxy], shards[proxy]} {
		key := kvkey.Object(h).String()
		good := l.get(key).Value
		for what, do := range map[string]func(){
			"altered": func() { l.put(key, []byte("{}")) },
			"missing": func() {
				_, err := l.consul.KV().Delete(key, nil)
				must.NoError(t, err)
			},
		} {
			do()
			for range 2 { // it is said as long as it lasts
				problems, err := f.recheck(ctx, false)
				must.NoError(t, err)
				must.Len(t, 1, problems)
				must.StrContains(t, problems[0], h.String())
				must.StrContains(t, problems[0], what)
			}
			l.put(key, good)
			must.SliceEmpty(t, recheck(false, compared+read))
			must.SliceEmpty(t, recheck(false, compared))
		}
	}
	l.put(kvkey.Current, []byte("garbage"))
	problems := recheck(false, compared)
	must.Len(t, 1, problems)
	must.StrContains(t, problems[0], "decode")
	_, err = l.consul.KV().Delete(kvkey.Current, nil)
	must.NoError(t, err)
	problems = recheck(false, compared)
	must.Len(t, 1, problems)
	must.StrContains(t, problems[0], "is missing")
}
