// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/wellknown"
)

// courseSite is a link of a node to w2, and the time.
type courseSite struct {
	t        *testing.T
	links    *Links
	end      tunnel
	now      time.Time
	main, by link.PeerStatus // of the first device, and of the detour
}

func newCourseSite(t *testing.T) *courseSite {
	key := func() []byte {
		private, err := link.GenerateKey()
		must.NoError(t, err)
		public := private.Public()
		return public[:]
	}
	s := &courseSite{t: t, now: time.Now(), links: newTunnelLinks(t, t.TempDir())}
	s.links.replacement = newReplacement(24 * time.Hour)
	must.NoError(t, s.links.restore(linksState{}))
	s.links.tried = true
	s.end.Hop = ZonePeer
	s.end.to.Node = fabric.Node{Kind: fabric.KindWorkload, Zone: "z", Name: "w2", Pool4: netip.MustParsePrefix("100.64.2.0/24"), Pool6: netip.MustParsePrefix("fd5f:0:0:2::/64")}
	s.end.to.Link = fabric.Link{PublicKey: key(), Detour: &fabric.Detour{PublicKey: key(), Ports: map[fabric.NodeID]uint16{{}: 51899}}}
	must.True(t, s.links.assignDetours())
	s.main = link.PeerStatus{Peer: link.Peer{PublicKey: s.end.to.Link.Key(), AllowedIPs: pools(s.end.to)}, LastHandshake: s.now}
	s.by = link.PeerStatus{Peer: link.Peer{PublicKey: s.end.to.Link.Detour.Key()}}
	return s
}

func (s *courseSite) status() []link.DeviceStatus {
	return []link.DeviceStatus{
		{Name: wellknown.LinkInterface(0), Peers: []link.PeerStatus{s.main}},
		{Name: wellknown.DetourInterface(0), Peers: []link.PeerStatus{s.by}},
	}
}

// after has time pass, in which the peer sends on the first device so many bytes, and looks again.
func (s *courseSite) after(d time.Duration, bytes uint64) *course {
	s.now = s.now.Add(d)
	s.main.ReceivedBytes += bytes
	s.links.follow([]tunnel{s.end}, s.status(), s.now)
	return s.links.courses[s.end.pair()]
}

func (s *courseSite) shake(p *link.PeerStatus) { p.LastHandshake = s.now.Add(time.Millisecond) }

// The other end replaces its key: this one leaves the device as soon as the detour works, takes the
// new key over when it has left, and returns when the device has shaken hands with it.
func TestCourseOfOthersKey(t *testing.T) {
	s := newCourseSite(t)
	must.Nil(t, s.after(0, 0))
	s.end.to.Link.Detour.Phase = fabric.LeaveLinks
	must.False(t, s.after(time.Second, 0).detour, must.Sprint("the detour has not shaken hands"))
	s.shake(&s.by)
	must.True(t, s.after(time.Second, 0).detour)

	old := s.end.to.Link.Key()
	s.end.to.Link.PublicKey, s.end.to.Link.Detour.Phase = append([]byte{}, s.end.to.Link.PublicKey...), fabric.ReturnToLinks
	s.end.to.Link.PublicKey[0] ^= 1
	must.Eq(t, link.Key(old), s.after(time.Millisecond, 0).key, must.Sprint("what it sent before is under way"))
	must.Eq(t, link.Key(s.end.to.Link.Key()), s.after(2*time.Second, 0).key)
	s.main = link.PeerStatus{Peer: link.Peer{PublicKey: s.end.to.Link.Key()}}
	must.True(t, s.after(time.Minute, 0).detour, must.Sprint("the device has not shaken hands"))
	s.shake(&s.main)
	s.shake(&s.by)
	must.False(t, s.after(time.Second, 0).detour)

	// The detour outlasts that by a while.
	s.end.to.Link.Detour.Phase = ""
	must.NotNil(t, s.after(time.Second, 0))
	s.by.ReceivedBytes++
	must.NotNil(t, s.after(2*settled, 0))
	must.NotNil(t, s.after(settled/2, 0))
	must.Nil(t, s.after(settled, 0))
}

// Where there is no detour, the new key is taken over without it.
func TestKeyIsTakenOverWithoutDetour(t *testing.T) {
	s := newCourseSite(t)
	s.end.to.Link.Detour.Phase = fabric.LeaveLinks
	must.False(t, s.after(0, 0).detour)
	s.end.to.Link.PublicKey, s.end.to.Link.Detour.Phase = append([]byte{}, s.end.to.Link.PublicKey...), fabric.ReturnToLinks
	s.end.to.Link.PublicKey[0] ^= 1
	must.NotEq(t, link.Key(s.end.to.Link.Key()), s.after(time.Second, 0).key)
	must.Eq(t, link.Key(s.end.to.Link.Key()), s.after(settled, 0).key)

	// A daemon that was started meanwhile knows from the device which key it has.
	again := newCourseSite(t)
	again.main.LastHandshake = again.now
	again.end.to.Link.PublicKey[0] ^= 1
	again.end.to.Link.Detour.Phase = fabric.ReturnToLinks
	must.Eq(t, again.main.PublicKey, again.after(0, 0).key)
}

// This node replaces its key when nothing comes by the devices any more, for whoever is there.
func TestWhoIsAwaited(t *testing.T) {
	s := newCourseSite(t)
	list := []tunnel{s.end}
	turn := func() (publish bool) {
		t.Helper()
		var err error
		switch s.links.phase {
		case "":
			publish, err = s.links.leave(list, s.status(), false, true, s.now)
		case fabric.LeaveLinks:
			publish, err = s.links.replace(list, s.status(), s.now)
		default:
			publish, err = s.links.finish(list, s.now)
		}
		must.NoError(t, err)
		return publish
	}
	// The phase began so long ago.
	lasts := func(d time.Duration) { s.links.began = clock.Now().Add(-d) }

	// An end of an earlier version defers it, as long as it is there.
	detour := s.end.to.Link.Detour
	list[0].to.Link.Detour = nil
	must.False(t, turn())
	must.Eq(t, []string{"z/w2, whose version knows no replacement of keys"}, s.links.waiting)
	list[0].to.Link.Detour = detour
	key, detourKey := s.links.key, s.links.detourKey
	must.True(t, turn())
	must.NotEq(t, detourKey, s.links.detourKey)

	lasts(settled)
	s.after(time.Second, 100)
	must.False(t, turn())
	must.Eq(t, []string{"z/w2, which does not answer by its second port"}, s.links.waiting)
	s.shake(&s.by)
	must.True(t, s.after(time.Second, 100).detour)
	for range 10 {
		s.after(time.Second, 100)
		must.False(t, turn())
		must.Eq(t, []string{"z/w2, which still sends to the old key"}, s.links.waiting)
	}
	s.after(settled, 0)
	must.True(t, turn())
	must.Eq(t, fabric.ReturnToLinks, s.links.phase)
	must.NotEq(t, key, s.links.key)
	kept, _, err := s.links.file.Read()
	must.NoError(t, err)
	must.Eq(t, s.links.key.Base64(), kept.Key)
	must.Eq(t, fabric.ReturnToLinks, kept.Phase)

	lasts(time.Second)
	s.shake(&s.main) // with the old key
	s.after(time.Second, 0)
	must.False(t, turn())
	must.Eq(t, []string{"z/w2, which has not answered to the new key"}, s.links.waiting)
	s.links.applied()
	s.main.LastHandshake, s.now = time.Now().Add(time.Second), time.Now().Add(2*time.Second)
	must.False(t, s.after(0, 0).detour)
	s.by.ReceivedBytes++
	s.after(settled, 0)
	must.False(t, turn())
	must.Eq(t, []string{"z/w2, which still sends by its second port"}, s.links.waiting)
	s.after(settled, 0)
	must.True(t, turn())
	must.Eq(t, "", s.links.phase)

	// One that is away, by both devices, is not waited for; one that answers is, for 96 h.
	s.main.LastHandshake, s.by.LastHandshake = time.Time{}, time.Time{}
	must.True(t, turn())
	lasts(time.Second)
	s.after(time.Second, 0)
	must.False(t, turn())
	lasts(patience)
	must.True(t, turn())
	s.links.phase = fabric.LeaveLinks
	s.shake(&s.main)
	s.after(time.Second, 0)
	lasts(fabric.MaxDegraded - time.Minute)
	must.False(t, turn())
	must.ErrorContains(t, s.links.overdue(), "it waits for z/w2, which does not answer by its second port")
	lasts(fabric.MaxDegraded + time.Minute)
	must.True(t, turn())
}

// A key is due after nine to ten tenths of its period.
func TestKeyIsDue(t *testing.T) {
	s := newCourseSite(t)
	for _, period := range []time.Duration{time.Minute, 24 * time.Hour, 10 * 365 * 24 * time.Hour} {
		s.links.period = period
		left := s.links.due().Sub(s.links.made)
		must.Between(t, period*9/10-time.Second, left, period)
	}
	must.Eq(t, desired.Hop{}, s.end.Hop)
}

// A node has as many links as it has ports: detours have what these leave.
func TestDetoursLeavePortsToLinks(t *testing.T) {
	members := tunnelSite(t)
	self := member(members, "a", "p1").Node
	l := newTunnelLinks(t, t.TempDir())
	assign := func(more int) {
		t.Helper()
		for i := range more {
			m := *member(members, "b", "p1")
			m.Name = fmt.Sprintf("q%d-%d", len(members), i)
			members = append(members, m)
		}
		_, err := l.assign(self, members, nil)
		must.NoError(t, err)
		ports := l.Ports()
		must.SliceLen(t, len(tunnels(self, members, nil))+1, ports)
		for _, port := range l.detours {
			ports = append(ports, port)
		}
		slices.Sort(ports)
		must.Eq(t, len(ports), len(slices.Compact(ports)))
	}
	assign(0)
	must.MapLen(t, 5, l.detours)
	assign(35) // of 80 ports, 40 are links'
	must.MapLen(t, 40, l.detours)
	assign(39)
	must.MapLen(t, 1, l.detours)
	assign(0)
	assign(1)
	must.MapEmpty(t, l.detours)
	members = append(members, *member(members, "b", "p1"))
	members[len(members)-1].Name = "last"
	_, err := l.assign(self, members, nil)
	must.ErrorContains(t, err, "no port up to 51899 is left for the link to b/last")
}

// What is on disk stays if it cannot be read.
func TestLinksOnDiskAreCorrupt(t *testing.T) {
	c := &config.Config{DataDir: t.TempDir(), Link: &config.Link{Socket: "/nowhere/link.sock"}}
	l, err := openLinks(c, fabric.KindWorkload, hclog.NewNullLogger())
	must.NoError(t, err)
	kept, _, err := l.file.Read()
	must.NoError(t, err)
	kept.DetourKey = "not a key"
	must.NoError(t, l.file.Write(kept))
	_, err = openLinks(c, fabric.KindWorkload, hclog.NewNullLogger())
	must.ErrorContains(t, err, "read the key of the links' detours from "+l.file.Path)
	again, _, err := l.file.Read()
	must.NoError(t, err)
	must.Eq(t, kept, again)
}
