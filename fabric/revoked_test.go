// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"
)

const oneEndpoint = "00000000-0000-4000-8000-000000000001"

var web = Ref{Domain: "shop", Name: "web"}

func revoking(list ...Revocation) Revocations {
	return Revocations{Fabric: "f"}.With(removedAt.Add(time.Hour), Revocations{Revoked: list})
}

// A revocation ends what it names and nothing else, whenever that was issued. After it was taken
// back, what was issued until then stays ended.
func TestRevokedEnds(t *testing.T) {
	back := removedAt.Add(time.Minute)
	for name, tc := range map[string]struct {
		revocation Revocation
		ends       map[string]bool // by what is looked at
	}{
		"service":             {Revocation{Service: web, Revoked: removedAt}, map[string]bool{"before": true, "after": true}},
		"endpoint":            {Revocation{Endpoint: oneEndpoint, Revoked: removedAt}, map[string]bool{"before": true, "after": true}},
		"other service":       {Revocation{Service: Ref{Domain: "shop", Name: "db"}, Revoked: removedAt}, map[string]bool{}},
		"other endpoint":      {Revocation{Endpoint: "00000000-0000-4000-8000-000000000002", Revoked: removedAt}, map[string]bool{}},
		"certificate":         {Revocation{Serial: "0a:1b", Revoked: removedAt}, map[string]bool{}},
		"service reinstated":  {Revocation{Service: web, Revoked: removedAt, Reinstated: back}, map[string]bool{"before": true, "then": true}},
		"endpoint reinstated": {Revocation{Endpoint: oneEndpoint, Revoked: removedAt, Reinstated: back}, map[string]bool{"before": true, "then": true}},
	} {
		r := revoking(tc.revocation)
		must.NoError(t, r.Check("f"), must.Sprint(name))
		for at, issued := range map[string]time.Time{"before": removedAt.Add(-time.Hour), "then": back, "after": back.Add(time.Millisecond)} {
			want := tc.ends[at] || at == "then" && tc.ends["before"]
			why := r.EndsAdmission(Admission{Endpoint: oneEndpoint, Service: web, Issued: issued})
			must.Eq(t, want, why != "", must.Sprint(name, at, why))
		}
	}
	v, revoked := revoking(Revocation{Serial: "0a:1b", Revoked: removedAt, Reason: "leaked"}).RevokedCertificate("0a:1b")
	must.True(t, revoked)
	must.Eq(t, "certificate 0a:1b was revoked at 2026-03-01T12:00:00Z (leaked)", v.String())
}

func TestRevokedCheck(t *testing.T) {
	for want, v := range map[string]Revocation{
		"exactly one":               {Service: web, Serial: "0a", Revoked: removedAt},
		"does not name exactly":     {Revoked: removedAt},
		"not the ID of an endpoint": {Endpoint: "web-1", Revoked: removedAt},
		"must not be":               {Service: Ref{Name: "web"}, Revoked: removedAt},
		"not a serial number":       {Serial: "0A:1B", Revoked: removedAt},
		"cannot be taken back":      {Serial: "0a:1b", Revoked: removedAt, Reinstated: removedAt.Add(1)},
		"before it was revoked":     {Service: web, Revoked: removedAt, Reinstated: removedAt.Add(-1)},
		`"revoked" is not set`:      {Service: web},
		"200 characters":            {Service: web, Revoked: removedAt, Reason: "two\nlines"},
	} {
		r := Revocations{Fabric: "f", Sequence: 1, Issued: removedAt, Revoked: []Revocation{v}}
		must.ErrorContains(t, r.Check("f"), want)
	}
	twice := Revocation{Service: web, Revoked: removedAt}
	must.ErrorContains(t, Revocations{Fabric: "f", Sequence: 1, Issued: removedAt, Revoked: []Revocation{twice, twice}}.Check("f"), "twice")
	must.ErrorContains(t, Revocations{Fabric: "f", Sequence: 1, Issued: removedAt, Revoked: make([]Revocation, MaxRevoked+1)}.Check("f"), "at most 1000")
}

func TestSerial(t *testing.T) {
	for text, want := range map[string]string{
		"39:DD:2e:90": "39:dd:2e:90", "39-dd-2e-90": "39:dd:2e:90", "39DD2E90": "39:dd:2e:90", "0x9dd": "09:dd", "00:9d": "9d", "00": "00",
	} {
		got, err := ParseSerial(text)
		must.NoError(t, err)
		must.Eq(t, want, got)
	}
	for _, text := range []string{"", "web", "39:dd:2e:9g", "shop/web", "112233445566778899aabbccddeeff001122334455"} {
		_, err := ParseSerial(text)
		must.ErrorContains(t, err, "not the serial number")
	}
	must.Eq(t, "7f:00:01", FormatSerial([]byte{0, 0x7f, 0, 1}))
}

// The next list keeps every revocation in its latest state, in whatever order lists are put
// together, and covers those that it is made of. Nothing that stands is ever forgotten.
func TestRevokedWith(t *testing.T) {
	at := func(n int) time.Time { return removedAt.Add(time.Duration(n) * time.Minute) }
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.Custom(func(t *rapid.T) Revocations {
			var r Revocations
			for range rapid.IntRange(0, 5).Draw(t, "count") {
				v := Revocation{Revoked: at(rapid.IntRange(0, 2).Draw(t, "revoked"))}
				switch rapid.IntRange(0, 2).Draw(t, "kind") {
				case 0:
					v.Service = Ref{Domain: "shop", Name: fmt.Sprint("s", rapid.IntRange(0, 1).Draw(t, "service"))}
				case 1:
					v.Endpoint = oneEndpoint
				case 2:
					v.Serial = "0a"
				}
				if v.Serial == "" && rapid.Bool().Draw(t, "reinstated") {
					v.Reinstated = at(3 + rapid.IntRange(0, 2).Draw(t, "when"))
				}
				r = r.With(removedAt, Revocations{Revoked: []Revocation{v}})
			}
			r.Fabric = "f"
			return r
		})
		a, b := list.Draw(t, "a"), list.Draw(t, "b")
		next := a.With(removedAt, b)
		must.NoError(t, next.Check("f"))
		must.Eq(t, next.Revoked, b.With(removedAt, a).Revoked)
		must.True(t, next.Covers(a, removedAt))
		must.True(t, next.Covers(b, removedAt))
		for _, old := range [][]Revocation{a.Revoked, b.Revoked} {
			for _, v := range old {
				less := next
				less.Revoked = nil
				must.False(t, less.Covers(Revocations{Revoked: []Revocation{v}}, removedAt))
			}
		}
		years := next.With(removedAt.AddDate(5, 0, 0))
		for _, v := range next.Revoked {
			must.Eq(t, v.Standing() && v.Serial == "", years.keeps(v), must.Sprint(v))
		}
	})
}

// Whatever else a list has, each look-up finds what a look at every entry finds.
func TestLookUps(t *testing.T) {
	issued := func(t *rapid.T) time.Time {
		return removedAt.Add(time.Duration(rapid.IntRange(-3, 6).Draw(t, "issued")) * time.Minute)
	}
	rapid.Check(t, func(t *rapid.T) {
		name := func(what string) string { return fmt.Sprint(what, rapid.IntRange(0, 3).Draw(t, what)) }
		var list Revocations
		for range rapid.IntRange(0, 12).Draw(t, "entries") {
			at := removedAt.Add(time.Duration(rapid.IntRange(-2, 2).Draw(t, "at")) * time.Minute)
			v := Revocation{Revoked: at}
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				list.Tombstones = append(list.Tombstones, Tombstone{Node: NodeID{Zone: name("z"), Name: name("n")}, Removed: at})
				continue
			case 1:
				v.Service = Ref{Domain: name("d"), Name: name("s")}
			case 2:
				v.Endpoint = name("e")
			case 3:
				v.Serial = name("0")
			}
			if v.Serial == "" && rapid.Bool().Draw(t, "reinstated") {
				v.Reinstated = at.Add(time.Minute)
			}
			list.Revoked = append(list.Revoked, v)
		}
		list = Revocations{}.With(removedAt, list)
		when, node, service, endpoint, serial := issued(t), NodeID{Zone: name("z"), Name: name("n")}, Ref{Domain: name("d"), Name: name("s")}, name("e"), name("0")
		some := func(match func(Revocation) bool) bool { return slices.ContainsFunc(list.Revoked, match) }
		_, ended := list.Ends(node, when)
		must.Eq(t, slices.ContainsFunc(list.Tombstones, func(d Tombstone) bool { return d.Node == node && !when.After(d.Removed) }), ended)
		_, ended = list.RevokedService(service, when)
		must.Eq(t, some(func(v Revocation) bool { return v.Service == service && v.ends(when) }), ended)
		_, ended = list.RevokedEndpoint(endpoint, when)
		must.Eq(t, some(func(v Revocation) bool { return v.Endpoint == endpoint && v.ends(when) }), ended)
		_, ended = list.RevokedCertificate(serial)
		must.Eq(t, some(func(v Revocation) bool { return v.Serial == serial }), ended)
		must.Eq(t, some(func(v Revocation) bool { return v.Serial != "" }), list.RevokesCertificates())
	})
}

// A list with a revocation that was taken back is newer than one in which it stands.
func TestTakenBackCovers(t *testing.T) {
	standing := revoking(Revocation{Service: web, Revoked: removedAt})
	back := revoking(Revocation{Service: web, Revoked: removedAt, Reinstated: removedAt.Add(time.Minute)})
	must.True(t, back.Covers(standing, removedAt))
	must.False(t, standing.Covers(back, removedAt), must.Sprint("an old list brought a revocation back"))
}
