// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/e2e/lab"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/trust/revision"
)

// get reads a key of Consul.
func (f *fabricUnderTest) get(t *testing.T, key string) []byte {
	t.Helper()
	pair, _, err := f.consul.KV().Get(key, &consul.QueryOptions{RequireConsistent: true})
	must.NoError(t, err)
	must.NotNil(t, pair, must.Sprint(key))
	return pair.Value
}

// put writes a key of Consul.
func (f *fabricUnderTest) put(t *testing.T, key string, value []byte) {
	t.Helper()
	_, err := f.consul.KV().Put(&consul.KVPair{Key: key, Value: value}, nil)
	must.NoError(t, err)
}

// tamper alters a key of Consul until the test ends or undo is called.
func (f *fabricUnderTest) tamper(t *testing.T, key string, alter func([]byte) []byte) {
	t.Helper()
	good := f.get(t, key)
	bad := alter(bytes.Clone(good))
	must.False(t, bytes.Equal(good, bad), must.Sprintf("%s must be altered", key))
	t.Cleanup(func() { f.put(t, key, good) })
	f.put(t, key, bad)
}

// replace returns a function that replaces a text once.
func replace(t *testing.T, old, new string) func([]byte) []byte {
	return func(b []byte) []byte {
		must.StrContains(t, string(b), old)
		return bytes.Replace(b, []byte(old), []byte(new), 1)
	}
}

// complaint is a text that at least one daemon of a kind must report; with all, each of them.
type complaint struct {
	kind string // lab.Workload, lab.Processor
	all  bool
	says []string
}

// complains waits until `sif status` shows the complaints of the daemons.
func (f *fabricUnderTest) complains(t *testing.T, wanted ...complaint) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		status := f.status(t)
		for _, c := range wanted {
			var said, silent []string
			for _, n := range status.Nodes {
				if string(n.Kind) != c.kind {
					continue
				}
				if slices.ContainsFunc(n.Degraded, func(d string) bool {
					return !slices.ContainsFunc(c.says, func(part string) bool { return !strings.Contains(d, part) })
				}) {
					said = append(said, n.ID().String())
				} else {
					silent = append(silent, n.ID().String()+fmt.Sprintf(" %q", n.Degraded))
				}
			}
			if len(said) == 0 || c.all && len(silent) > 0 {
				return fmt.Errorf("these %s nodes do not report %q: %s", c.kind, c.says, strings.Join(silent, ", "))
			}
		}
		return nil
	})
	must.Eq(t, 2, f.sif(t, "status").code, must.Sprint("the exit code of sif status"))
}

// unchanged checks that the fabric still enforces the same: each node reports the sequence, and
// packets pass and are dropped as before.
func (f *fabricUnderTest) unchanged(t *testing.T, sequence uint64) {
	t.Helper()
	for _, n := range f.status(t).Nodes {
		must.Eq(t, sequence, n.Sequence, must.Sprint(n.ID()))
	}
	svc := f.workload(t, "getaway-app/getaway-svc", "aws1")
	proxy := f.workload(t, "getaway-app/http-proxy", "aws1")
	for _, zone := range []string{"aws1", "gcp1"} {
		gateway := f.workload(t, "getaway-app/news-gw", zone)
		must.True(t, arrives(t, svc, gateway, 9001, 2*time.Second), must.Sprintf("from %s to %s", svc, gateway))
		must.False(t, arrives(t, proxy, gateway, 9001, 400*time.Millisecond), must.Sprintf("from %s to %s", proxy, gateway))
		must.False(t, arrives(t, svc, gateway, 9002, 400*time.Millisecond), must.Sprintf("from %s to %s, port 9002", svc, gateway))
	}
}

// TestAlteredObjectsAreRefused alters a document, an index shard, a node record and a catalog
// record by hand.
func TestAlteredObjectsAreRefused(t *testing.T) {
	world.allWell(t, 30*time.Second)
	sequence := world.sequence(t)
	service := fabric.Ref{Domain: "getaway-app", Name: "news-gw"}
	var root fabric.Root
	must.NoError(t, revision.ReadObject(t.Context(), world.consul, world.status(t).Pointer.Root, &root))
	shardKey := kvkey.Object(root.Shards[fabric.ShardOf(service)]).String()
	var shard fabric.Shard
	must.NoError(t, json.Unmarshal(world.get(t, shardKey), &shard))
	document := shard[service.String()]
	must.False(t, document.IsZero())
	victim := world.workload(t, "getaway-app/news-gw", "gcp1")
	other := world.workload(t, "voting-app/result-db", "gcp1")
	svc := world.workload(t, "getaway-app/getaway-svc", "aws1")

	t.Run("document", func(t *testing.T) {
		// Widen who may call the gateway, and on which port.
		world.tamper(t, kvkey.Object(document).String(), replace(t, "9001", "9002"))
		says := []string{document.String()}
		world.complains(t, complaint{kind: lab.Workload, says: says}, complaint{kind: lab.Processor, all: true, says: says})
		world.unchanged(t, sequence)
	})
	world.allWell(t, 30*time.Second)
	t.Run("shard, node record, catalog record", func(t *testing.T) {
		world.tamper(t, shardKey, replace(t, document.String(), strings.Repeat("0", 64)))
		// Put in another address, which nobody signed. The node has its record written again.
		var tampered []byte
		key := kvkey.Node{Zone: "gcp1", Name: "gcp1-w1"}.String()
		world.tamper(t, key, func(b []byte) []byte {
			var r fabric.NodeRecord
			must.NoError(t, json.Unmarshal(b, &r))
			var n fabric.Node
			must.NoError(t, json.Unmarshal(r.Node.Payload, &n))
			n.Underlay = n.Underlay.Next()
			payload, err := json.Marshal(n)
			must.NoError(t, err)
			r.Node.Payload = payload
			tampered, err = json.Marshal(r)
			must.NoError(t, err)
			return tampered
		})
		eventually(t, 30*time.Second, func() error {
			if bytes.Equal(world.get(t, key), tampered) {
				return errors.New("the altered node record is still in Consul")
			}
			return nil
		})
		world.copyRecord(t, victim, other)
		shardSays := []string{root.Shards[fabric.ShardOf(service)].String()}
		world.complains(t,
			complaint{kind: lab.Workload, says: shardSays}, complaint{kind: lab.Processor, all: true, says: shardSays},
			complaint{kind: lab.Workload, says: []string{"catalog record", victim.alloc, "address"}},
		)
		world.unchanged(t, sequence)
		addrs, err := resolve(svc, "gcp1.news-gw.getaway-app.sif")
		must.NoError(t, err)
		must.True(t, slices.Contains(addrs, victim.v4), must.Sprint(addrs))
		must.False(t, slices.Contains(addrs, other.v4), must.Sprint(addrs))
	})
	world.allWell(t, 30*time.Second)
}

// copyRecord registers, until the test ends, a catalog record of one endpoint with another
// endpoint's address, at a Consul node that the fabric does not know.
func (f *fabricUnderTest) copyRecord(t *testing.T, victim, other workload) {
	t.Helper()
	const node = "e2e-intruder"
	records, _, err := f.consul.Catalog().Service(fabric.CatalogName(victim.service), "", nil)
	must.NoError(t, err)
	i := slices.IndexFunc(records, func(r *consul.CatalogService) bool { return r.ServiceID == fabric.CatalogID(victim.zone, victim.alloc) })
	must.GreaterEq(t, 0, i, must.Sprintf("%s is not in the catalog", victim))
	t.Cleanup(func() {
		_, err := f.consul.Catalog().Deregister(&consul.CatalogDeregistration{Node: node}, nil)
		must.NoError(t, err)
	})
	_, err = f.consul.Catalog().Register(&consul.CatalogRegistration{
		Node: node, Address: "10.102.0.99", SkipNodeUpdate: false,
		Service: &consul.AgentService{
			ID: records[i].ServiceID, Service: records[i].ServiceName, Meta: records[i].ServiceMeta, Address: other.v4.String(),
			TaggedAddresses: map[string]consul.ServiceAddress{"lan_ipv4": {Address: other.v4.String()}, "lan_ipv6": {Address: other.v6.String()}},
		},
	}, nil)
	must.NoError(t, err)
}

// TestAlteredPointerIsRefused alters the pointer by hand: first to a root that nobody signed, then
// to an older pointer, which the controller did sign.
func TestAlteredPointerIsRefused(t *testing.T) {
	world.allWell(t, 30*time.Second)
	older := world.get(t, kvkey.Current)
	world.withTestPorts(t)
	sequence := world.sequence(t)
	// The older root forbids this, the newer one allows it.
	svc, gateway := world.workload(t, "getaway-app/getaway-svc", "aws1"), world.workload(t, "getaway-app/news-gw", "gcp1")
	allowed := func(t *testing.T) {
		t.Helper()
		must.True(t, arrives(t, svc, gateway, newsPort, 2*time.Second), must.Sprint("the revision in force allows it"))
		world.unchanged(t, sequence)
	}

	t.Run("another root", func(t *testing.T) {
		world.tamper(t, kvkey.Current, func(b []byte) []byte {
			var signed, old fabric.Signed
			must.NoError(t, errors.Join(json.Unmarshal(b, &signed), json.Unmarshal(older, &old)))
			var now, before fabric.Pointer
			must.NoError(t, errors.Join(json.Unmarshal(signed.Payload, &now), json.Unmarshal(old.Payload, &before)))
			now.Root, now.Sequence = before.Root, now.Sequence+1
			payload, err := json.Marshal(now)
			must.NoError(t, err)
			signed.Payload = payload
			altered, err := json.Marshal(signed)
			must.NoError(t, err)
			return altered
		})
		says := []string{kvkey.Current, "refused"}
		world.complains(t, complaint{kind: lab.Workload, all: true, says: says}, complaint{kind: lab.Processor, all: true, says: says})
		allowed(t)
	})
	world.allWell(t, 30*time.Second)
	t.Run("an older one", func(t *testing.T) {
		world.tamper(t, kvkey.Current, func([]byte) []byte { return older })
		says := []string{kvkey.Current, "refused", "lower"}
		world.complains(t, complaint{kind: lab.Workload, all: true, says: says}, complaint{kind: lab.Processor, all: true, says: says})
		allowed(t)
	})
	world.allWell(t, 30*time.Second)
}
