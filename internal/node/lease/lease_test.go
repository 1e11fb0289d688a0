// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lease

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/testhost"
)

var benchLeases = flag.Int("leases", 1000, "leases in the set during the benchmark")

var epoch = time.Unix(1000, 0).UTC()

// lease of an endpoint at the n-th address, issued some seconds after epoch.
func leaseOf(endpoint string, n, issued int) Lease {
	a := fabric.Admission{
		Endpoint: endpoint, Service: fabric.Ref{Domain: "app", Name: "web"},
		IPv4: netip.AddrFrom4([4]byte{100, 64, 0, byte(n)}), IPv6: netip.AddrFrom16([16]byte{0xfd, 15: byte(n)}),
		Issued: epoch.Add(time.Duration(issued) * time.Second), Expires: epoch.Add(time.Hour),
	}
	payload, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	return Lease{Request: fabric.Request{Admission: fabric.Signed{Payload: payload, Signature: []byte{1}}}, Admission: a}
}

// Whatever comes in whatever order, and across restarts: an endpoint has its youngest admission,
// and an address one holder.
func TestLaws(t *testing.T) {
	dir, runs := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		path := filepath.Join(dir, fmt.Sprint(runs))
		set, err := Open(path, nil, hclog.NewNullLogger())
		must.NoError(t, err)
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			le := leaseOf(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "endpoint"),
				rapid.IntRange(1, 3).Draw(t, "address"), rapid.IntRange(0, 9).Draw(t, "issued"))
			before := set.All(epoch)
			changed := set.Accept(le)
			_, held := set.InForce(le.Request, epoch)
			if changed {
				must.True(t, held)
			} else {
				must.Eq(t, before, set.All(epoch))
			}
			if rapid.Bool().Draw(t, "restart") {
				set.Save()()
				set, err = Open(path, nil, hclog.NewNullLogger())
				must.NoError(t, err)
			}
			at := map[netip.Addr]bool{}
			for _, le := range set.All(epoch) {
				must.False(t, at[le.Admission.IPv4])
				at[le.Admission.IPv4] = true
			}
		}
	})
}

// Of two admissions for one address the one issued later wins, in whatever order they come, and
// whether or not what came is kept or has ended: after the later one, the earlier one is refused.
func TestLatestWins(t *testing.T) {
	dir, runs := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		set, err := Open(filepath.Join(dir, fmt.Sprint(runs)), nil, hclog.NewNullLogger())
		must.NoError(t, err)
		latest := map[netip.Addr]fabric.Admission{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			le := leaseOf(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "endpoint"),
				rapid.IntRange(1, 3).Draw(t, "address"), rapid.IntRange(0, 9).Draw(t, "issued"))
			a := le.Admission
			was, known := latest[a.IPv4]
			wins := !known || a.Issued.After(was.Issued) || a.Issued.Equal(was.Issued) && a.Endpoint == was.Endpoint
			must.Eq(t, wins, set.Hear(a, epoch))
			if wins {
				latest[a.IPv4] = a
				if rapid.Bool().Draw(t, "kept") {
					set.Accept(le)
				}
			}
			if rapid.Bool().Draw(t, "ends") {
				set.Remove(func(le Lease) bool { return le.Admission.Endpoint == a.Endpoint })
			}
			for _, held := range set.All(epoch) {
				must.False(t, held.Admission.Issued.After(latest[held.Admission.IPv4].Issued))
			}
		}
		// What has expired counts no longer.
		for addr := range latest {
			earlier := leaseOf("d", int(addr.As4()[3]), -1).Admission
			must.False(t, set.Hear(earlier, epoch))
		}
		for addr, a := range latest {
			earlier := leaseOf("d", int(addr.As4()[3]), -1).Admission
			must.True(t, set.Hear(earlier, a.Expires))
		}
	})
}

// A crash at any time brings back nothing that has ended, and loses only what came since the last
// Save.
func TestCrash(t *testing.T) {
	dir, runs := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		path := filepath.Join(dir, fmt.Sprint(runs))
		set, err := Open(path, nil, hclog.NewNullLogger())
		must.NoError(t, err)
		saved := map[string]bool{} // endpoints
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			endpoint := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "endpoint")
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				set.Accept(leaseOf(endpoint, rapid.IntRange(1, 3).Draw(t, "address"), rapid.IntRange(0, 9).Draw(t, "issued")))
			case 1:
				set.Remove(func(le Lease) bool { return le.Admission.Endpoint == endpoint })
			case 2:
				set.Save()()
				for _, le := range set.All(epoch) {
					saved[le.Admission.Endpoint] = true
				}
			}
			held := map[string]Lease{}
			for _, le := range set.All(epoch) {
				held[le.Admission.Endpoint] = le
			}
			maps.DeleteFunc(saved, func(endpoint string, _ bool) bool { _, still := held[endpoint]; return !still })
			next, err := Open(path, nil, hclog.NewNullLogger())
			must.NoError(t, err)
			for _, le := range next.All(epoch) {
				now, still := held[le.Admission.Endpoint]
				must.True(t, still, must.Sprint("endpoint ", le.Admission.Endpoint, " has ended"))
				must.False(t, le.Admission.Issued.After(now.Admission.Issued))
			}
			for endpoint := range saved {
				_, has := next.Get(endpoint)
				must.True(t, has, must.Sprint("endpoint ", endpoint, " was saved"))
			}
		}
	})
}

// BenchmarkAccept adds a lease to those of -leases endpoints, until it is on disk.
func BenchmarkAccept(b *testing.B) {
	set, err := Open(filepath.Join(b.TempDir(), "leases.json"), nil, hclog.NewNullLogger())
	must.NoError(b, err)
	accept := func(i, issued int) {
		le := leaseOf(fmt.Sprint("endpoint-", i), 0, issued)
		le.Admission.IPv4, le.Admission.IPv6 = netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})
		le.Request.Certificate = [][]byte{make([]byte, 700), make([]byte, 700)} // as Vault issues them
		set.Accept(le)
	}
	for i := range *benchLeases {
		accept(i, 0)
	}
	set.Save()()
	issued := 0
	for b.Loop() {
		issued++
		accept(0, issued)
		set.Save()()
	}
}

// BenchmarkAll lists -leases leases, as for each change of a switch.
func BenchmarkAll(b *testing.B) {
	set, err := Open(filepath.Join(b.TempDir(), "leases.json"), nil, hclog.NewNullLogger())
	must.NoError(b, err)
	for i := range *benchLeases {
		le := leaseOf(fmt.Sprint("endpoint-", i), 0, 0)
		le.Admission.IPv4, le.Admission.IPv6 = netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})
		set.Accept(le)
	}
	for b.Loop() {
		must.Len(b, *benchLeases, set.All(epoch))
	}
}

// What a crash of the machine leaves must not keep a daemon from starting.
func TestUnreadableFileIsAnEmptySet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	for _, content := range []string{"", "{", "null", "\x00\x00"} {
		must.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		set, err := Open(path, nil, hclog.NewNullLogger())
		must.NoError(t, err)
		must.SliceEmpty(t, set.All(epoch))
		set.Accept(leaseOf("a", 1, 0))
	}
}

func TestHeldIsTheVeryRequest(t *testing.T) {
	set, err := Open(filepath.Join(t.TempDir(), "leases.json"), nil, hclog.NewNullLogger())
	must.NoError(t, err)
	le := leaseOf("a", 1, 0)
	_, held := set.InForce(le.Request, epoch)
	must.False(t, held)
	set.Accept(le)
	a, held := set.InForce(le.Request, epoch)
	must.True(t, held)
	must.Eq(t, le.Admission, a)
	forged := le.Request
	forged.Admission.Signature = []byte{2}
	_, held = set.InForce(forged, epoch)
	must.False(t, held)
	_, held = set.InForce(le.Request, epoch.Add(time.Hour))
	must.False(t, held) // expired
	_, held = set.InForce(fabric.Request{}, epoch)
	must.False(t, held)
}

// What cannot be written to disk is in force, and what was removed is gone; both are written later.
func TestFullDisk(t *testing.T) {
	disk := testhost.NewDisk(t, 2)
	path := filepath.Join(disk.Dir, "leases.json")
	set, err := Open(path, nil, hclog.NewNullLogger())
	must.NoError(t, err)
	must.True(t, set.Accept(leaseOf("a", 1, 0)))
	must.NoError(t, set.Stored())
	disk.Fill()
	must.True(t, set.Accept(leaseOf("b", 2, 0)))
	must.ErrorContains(t, set.Stored(), "no space left on device")
	must.Len(t, 1, set.Remove(func(le Lease) bool { return le.Admission.Endpoint == "a" }))
	must.Len(t, 1, set.All(epoch))
	stored, err := Open(path, nil, hclog.NewNullLogger())
	must.NoError(t, err)
	_, has := stored.Get("a")
	must.True(t, has, must.Sprint("the file before is whole"))
	disk.Free()
	must.NoError(t, set.Stored())
	stored, err = Open(path, nil, hclog.NewNullLogger())
	must.NoError(t, err)
	must.Eq(t, len(set.All(epoch)), len(stored.All(epoch)))
	_, has = stored.Get("b")
	must.True(t, has)
}

// In an outage, what was in force when it began stays so beyond its end, and what came later does
// not: it ends with its admission, as what had ended before. A restart in between changes nothing.
func TestOutage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	var began time.Time
	open := func() *Set {
		set, err := Open(path, func() time.Time { return began }, hclog.NewNullLogger())
		must.NoError(t, err)
		return set
	}
	set := open()
	accept := func(endpoint string, n, issued int, life, since time.Duration) Lease {
		le := leaseOf(endpoint, n, issued)
		le.Admission.Expires = le.Admission.Issued.Add(life)
		payload, err := json.Marshal(le.Admission)
		must.NoError(t, err)
		le.Request.Admission.Payload, le.Since = payload, epoch.Add(since)
		must.True(t, set.Accept(le))
		return le
	}
	ended := accept("ended", 1, 0, time.Minute, 0)
	held := accept("held", 2, 0, time.Hour, 0)
	began = epoch.Add(10 * time.Minute)
	late := accept("late", 3, 0, time.Hour, 11*time.Minute)
	renewed := accept("held", 2, 1000, time.Hour, 1000*time.Second)
	must.NoError(t, set.Stored())

	names := func(now time.Time) (list []string) {
		for _, le := range set.All(now) {
			list = append(list, le.Admission.Endpoint)
		}
		return list
	}
	for range 2 {
		must.Eq(t, []string{"held", "late"}, names(epoch.Add(20*time.Minute)))
		later := epoch.Add(20 * time.Hour)
		must.Eq(t, []string{"held"}, names(later), must.Sprint("the one that had ended does not come back"))
		must.Eq(t, 1, set.Honoured(later))
		for _, le := range []Lease{ended, late, held} {
			_, in := set.InForce(le.Request, later)
			must.False(t, in, must.Sprint("endpoint ", le.Admission.Endpoint))
		}
		_, in := set.InForce(renewed.Request, later)
		must.True(t, in)
		set = open()
	}
	// What an endpoint on another node has under the same ID was not in force before.
	moved := leaseOf("held", 2, 2000)
	moved.Admission.Node, moved.Since = "other", epoch.Add(2000*time.Second)
	must.True(t, set.Accept(moved))
	must.SliceEmpty(t, names(epoch.Add(20*time.Hour)))
	began = time.Time{}
	must.SliceEmpty(t, names(epoch.Add(20*time.Hour)))
}
