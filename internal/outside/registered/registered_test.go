// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package registered

import (
	"context"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/testhost"
)

var sql = Service{Name: "sql"}

// naming returns documents of a service that may call the Consul services.
func naming(services ...Service) map[fabric.Ref]fabric.Document {
	doc := fabric.Document{Service: fabric.Ref{Domain: "app", Name: "web"}}
	for _, s := range services {
		doc.Originates = append(doc.Originates, fabric.Edge{Peers: []fabric.Peer{{
			Name: fabric.Ref{Domain: "app", Name: s.Name}, Consul: &fabric.ConsulInstances{Service: s.Name, Datacenter: s.Datacenter},
		}}})
	}
	return map[fabric.Ref]fabric.Document{doc.Service: doc}
}

func addresses(list ...string) (addrs []netip.Addr) {
	for _, a := range list {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	return addrs
}

// register registers an instance on a machine without a Consul agent.
func register(t *testing.T, client *consulapi.Client, node, address, status string) {
	t.Helper()
	_, err := client.Catalog().Register(&consulapi.CatalogRegistration{
		Node: node, Address: "192.0.2.200", Service: &consulapi.AgentService{ID: "sql", Service: "sql", Address: address, Port: 5432},
		Check: &consulapi.AgentCheck{Node: node, CheckID: "sql", Name: "sql", ServiceID: "sql", Status: status},
	}, nil)
	must.NoError(t, err)
}

func deregister(t *testing.T, client *consulapi.Client, node string) {
	t.Helper()
	_, err := client.Catalog().Deregister(&consulapi.CatalogDeregistration{Node: node, ServiceID: "sql"}, nil)
	must.NoError(t, err)
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	must.Wait(t, wait.InitialSuccess(wait.BoolFunc(is), wait.Timeout(20*time.Second), wait.Gap(20*time.Millisecond)), must.Sprint(what))
}

// The instances are followed as they come and go; who fails his checks is reached, but has no name.
func TestFollow(t *testing.T) {
	_, client := testhost.Consul(t)
	register(t, client, "db1", "10.20.0.5", "passing")
	var changes atomic.Int64
	path := filepath.Join(t.TempDir(), "registered.json")
	w, err := Open(path, client, hclog.NewNullLogger(), func() { changes.Add(1) })
	must.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()

	must.False(t, w.Answered(sql))
	w.Follow(naming(sql, Service{Name: "none"}))
	eventually(t, "the first instance", func() bool { return w.Answered(sql) && w.Answered(Service{Name: "none"}) })
	must.Eq(t, []fabric.Registered{{Service: "sql", Addresses: addresses("10.20.0.5")}}, w.Registered())

	register(t, client, "db2", "", "critical") // the machine's own address
	eventually(t, "a second one", func() bool { return len(w.Registered()[0].Addresses) == 2 })
	must.Eq(t, addresses("10.20.0.5", "192.0.2.200"), w.Registered()[0].Addresses)
	must.Eq(t, addresses("10.20.0.5"), w.Passing(sql))
	must.NoError(t, w.Trouble())

	register(t, client, "db3", "db3.example.com", "passing")
	eventually(t, "an instance with a name is told", func() bool { return w.Trouble() != nil })
	must.StrContains(t, w.Trouble().Error(), `"db3.example.com"`)
	deregister(t, client, "db3")

	deregister(t, client, "db2")
	eventually(t, "the second one goes", func() bool { return len(w.Registered()[0].Addresses) == 1 })
	must.GreaterEq(t, int64(3), changes.Load())

	// A catalog that says that there is nothing is not believed at once, nor after a restart.
	deregister(t, client, "db1")
	eventually(t, "the emptied catalog is told", func() bool { return w.Trouble() != nil })
	must.Eq(t, addresses("10.20.0.5"), w.Registered()[0].Addresses)
	stop()
	must.NoError(t, <-done)
	again, err := Open(path, client, hclog.NewNullLogger(), func() {})
	must.NoError(t, err)
	must.True(t, again.Answered(sql))
	must.Eq(t, w.Registered(), again.Registered())

	// Nobody names it any more.
	again.Follow(naming())
	must.SliceEmpty(t, again.Registered())
}

// An empty answer is believed when it has stood for a while.
func TestEmptied(t *testing.T) {
	now := time.Unix(1000, 0)
	w, err := Open(filepath.Join(t.TempDir(), "registered.json"), nil, hclog.NewNullLogger(), func() {})
	must.NoError(t, err)
	w.now = func() time.Time { return now }
	w.Follow(naming(sql))
	one := []*consulapi.ServiceEntry{{Node: &consulapi.Node{Address: "10.20.0.5"}, Service: &consulapi.AgentService{}}}
	must.True(t, w.take(sql, one))
	must.False(t, w.take(sql, nil))
	now = now.Add(emptyFor / 2)
	must.False(t, w.take(sql, nil))
	must.True(t, w.take(sql, one))
	now = now.Add(emptyFor)
	must.False(t, w.take(sql, nil)) // it began anew
	must.Len(t, 1, w.Registered())
	now = now.Add(emptyFor)
	must.True(t, w.take(sql, nil))
	must.SliceEmpty(t, w.Registered())
	must.NoError(t, w.Trouble())
}
