// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/clock"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/trust/roster"
	"github.com/sif-project/sif/internal/wellknown"
)

// replacement is how a node replaces the key of its links, and what it does while another one
// replaces its key. The phases are those of fabric.Detour:
//
//	       due        -> LeaveLinks     with a new key of the detours, if nobody uses them
//	all have left     -> ReturnToLinks  with the new key, in the devices before it is published
//	all have returned -> none
//
// Each phase is on disk before it is in force. A daemon that is started again goes on from there;
// what the devices do meanwhile they do without it.
type replacement struct {
	period time.Duration // between two keys; 0: the key stays
	settle time.Duration // for how long nothing must have come by a device that is not used any more

	made      time.Time // when the key was made
	phase     fabric.KeyPhase
	began     time.Time // the phase
	detourKey link.PrivateKey
	detours   map[int]uint16 // the UDP ports of the detours, by the number of the device

	self    fabric.Node
	courses map[pair]*course // of the links that have a detour
	waiting []string         // for whom, and why

	// Of the one who keeps the links.
	diverted map[string]bool // the devices that may have filters
	tried    bool            // to divert
	cannot   error           // why nothing can be diverted
}

// settled is replacement.settle.
const settled = 5 * time.Second

// turnInterval is how often the links are looked at while a key is replaced.
const turnInterval = 500 * time.Millisecond

// patience is how long a node is waited for that answers by neither device.
const patience = 30 * time.Second

func newReplacement(period time.Duration) replacement {
	return replacement{period: period, settle: settled, detours: map[int]uint16{}, courses: map[pair]*course{}, diverted: map[string]bool{}}
}

// restore takes over what is on disk. All devices may have filters.
func (l *Links) restore(kept linksState) (err error) {
	l.made, l.phase, l.began = kept.Made, kept.Phase, kept.Began
	maps.Copy(l.detours, kept.Detours)
	if l.made.IsZero() {
		l.made = clock.Now()
	}
	for _, s := range l.slots {
		l.diverted[s.device()] = true
	}
	if kept.DetourKey == "" {
		l.detourKey, err = link.GenerateKey()
	} else {
		l.detourKey, err = link.ParsePrivateKey(kept.DetourKey)
	}
	if err != nil {
		return fmt.Errorf("read the key of the links' detours from %s: %w", l.file.Path, err)
	}
	return nil
}

// assignDetours gives the detour of each device a port, as long as there are any, and reports
// whether they differ then. The caller must hold mu.
func (l *Links) assignDetours() (changed bool) {
	numbers := map[int]bool{}
	for _, s := range l.slots {
		numbers[s.Number] = true
		if _, has := l.detours[s.Number]; !has && l.moveDetour(s.Number, nil) {
			changed = true
		}
	}
	before := len(l.detours)
	maps.DeleteFunc(l.detours, func(number int, _ uint16) bool { return !numbers[number] })
	return changed || len(l.detours) != before
}

// moveDetour gives a detour the highest free port that is not among those that other processes
// have, or takes its port away if there is none. The caller must hold mu.
func (l *Links) moveDetour(number int, taken map[uint16]bool) bool {
	delete(l.detours, number)
	own := l.ownPorts()
	for port := uint16(wellknown.LastLinkPort); port >= wellknown.FirstLinkPort; port-- {
		if !own[port] && !taken[port] {
			if l.detours == nil {
				l.detours = map[int]uint16{}
			}
			l.detours[number] = port
			return true
		}
	}
	return false
}

// detour returns what the node publishes of its detours. The caller must hold mu.
func (l *Links) detour() *fabric.Detour {
	if l.detourKey.IsZero() {
		return nil
	}
	key := l.detourKey.Public()
	said := &fabric.Detour{PublicKey: key[:], Ports: map[fabric.NodeID]uint16{}, Phase: l.phase}
	for hop, s := range l.slots {
		port, has := l.detours[s.Number]
		switch {
		case !has:
		case hop.Link == "":
			said.Ports[hop.Processor] = port
		default:
			if said.Tunnels == nil {
				said.Tunnels = map[string]uint16{}
			}
			said.Tunnels[hop.String()] = port
		}
	}
	return said
}

// due returns when the key is to be replaced: at nine to ten tenths of its period, so that nodes
// which began together do not go on together.
func (l *Links) due() time.Time {
	key := l.key.Public()
	spread := float64(l.period/10) * float64(binary.BigEndian.Uint16(key[:])) / (1 << 16)
	return l.made.Add(l.period - time.Duration(spread))
}

// turning reports whether a key is being replaced, by this node or by another one.
func (l *Links) turning() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.phase != "" || len(l.courses) > 0
}

// turn has the links take the course that they must take now, and the replacement of the key its
// next step. It reports whether the node must publish something. ready says whether it could.
func (l *Links) turn(ctx context.Context, self fabric.Node, members []roster.Member, rules []fabric.LinkRule, ready bool) (publish bool, err error) {
	list := ends(self, members, rules)
	l.mu.Lock()
	l.self = self
	others := slices.ContainsFunc(list, func(t tunnel) bool { return t.to.Link.KeyPhase() != "" })
	due := l.phase == "" && l.period > 0 && l.tried && !clock.Now().Before(l.due())
	idle := !due && !others && l.phase == "" && len(l.courses) == 0
	if idle {
		l.waiting = nil
	}
	l.mu.Unlock()
	if idle {
		return false, nil
	}
	status, err := l.backend.Status(ctx)
	if err != nil {
		return false, fmt.Errorf("read the status of the links: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.follow(list, status, now)
	switch {
	case due:
		publish, err = l.leave(list, status, others, ready, now)
	case l.phase == fabric.LeaveLinks:
		publish, err = l.replace(list, status, now)
	case l.phase == fabric.ReturnToLinks:
		publish, err = l.finish(list, now)
	default:
		l.waiting = nil
	}
	return publish, err
}

// follow brings the courses up to date.
func (l *Links) follow(list []tunnel, status []link.DeviceStatus, now time.Time) {
	peers := map[string][]link.PeerStatus{}
	for _, d := range status {
		peers[d.Name] = d.Peers
	}
	peer := func(device string, key link.Key) *link.PeerStatus {
		i := slices.IndexFunc(peers[device], func(p link.PeerStatus) bool { return p.PublicKey == key })
		if i < 0 {
			return nil
		}
		return &peers[device][i]
	}
	there := map[pair]bool{}
	for _, t := range list {
		p, s := t.pair(), l.slots[t.Hop]
		needed := l.phase != "" || t.to.Link.KeyPhase() != ""
		if !l.can(t) || !needed && l.courses[p] == nil {
			continue
		}
		if l.courses[p] == nil {
			l.courses[p] = begin(t, l.made, l.phase == fabric.ReturnToLinks, peers[s.device()], now)
		}
		c := l.courses[p]
		c.follow(t, l.phase, clock.Now().Sub(l.began), peer(s.device(), c.key), peer(wellknown.DetourInterface(s.Number), t.to.Link.Detour.Key()), l.settle, now)
		there[p] = needed || !c.over(l.settle, now)
	}
	maps.DeleteFunc(l.courses, func(p pair, _ *course) bool { return !there[p] }) // and the nodes that are gone
}

// leave begins to replace the key.
func (l *Links) leave(list []tunnel, status []link.DeviceStatus, others, ready bool, now time.Time) (bool, error) {
	l.waiting = nil
	if l.cannot != nil {
		l.waiting = append(l.waiting, l.cannot.Error())
	}
	if !ready {
		l.waiting = append(l.waiting, "the controller, which does not answer")
	}
	l.waiting = append(l.waiting, l.unable(list, status, now)...)
	if len(l.waiting) > 0 {
		return false, nil
	}
	if !others && len(l.courses) == 0 { // its sessions would look fresh, and be none
		key, err := link.GenerateKey()
		if err != nil {
			return false, err
		}
		l.detourKey = key
	}
	return true, l.enter(fabric.LeaveLinks)
}

// unable returns the links that cannot have a detour, and why: those to nodes that are there, but
// of an earlier version, and those without a port.
func (l *Links) unable(list []tunnel, status []link.DeviceStatus, now time.Time) (names []string) {
	live := map[link.Key]bool{}
	for _, d := range status {
		for _, p := range d.Peers {
			live[p.PublicKey] = live[p.PublicKey] || now.Sub(p.LastHandshake) < sessionLife
		}
	}
	for _, t := range list {
		if _, has := l.detours[l.slots[t.Hop].Number]; !has {
			names = append(names, fmt.Sprintf("a free UDP port up to %d for the detour to %s", wellknown.LastLinkPort, t.to.ID()))
		}
		if t.to.Link.Detour == nil && live[t.to.Link.Key()] {
			names = append(names, fmt.Sprintf("%s, whose version knows no replacement of keys", t.to.ID()))
		}
	}
	return names
}

// enter begins a phase.
func (l *Links) enter(phase fabric.KeyPhase) error {
	before, began := l.phase, l.began
	l.phase, l.began = phase, clock.Now()
	if err := l.save(); err != nil {
		l.phase, l.began = before, began
		return err
	}
	return nil
}

// awaited returns the other ends that have not left, or not returned, and why.
func (l *Links) awaited(list []tunnel, done func(*course) (bool, string)) (names []string) {
	lasted := clock.Now().Sub(l.began)
	if lasted > fabric.MaxDegraded {
		return nil
	}
	for _, t := range list {
		c := l.courses[t.pair()]
		if c == nil || !c.alive && lasted >= patience {
			continue // it has no detour, or is away
		}
		if is, why := done(c); !is {
			names = append(names, fmt.Sprintf("%s, which %s", t.to.ID(), why))
		}
	}
	return names
}

// replace replaces the key, if all have left the devices.
func (l *Links) replace(list []tunnel, status []link.DeviceStatus, now time.Time) (bool, error) {
	l.waiting = append(l.unable(list, status, now), l.awaited(list, func(c *course) (bool, string) {
		switch {
		case !c.detour:
			return false, "does not answer by its second port"
		case now.Sub(c.since) < l.settle || now.Sub(c.device.since) < l.settle:
			return false, "still sends to the old key"
		}
		return true, ""
	})...)
	if len(l.waiting) > 0 {
		return false, nil
	}
	key, err := link.GenerateKey()
	if err != nil {
		return false, err
	}
	before, made := l.key, l.made
	l.key, l.made = key, clock.Now()
	if err := l.enter(fabric.ReturnToLinks); err != nil {
		l.key, l.made = before, made
		return false, err
	}
	for _, c := range l.courses {
		c.unsure, c.replacing = true, true
	}
	return true, nil
}

// finish ends the replacement, if all have returned to the devices.
func (l *Links) finish(list []tunnel, now time.Time) (bool, error) {
	l.waiting = l.awaited(list, func(c *course) (bool, string) {
		switch {
		case c.unsure:
			return false, "has not answered to the new key"
		case c.detour || c.wants:
			return false, "replaces its key, too"
		case now.Sub(c.since) < l.settle || now.Sub(c.by.since) < l.settle:
			return false, "still sends by its second port"
		}
		return true, ""
	})
	if len(l.waiting) > 0 {
		return false, nil
	}
	return true, l.enter("")
}

// keyStatus reports the key of the links.
func (l *Links) keyStatus() *api.LinkKeyStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &api.LinkKeyStatus{Made: l.made, Period: l.period, Phase: l.phase, Waiting: slices.Clone(l.waiting)}
}

// overdue returns an error if the key should have been replaced long ago.
func (l *Links) overdue() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.period == 0 || len(l.waiting) == 0 {
		return nil
	}
	since := l.due()
	if l.phase != "" {
		since = l.began
	}
	if late := clock.Now().Sub(since); late > overdueAfter {
		return fmt.Errorf("the key of the node's links is to be replaced for %s; it waits for %s", late.Round(time.Minute), listed(l.waiting))
	}
	return nil
}

// overdueAfter is how late a key may be replaced before the node is not well.
const overdueAfter = time.Hour

func listed(list []string) string {
	if more := len(list) - 3; more > 0 {
		list = append(slices.Clone(list[:3]), fmt.Sprintf("%d more", more))
	}
	return strings.Join(list, "; ")
}
