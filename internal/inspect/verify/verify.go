// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package verify

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/signature"
)

// Fabric is the input of a comparison.
type Fabric struct {
	Graph   *fabric.Graph
	Pointer fabric.Pointer
	Signed  fabric.Signed     // the pointer
	Anchor  *signature.Anchor // nil: nobody checks the signature
	Status  api.Status
	Dumps   map[fabric.NodeID]api.Dump
	Failed  map[fabric.NodeID]string // why there is no dump
	Now     time.Time
}

// Kind is the kind of a difference.
type Kind string

// The kinds of differences.
const (
	Missing Kind = "missing" // it should be there
	Extra   Kind = "extra"   // it should not
	Altered Kind = "altered" // it is there, but says something else
	Broken  Kind = "broken"  // nothing that could be compared: see Enforced
)

// Difference is one entry of a node's data path that differs from the desired state.
type Difference struct {
	Node     string    `json:"node"`
	Layer    api.Layer `json:"layer,omitempty"`
	Kind     Kind      `json:"kind"`
	Entry    string    `json:"entry"`
	Expected string    `json:"expected,omitempty"`
	Enforced string    `json:"enforced,omitempty"`
}

func (d Difference) String() string {
	where := strings.TrimSpace(d.Node + " " + string(d.Layer))
	s := fmt.Sprintf("%s: %s %s", where, d.Kind, d.Entry)
	switch {
	case d.Expected != "" && d.Enforced != "":
		return s + ": must be " + d.Expected + ", is " + d.Enforced
	case d.Expected != "":
		return s + ": must be " + d.Expected
	case d.Enforced != "":
		return s + ": " + d.Enforced
	}
	return s
}

// Report is the result of a comparison.
type Report struct {
	signature.Finding
	Sequence    uint64       `json:"sequence"`
	Nodes       int          `json:"nodes"`
	Entries     int          `json:"entries"` // compared
	Differences []Difference `json:"differences"`
}

// Agrees reports whether every node enforces exactly what it must, and the signature of the
// revision was not refused. Finding tells whether the signature was checked at all.
func (r Report) Agrees() bool { return len(r.Differences) == 0 }

// Compare compares every registered node that has a data path. Differences that explain others come
// first: problems of the revision, then nodes that follow another revision.
func Compare(f Fabric) Report {
	r := Report{Finding: signature.Check(f.Anchor, f.Signed, f.Pointer), Sequence: f.Pointer.Sequence, Nodes: len(Enforcing(f.Status)), Differences: []Difference{}}
	const handedOut = "controller"
	if r.State == signature.Refused {
		r.Differences = append(r.Differences, Difference{Node: handedOut, Kind: Broken, Entry: "signature of the revision", Enforced: r.Why})
	}
	if err := signature.Graph(f.Pointer, f.Graph); err != nil {
		r.Differences = append(r.Differences, Difference{Node: handedOut, Kind: Altered, Entry: "graph", Enforced: err.Error()})
	}
	r.Differences = append(r.Differences, elsewhere(f)...)
	docs, live, topology := Documents(f.Graph, f.Now), Endpoints(f.Status, f.Now), Topology(f)
	for _, n := range Enforcing(f.Status) {
		c := comparison{node: n.ID().String(), layer: layerOf(n)}
		dump, ok := f.Dumps[n.ID()]
		if !ok {
			c.add(Broken, "data path", "", cmp.Or(f.Failed[n.ID()], "not read"))
			r.Differences = append(r.Differences, c.found...)
			continue
		}
		for _, p := range dump.Problems {
			c.add(Broken, "data path", "", p)
		}
		c.compare(expect(n, topology, live, docs, dump.Outside), dump)
		slices.SortFunc(c.found, func(a, b Difference) int {
			return cmp.Or(strings.Compare(a.Entry, b.Entry), strings.Compare(string(a.Kind), string(b.Kind)), strings.Compare(a.Enforced, b.Enforced))
		})
		r.Differences = append(r.Differences, c.found...)
		r.Entries += c.entries
	}
	return r
}

// elsewhere returns the nodes that follow another revision than the one in force.
func elsewhere(f Fabric) (list []Difference) {
	for _, n := range Enforcing(f.Status) {
		sequence, root := n.Sequence, n.Root
		if d, read := f.Dumps[n.ID()]; read { // it is younger than the report
			sequence, root = d.Sequence, d.Root
		}
		if sequence == f.Pointer.Sequence && root == f.Pointer.Root {
			continue
		}
		d := Difference{Node: n.ID().String(), Layer: layerOf(n), Kind: Altered, Entry: "revision", Expected: fmt.Sprint(f.Pointer.Sequence), Enforced: fmt.Sprint(sequence)}
		if sequence == f.Pointer.Sequence {
			d.Expected, d.Enforced = fmt.Sprintf("%d with root %s", sequence, f.Pointer.Root), fmt.Sprintf("%d with root %s", sequence, root)
		}
		list = append(list, d)
	}
	return list
}

// layerOf returns the layer that a node enforces in.
func layerOf(n api.NodeStatus) api.Layer {
	if n.Kind == fabric.KindProcessor {
		return api.LayerSwitch
	}
	return api.LayerEBPF
}

// comparison is the comparison of one node.
type comparison struct {
	node    string
	layer   api.Layer
	entries int
	found   []Difference
}

func (c *comparison) add(kind Kind, entry, want, have string) {
	c.found = append(c.found, Difference{Node: c.node, Layer: c.layer, Kind: kind, Entry: entry, Expected: want, Enforced: have})
}

func (c *comparison) compare(want expected, have api.Dump) {
	peers := map[netip.Addr]string{}
	for _, p := range have.Peers {
		peers[p.Address] = peerText(p)
	}
	wantPeers := map[netip.Addr]string{}
	for a, p := range want.peers {
		wantPeers[a] = peerText(p)
	}
	compareTexts(c, "address", wantPeers, peers)

	guarded, wantGuarded := map[netip.Addr]string{}, map[netip.Addr]string{}
	for _, e := range have.Guarded {
		guarded[e.IPv4] = endpointText(e)
	}
	for a, e := range want.guarded {
		wantGuarded[a] = endpointText(e)
	}
	compareTexts(c, "endpoint", wantGuarded, guarded)

	externals, wantExternals := map[netip.Prefix]string{}, map[netip.Prefix]string{}
	for _, x := range have.External {
		externals[x.Prefix] = externalText(x)
	}
	for p, x := range want.externals {
		wantExternals[p] = externalText(x)
	}
	compareTexts(c, "external", wantExternals, externals)

	ways := map[relation]string{}
	for _, w := range have.Ways {
		ways[relation{w.From, w.To, w.Path}] = sharesText(w.Next)
	}
	compareTexts(c, "ways", want.ways, ways)
	c.compareRules(want, have.Rules)
}

func peerText(p api.DumpPeer) string { return fmt.Sprintf("%q by %s", p.Identity, p.Via) }

func externalText(x api.DumpExternal) string {
	switch {
	case x.Identity == "":
		return "nobody's"
	case x.In && x.Out:
		return fmt.Sprintf("%q, in and out", x.Identity)
	case x.In:
		return fmt.Sprintf("%q, in", x.Identity)
	}
	return fmt.Sprintf("%q, out", x.Identity)
}

func endpointText(e api.DumpEndpoint) string {
	checks := make([]string, len(e.Checks))
	for i, k := range e.Checks {
		checks[i] = fmt.Sprintf("%s/%d", k.Protocol, k.Port)
	}
	slices.Sort(checks)
	return fmt.Sprintf("%q with %s, checked at %v", e.Identity, e.IPv6, slices.Compact(checks))
}

func compareTexts[K comparable](c *comparison, what string, want, have map[K]string) {
	for k, w := range want {
		c.entries++
		h, ok := have[k]
		switch entry := fmt.Sprintf("%s %v", what, k); {
		case !ok:
			c.add(Missing, entry, w, "")
		case h != w:
			c.add(Altered, entry, w, h)
		}
	}
	for k, h := range have {
		if _, ok := want[k]; !ok {
			c.add(Extra, fmt.Sprintf("%s %v", what, k), "", h)
		}
	}
}

// compareRules compares port by port, because the same rules can be split into ranges in many ways.
func (c *comparison) compareRules(want expected, have []api.DumpRule) {
	held := map[pair][]grant{}
	contracts := map[pair]map[string]bool{} // switch: in whose name connections may live
	for _, r := range have {
		k := pair{r.From, r.To, r.Protocol}
		if contracts[k] == nil {
			contracts[k] = map[string]bool{}
		}
		contracts[k][r.Contract] = true
		if !r.Shadowed {
			held[k] = append(held[k], grant{r.Ports, r.Contract, r.Audit, r.Exit, r.Path})
		}
	}
	keys := map[pair]bool{}
	for k := range want.grants {
		keys[k] = true
	}
	for k := range contracts {
		keys[k] = true
	}
	for k := range keys {
		c.comparePair(k, want.grants[k], held[k])
		if c.layer == api.LayerSwitch {
			c.compareContracts(k, want.grants[k], contracts[k])
		}
	}
}

func (c *comparison) comparePair(k pair, want, have []grant) {
	type outcome struct {
		kind       Kind
		want, have string
	}
	var last outcome
	var ports fabric.PortRange
	flush := func() {
		if last.kind != "" {
			entry := fmt.Sprintf("rule %q -> %q %s/%s", k.from, k.to, k.protocol, ports)
			c.add(last.kind, entry, last.want, last.have)
		}
	}
	for _, s := range segments(want, have) {
		w, h := at(want, s.From), at(have, s.From)
		if len(w) > 0 {
			c.entries++
		}
		o := outcome{want: grantsText(preferred(w)), have: grantsText(h)}
		switch {
		case len(w) > 0 && len(h) == 0:
			o.kind = Missing
		case len(w) == 0 && len(h) > 0:
			o.kind = Extra
		case len(w) > 0 && !c.fits(w, h):
			o.kind = Altered
		default:
			o = outcome{}
		}
		if joined, ok := ports.Join(s); ok && o == last {
			ports = joined
			continue
		}
		flush()
		last, ports = o, s
	}
	flush()
}

// fits reports whether the contracts that admit a port in the data path are contracts that allow
// it. The switch does not distinguish audit mode.
func (c *comparison) fits(want, have []grant) bool {
	choose := preferred(want)
	if c.layer == api.LayerSwitch {
		choose = want
	}
	for _, h := range have {
		if !slices.ContainsFunc(choose, func(w grant) bool {
			return w.contract == h.contract && w.exit == h.exit && w.path == h.path && (w.audit == h.audit || c.layer == api.LayerSwitch)
		}) {
			return false
		}
	}
	return true
}

// compareContracts compares the contracts under which connections may exist.
func (c *comparison) compareContracts(k pair, want []grant, have map[string]bool) {
	entry := func(contract string) string {
		return fmt.Sprintf("entry %q -> %q %s of contract %s", k.from, k.to, k.protocol, contract)
	}
	wanted := map[string]bool{}
	for _, w := range want {
		wanted[w.contract] = true
	}
	for contract := range wanted {
		if !have[contract] {
			c.add(Missing, entry(contract), "", "")
		}
	}
	for contract := range have {
		if !wanted[contract] {
			c.add(Extra, entry(contract), "", "")
		}
	}
}

// preferred returns the grants under which a flow passes: those that enforce, otherwise those in
// audit mode.
func preferred(grants []grant) []grant {
	var enforcing []grant
	for _, g := range grants {
		if !g.audit {
			enforcing = append(enforcing, g)
		}
	}
	if enforcing != nil {
		return enforcing
	}
	return grants
}

// segments splits the ports of all grants into ranges in which the same grants apply.
func segments(lists ...[]grant) []fabric.PortRange {
	var ranges []fabric.PortRange
	for _, list := range lists {
		for _, g := range list {
			ranges = append(ranges, g.ports)
		}
	}
	return fabric.SplitPorts(ranges)
}

func at(grants []grant, port uint16) []grant {
	var list []grant
	for _, g := range grants {
		if g.ports.Contains(port) {
			list = append(list, g)
		}
	}
	return list
}

func grantsText(grants []grant) string {
	var names []string
	for _, g := range grants {
		name := "contract " + g.contract
		if g.audit {
			name += " (audit)"
		}
		if g.exit != "" {
			name += " by the node"
		}
		if g.path != "" {
			name += " (" + g.path + ")"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), " or ")
}
