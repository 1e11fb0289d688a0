// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package names

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
)

var epoch = time.Unix(1_000_000, 0).UTC()

// clock is a time that a test sets.
type clock struct{ time.Time }

func (c *clock) now() time.Time       { return c.Time }
func (c *clock) pass(d time.Duration) { c.Time = c.Add(d) }

func open(t testing.TB, path string, margin time.Duration, c *clock) *Table {
	t.Helper()
	table, err := Open(path, margin, c.now, hclog.NewNullLogger())
	must.NoError(t, err)
	t.Cleanup(func() { _ = table.Stored() }) // nothing is written after the test
	return table
}

func fresh(t testing.TB) (*Table, *clock, string) {
	c, path := &clock{epoch}, filepath.Join(t.TempDir(), "names.json")
	return open(t, path, 0, c), c, path
}

func addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}) }

func addrs(ns ...int) (list []netip.Addr) {
	for _, n := range ns {
		list = append(list, addr(n))
	}
	return list
}

func key(service, name string) Key {
	return Key{Service: fabric.Ref{Domain: "shop", Name: service}, Name: name}
}

func TestLife(t *testing.T) {
	for ttl, want := range map[time.Duration]time.Duration{
		0: time.Minute, -1: time.Minute, time.Minute: time.Minute, 5 * time.Minute: 5 * time.Minute, 48 * time.Hour: time.Hour,
	} {
		must.Eq(t, want, Life(ttl))
	}
}

// An address stays while its answer holds or it is held, whichever is longer, and the margin.
func TestAddressesStay(t *testing.T) {
	for _, margin := range []time.Duration{0, 30 * time.Second} {
		c := &clock{epoch}
		table := open(t, filepath.Join(t.TempDir(), "names.json"), margin, c)
		web := key("web", "api.example.com")
		must.Eq(t, addrs(1, 2), table.Put(web, addrs(1, 2), time.Minute))
		c.pass(time.Minute + margin - 1)
		must.Eq(t, addrs(1, 2), table.Known(web))
		table.Hold(web, addrs(2, 3), time.Minute)
		must.False(t, table.Expire())
		c.pass(1)
		must.Eq(t, addrs(2), table.Known(web)) // whether it was removed or not
		must.Eq(t, []fabric.Named{{Service: web.Service, Name: web.Name, Addresses: addrs(2)}}, table.Named())
		must.True(t, table.Expire())
		must.Eq(t, addrs(2), table.Known(web))
		must.False(t, table.Ending(time.Minute-2))
		must.True(t, table.Ending(time.Minute))
		c.pass(time.Minute)
		table.Hold(web, addrs(2), time.Minute) // too late
		must.True(t, table.Expire())
		must.SliceEmpty(t, table.Keys())
		must.SliceEmpty(t, table.Named())
	}
}

// What all askers have is told together, and an answer of one does not end what another has.
func TestAskersAreSeparate(t *testing.T) {
	table, c, _ := fresh(t)
	one, two := key("web", "api.example.com"), key("web", "api.example.com")
	one.Asker, two.Asker = "z1/w1", "z1/w2"
	table.Put(one, addrs(2, 1), time.Minute)
	c.pass(30 * time.Second)
	table.Put(two, addrs(2, 3), time.Minute)
	must.Eq(t, []fabric.Named{{Service: one.Service, Name: one.Name, Addresses: addrs(1, 2, 3)}}, table.Named())
	c.pass(30 * time.Second)
	must.True(t, table.Expire())
	must.Eq(t, []fabric.Named{{Service: one.Service, Name: one.Name, Addresses: addrs(2, 3)}}, table.Named())
	table.Hold(one, addrs(2), time.Hour) // it has none any more
	must.Eq(t, []Key{two}, table.Keys())
}

// Rotating addresses take turns, except those in use, and it is told.
func TestRotatingAddresses(t *testing.T) {
	table, c, _ := fresh(t)
	web := key("web", "cdn.example.com")
	table.Put(web, addrs(0), time.Hour)
	table.Hold(web, addrs(0), time.Hour)
	must.SliceEmpty(t, table.Full())
	for n := 1; n < 3*MaxAddresses; n++ {
		c.pass(time.Second)
		must.Eq(t, addrs(n), table.Put(web, addrs(n), time.Hour))
	}
	have := table.Known(web)
	must.SliceLen(t, MaxAddresses, have)
	must.True(t, slices.Contains(have, addr(0)))
	must.False(t, slices.Contains(have, addr(1)))
	must.True(t, slices.Contains(have, addr(3*MaxAddresses-1)))
	must.SliceLen(t, 1, table.Full())
	must.StrContains(t, table.Full()[0], "cdn.example.com of shop/web has more than 64 addresses")
	// If all are in use, there is no room.
	table.Hold(web, have, time.Hour)
	c.pass(time.Second)
	must.SliceEmpty(t, table.Put(web, addrs(500), time.Hour))
	must.Eq(t, have, table.Known(web))
	c.pass(loudFor)
	must.SliceEmpty(t, table.Full())
	// An answer of too many has as many as there is room for, and does not displace itself.
	big := key("web", "big.example.com")
	var many []netip.Addr
	for n := range 100 {
		many = append(many, addr(1000+n))
	}
	in := table.Put(big, many, time.Hour)
	must.SliceLen(t, MaxAddresses, in)
	must.Eq(t, in, table.Known(big))
}

func TestManyNames(t *testing.T) {
	table, c, _ := fresh(t)
	name := func(service string, n int) Key { return key(service, fmt.Sprintf("n%d.example.com", n)) }
	for n := range MaxNames {
		c.pass(time.Millisecond)
		table.put(name("web", n), addrs(1), time.Hour)
	}
	must.SliceEmpty(t, table.Full())
	table.Hold(name("web", 0), addrs(1), time.Hour)
	c.pass(time.Millisecond)
	must.SliceLen(t, 1, table.Put(name("web", MaxNames), addrs(1), time.Hour))
	must.SliceLen(t, 1, table.Known(name("web", 0)))
	must.SliceEmpty(t, table.Known(name("web", 1)))
	must.SliceLen(t, 1, table.Known(name("web", 2)))
	must.StrContains(t, table.Full()[0], "shop/web has asked for more than 1000 outside names")
	for service := range 9 {
		for n := range MaxNames {
			table.put(name(fmt.Sprint("s", service), n), addrs(1), time.Hour)
		}
	}
	must.MapLen(t, MaxAsker, table.entries)
	// Another asker has room of its own.
	other := name("web", 7)
	other.Asker = "z1/w2"
	must.SliceLen(t, 1, table.Put(other, addrs(1), time.Hour))
	must.MapLen(t, MaxAsker+1, table.entries)
}

// Enact is called until what was there when it was called is in force.
func TestEnact(t *testing.T) {
	table, _, _ := fresh(t)
	calls, broken := 0, errors.New("the switch is away")
	enact := func() error { calls++; return nil }
	must.NoError(t, table.Enact(enact))
	must.NoError(t, table.Enact(enact))
	must.Eq(t, 1, calls)
	web := key("web", "api.example.com")
	table.Put(web, addrs(1), time.Minute)
	must.ErrorIs(t, table.Enact(func() error { return broken }), broken)
	must.NoError(t, table.Enact(func() error {
		table.Put(web, addrs(2), time.Minute) // while it is being brought in force
		return nil
	}))
	must.NoError(t, table.Enact(enact))
	must.Eq(t, 2, calls)
	table.Put(web, addrs(1, 2), time.Minute)
	must.NoError(t, table.Enact(enact))
	must.Eq(t, 2, calls)
}

// A restarted daemon goes on with what is in force, and no longer.
func TestRestart(t *testing.T) {
	table, c, path := fresh(t)
	web := key("web", "api.example.com")
	web.Asker = "z1/w1"
	table.Put(web, addrs(1, 2), time.Minute)
	for deadline := time.Now().Add(10 * time.Second); len(open(t, path, 0, c).Named()) == 0; { // without Stored
		must.True(t, time.Now().Before(deadline))
		time.Sleep(minPause)
	}
	table.Hold(web, addrs(2), 2*time.Minute)
	must.NoError(t, table.Stored())
	c.pass(time.Minute)
	again := open(t, path, 0, c)
	must.Eq(t, addrs(2), again.Known(web))
	must.Eq(t, table.Known(web), again.Known(web))
	c.pass(time.Minute)
	must.SliceEmpty(t, open(t, path, 0, c).Keys())
	// Nothing that is on disk stays for ever.
	must.NoError(t, table.Stored())
	c.Time = epoch.Add(-1000 * time.Hour)
	early := open(t, path, 0, c)
	must.SliceLen(t, 2, early.Known(web))
	c.pass(MaxLife)
	must.SliceEmpty(t, early.Known(web))
	must.NoError(t, os.WriteFile(path, []byte("[{"), 0o600))
	must.SliceEmpty(t, open(t, path, 0, c).Keys())
}

// model is the table in the simplest way: when each address ends.
type model map[Key]map[netip.Addr]struct{ until, held time.Time }

// The law: an address is in force exactly while its last answer holds or a connection was seen
// within HoldLife; whatever happens in whatever order, restarts too.
func TestNothingStaysWithoutReason(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		c, path := &clock{epoch}, filepath.Join(dir, fmt.Sprint(n))
		table, err := Open(path, 0, c.now, hclog.NewNullLogger())
		must.NoError(t, err)
		defer func() { _ = table.Stored() }() // nothing is written after the test
		want := model{}
		keys := []Key{key("web", "a.example"), key("web", "b.example"), key("sql", "a.example"), {Asker: "z/w", Service: fabric.Ref{Domain: "shop", Name: "web"}, Name: "a.example"}}
		drawKey := func(t *rapid.T) Key { return rapid.SampledFrom(keys).Draw(t, "key") }
		drawAddrs := func(t *rapid.T) []netip.Addr {
			return addrs(rapid.SliceOfNDistinct(rapid.IntRange(0, 5), 1, 4, rapid.ID).Draw(t, "addresses")...)
		}
		t.Repeat(map[string]func(*rapid.T){
			"answer": func(t *rapid.T) {
				k, life := drawKey(t), Life(time.Duration(rapid.IntRange(0, 7200).Draw(t, "ttl"))*time.Second)
				list := drawAddrs(t)
				must.Eq(t, list, table.Put(k, list, life))
				if want[k] == nil {
					want[k] = map[netip.Addr]struct{ until, held time.Time }{}
				}
				for _, a := range list {
					l := want[k][a]
					if u := c.Add(life); u.After(l.until) {
						l.until = u
					}
					want[k][a] = l
				}
			},
			"use": func(t *rapid.T) {
				k := drawKey(t)
				list := drawAddrs(t)
				table.Hold(k, list, HoldLife)
				for _, a := range list {
					if l, has := want[k][a]; has {
						if c.Before(l.until) || c.Before(l.held) {
							l.held = c.Add(HoldLife)
							want[k][a] = l
						}
					}
				}
			},
			"time":   func(t *rapid.T) { c.pass(time.Duration(rapid.IntRange(1, 5000).Draw(t, "seconds")) * time.Second) },
			"expire": func(*rapid.T) { table.Expire() },
			"restart": func(*rapid.T) {
				must.NoError(t, table.Stored())
				if table, err = Open(path, 0, c.now, hclog.NewNullLogger()); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				for _, k := range keys {
					var live []netip.Addr
					for a, l := range want[k] {
						if c.Before(l.until) || c.Before(l.held) {
							live = append(live, a)
						} else {
							delete(want[k], a) // ended for good
						}
					}
					slices.SortFunc(live, netip.Addr.Compare)
					must.Eq(t, live, table.Known(k))
				}
			},
		})
	})
}

// Whatever the file has, the table is within its limits and ends in time, and writes what it can
// read.
func FuzzFile(f *testing.F) {
	table, _, path := fresh(f)
	table.Put(key("web", "api.example.com"), addrs(1, 2), time.Minute)
	must.NoError(f, table.Stored())
	good, err := os.ReadFile(path)
	must.NoError(f, err)
	f.Add(good)
	f.Add([]byte(`[{"service":"a/b","name":"x","addresses":[{"address":"::ffff:1.2.3.4","until":99999999999999},{"address":"","until":-1}]}]`))
	f.Add([]byte(`[{"name":"x","addresses":null},null]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "names.json")
		must.NoError(t, os.WriteFile(path, raw, 0o600))
		c := &clock{epoch}
		table := open(t, path, time.Minute, c)
		must.LessEq(t, MaxAsker, len(table.Keys()))
		for _, n := range table.Named() {
			must.LessEq(t, MaxAddresses*len(table.Keys()), len(n.Addresses))
		}
		_ = table.saved.Call()
		must.Eq(t, table.Named(), open(t, path, time.Minute, c).Named())
		c.pass(MaxLife + time.Minute)
		must.SliceEmpty(t, table.Named())
	})
}

func BenchmarkPut(b *testing.B) {
	table, c, _ := fresh(b)
	for n := range MaxNames - 1 {
		table.put(key("web", fmt.Sprint(n)), addrs(1, 2, 3), time.Hour)
	}
	web := key("web", "api.example.com")
	for n := 0; b.Loop(); n++ {
		c.pass(time.Second)
		table.Put(web, addrs(n%MaxAddresses+100), time.Hour)
	}
}

// An address that has ended is no more in force, whether it was removed or not: when it is answered
// again, it is brought in force again.
func TestAddressThatEndedIsNewAgain(t *testing.T) {
	table, c, _ := fresh(t)
	web := key("web", "api.example.com")
	enacted := func() (times int) {
		must.NoError(t, table.Enact(func() error { times++; return nil }))
		return times
	}
	table.Put(web, addrs(1), time.Minute)
	must.Eq(t, 1, enacted())
	table.Put(web, addrs(1), time.Minute)
	must.Eq(t, 0, enacted())
	c.pass(time.Minute)
	must.SliceEmpty(t, table.Named()) // so whoever enacts for another reason takes it away
	table.Put(web, addrs(1), time.Minute)
	must.Eq(t, 1, enacted())
}

// However many addresses the names of a service have, or those of all services, they are bounded,
// and the newest are there.
func TestAddressesOfManyNamesAreBounded(t *testing.T) {
	table, c, path := fresh(t)
	put := func(service string, names int) {
		for n := range names {
			c.pass(time.Millisecond)
			var list []netip.Addr
			for i := range MaxAddresses {
				list = append(list, netip.AddrFrom4([4]byte{192, byte(n >> 8), byte(n), byte(i)}))
			}
			must.SliceLen(t, MaxAddresses, table.Put(key(service, fmt.Sprintf("n%d.example.com", n)), list, time.Hour))
		}
	}
	count := func(table *Table, service string) (n int) {
		for _, k := range table.Keys() {
			if service == "" || k.Service.Name == service {
				n += len(table.Known(k))
			}
		}
		return n
	}
	put("web", MaxServiceAddresses/MaxAddresses+7)
	must.Eq(t, MaxServiceAddresses, count(table, "web"))
	must.StrContains(t, table.Full()[0], "the outside names of service shop/web have more than 4096 addresses")
	for n := range MaxAskerAddresses/MaxServiceAddresses + 1 {
		put(fmt.Sprintf("other%d", n), MaxServiceAddresses/MaxAddresses)
	}
	must.Eq(t, MaxAskerAddresses, count(table, ""))
	must.Eq(t, MaxServiceAddresses, count(table, "other4"))
	must.NoError(t, table.Stored())
	must.Eq(t, MaxAskerAddresses, count(open(t, path, 0, c), ""))
	// What has ended makes room.
	c.pass(2 * time.Hour)
	must.True(t, table.Expire())
	must.MapEmpty(t, table.sizes)
}
