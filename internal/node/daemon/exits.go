// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/trust/roster"
	"github.com/sif-project/sif/internal/wellknown"
)

// Packets to the outside that carry the mark of a processor of the own zone are led to its link,
// and nowhere else:
//
//	5099: to <own pool> lookup main
//	5100: from all fwmark <slot's mark> lookup <slot's table>    default dev <slot's link>
//	5101: from all fwmark <any slot's mark> lookup 5356          blackhole default
//
// `sif link`, or the kernel's devices, keep the default routes, which end with their device. What a
// table does not take then is dropped by the last rule: never does a marked packet leave by the
// main table.
//
// What is for the node's endpoints goes to them, whatever its mark. The node's firewall gives what
// comes by a link the link's mark, for reverse-path filters: they ask by which interface a packet
// with the mark would go to the sender, and the answer is the link. The kernel's asks so because
// of src_valid_mark, firewalld's for IPv6 always, also of the packets that endpoints send.
const (
	inwardPriority   = wellknown.ExitPriority - 1
	unroutedPriority = wellknown.ExitPriority + 1
)

// unroutedTable is the table after those of the slots.
var unroutedTable = wellknown.ExitTable(wellknown.MaxExits)

// Exit is a processor of the own zone by whose link packets can leave the fabric.
type Exit struct {
	Processor fabric.NodeID
	Mark      uint32 // of packets that go there
	Interface string // of the link
	Live      bool   // it answered within the last second, through the link
	Silent    bool   // it did not; neither, if that is not known yet
	Draining  bool   // new flows shall leave by others
}

// Exits returns the processors of the own zone to which this node leads packets with a mark, in
// order: those that have a switch and to which there is a link.
func (n *Node) Exits() []Exit {
	if n.Links == nil || !n.Kind.Has(fabric.KindWorkload) {
		return nil
	}
	exits := n.Links.exits(n.Self, n.Roster.Members())
	live := n.prober.Live()
	for i, x := range exits {
		lives, known := live[desired.Hop{Processor: x.Processor}]
		exits[i].Live, exits[i].Silent = lives, known && !lives
	}
	return exits
}

// OnExits has f called when an exit has come to life or died. It must be called before Run.
func (n *Node) OnExits(f func()) { n.prober.OnLife(f) }

// exits returns the exits of a workload node.
func (l *Links) exits(self fabric.Node, members []roster.Member) []Exit {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []Exit
	for _, m := range processors(self, members) {
		if s, ok := l.slots[desired.Hop{Processor: m.ID()}]; ok && s.exit() >= 0 && len(m.Link.PublicKey) > 0 {
			list = append(list, Exit{Processor: m.ID(), Mark: wellknown.ExitMark(s.exit()), Interface: s.device(), Draining: m.Draining})
		}
	}
	slices.SortFunc(list, func(a, b Exit) int { return fabric.CompareNodeIDs(a.Processor, b.Processor) })
	return list
}

// marks returns the marks of the exits by the interfaces of their links.
func (l *Links) marks() map[string]uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	marks := map[string]uint32{}
	for _, s := range l.slots {
		if s.exit() >= 0 {
			marks[s.device()] = wellknown.ExitMark(s.exit())
		}
	}
	return marks
}

// exit returns the number among exits of the processor at the other end; -1 if it can have none.
func (s slot) exit() int {
	if s.Number < 1 || s.Number > wellknown.MaxExits {
		return -1
	}
	return s.Number - 1
}

// table returns the routing table of the link to a peer of a workload node; 0 if it has none.
func (s slot) table() int {
	if s.exit() < 0 {
		return 0
	}
	return wellknown.ExitTable(s.exit())
}

// exitRouting is what must be of the node's routing besides the links' default routes.
func exitRouting(self fabric.Node, exits []Exit) kernel.State {
	s := kernel.State{OnlyRules: true}
	if len(exits) == 0 {
		return s
	}
	for _, x := range exits {
		table := wellknown.ExitTable(int(x.Mark - wellknown.ExitMark(0)))
		s.Rules = append(s.Rules, kernel.Rule{Priority: wellknown.ExitPriority, Mark: x.Mark, Mask: ^uint32(0), Table: table})
	}
	s.Rules = append(s.Rules, kernel.Rule{Priority: unroutedPriority, Mark: wellknown.ExitMark(0), Mask: ^uint32(wellknown.MaxExits - 1), Table: unroutedTable})
	for _, pool := range []netip.Prefix{self.Pool4, self.Pool6} {
		s.Rules = append(s.Rules, kernel.Rule{Priority: inwardPriority, To: pool.Masked()})
	}
	for _, anywhere := range link.Anywhere {
		s.Blackholes = append(s.Blackholes, kernel.Blackhole{Prefix: anywhere, Table: unroutedTable, Priority: 1 << 20})
	}
	return s
}

// routeExits compares the routing of packets to the outside with what is there, puts back what
// differs, and reports what of others stands before it.
func (n *Node) routeExits(members []roster.Member) error {
	l := n.Links
	if !n.Kind.Has(fabric.KindWorkload) {
		return nil
	}
	exits := l.exits(n.Self, members)
	want := exitRouting(n.Self, exits)
	changes, err := kernel.Repair(want)
	same := reflect.DeepEqual(want, l.routing)
	l.routing = want
	if same {
		n.Repaired(changes)
	} else if len(changes) > 0 {
		n.Log.Info("the ways to the outside were set up", logkey.Repaired, changes)
	}
	before, looking := takers(n.Self, exits)
	n.Report("exits", before)
	if err == nil {
		err = looking
	}
	if err != nil {
		return fmt.Errorf("route packets to the outside: %w", err)
	}
	return nil
}

// takers returns a finding for each routing rule of others that takes packets to the outside before
// ours do.
func takers(self fabric.Node, exits []Exit) ([]string, error) {
	var packets []kernel.Marked
	for _, x := range exits {
		packets = append(packets, kernel.Marked{
			Mark: x.Mark, From: []netip.Prefix{self.Pool4.Masked(), self.Pool6.Masked()},
			By: func(name string) bool {
				return strings.HasPrefix(name, wellknown.InterfacePrefix) && !strings.HasPrefix(name, wellknown.ReservedPrefix)
			},
		})
	}
	if len(packets) == 0 {
		return nil, nil
	}
	rules, err := kernel.Takers(packets, wellknown.ExitPriority)
	var list []string
	for _, r := range rules {
		list = append(list, fmt.Sprintf("%s comes before the rules that lead workloads' packets to the outside to the zone's processors, and may take them elsewhere: "+
			"see \"ip rule\", and give it a priority above %d, or let it spare the mark %#x/%#x", r, unroutedPriority, wellknown.ExitMark(0), ^uint32(wellknown.MaxExits-1)))
	}
	return list, err
}
