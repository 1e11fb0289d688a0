// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package explain

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/inspect/verify"
)

// View is a fabric, restricted to the domains that the asker may read.
type View struct {
	verify.Fabric
	Reads func(domain string) bool // whether he may read a domain; nil: all of them
}

// Nodes returns the nodes whose dumps the answer needs.
func Nodes(v View, q api.Question) ([]fabric.NodeID, error) {
	from, to, err := parties(v, q)
	if err != nil {
		return nil, err
	}
	set := map[fabric.NodeID]bool{}
	for _, a := range from {
		for _, b := range to {
			for _, s := range way(v.Fabric, a, b, q) {
				set[s.node] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(set), fabric.CompareNodeIDs), nil
}

func parties(v View, q api.Question) (from, to []api.Party, err error) {
	if from, err = resolve(v, q.From, false); err != nil {
		return nil, nil, err
	}
	to, err = resolve(v, q.To, true)
	return from, to, err
}

// Explain answers a question. Problems of a data path that concern neither party are described only
// to an asker who may read all domains.
func Explain(v View, q api.Question) (api.Explanation, error) {
	f := v.Fabric
	from, to, err := parties(v, q)
	if err != nil {
		return api.Explanation{}, err
	}
	answer := api.Explanation{Pointer: f.Pointer, Signed: f.Signed, Protocol: q.Protocol, Port: q.Port, Allowed: true, Agree: true}
	for _, a := range from {
		for _, b := range to {
			if a.Live() && a.Endpoint == b.Endpoint {
				continue // a flow of an endpoint to itself never leaves it
			}
			flow := api.ExplainedFlow{From: a, To: b, Declared: declared(f, a, b, q.Protocol, q.Port), Withheld: notAnswered(f.Status, b)}
			if why := unexposed(f.Status, a, b, q); why != "" && flow.Declared.Allowed {
				flow.Differs = append(flow.Differs, "declared, but "+why)
			}
			for _, s := range way(f, a, b, q) {
				if s.place == exit && flow.Declared.Allowed && !byZoneExit(f, a, b, q) {
					continue // it leaves by the node
				}
				l, looked := s.look(f, a, b, q)
				if !looked {
					continue
				}
				flow.Layers = append(flow.Layers, l)
				switch {
				case l.Unread:
					flow.Differs = append(flow.Differs, fmt.Sprintf("what %s enforces is not known: %s", l.Node, l.Why))
				case l.Allowed && !flow.Declared.Allowed:
					flow.Differs = append(flow.Differs, fmt.Sprintf("not declared, but the %s of %s passes it: %s", l.Layer, l.Node, l.Why))
				case !l.Allowed && flow.Declared.Allowed:
					flow.Differs = append(flow.Differs, fmt.Sprintf("declared, but the %s of %s drops it: %s", l.Layer, l.Node, l.Why))
				}
				for _, p := range v.problems(s.node) {
					flow.Differs = append(flow.Differs, fmt.Sprintf("the %s of %s: %s", l.Layer, l.Node, p))
				}
			}
			answer.Allowed = answer.Allowed && flow.Declared.Allowed
			answer.Agree = answer.Agree && len(flow.Differs) == 0
			answer.Flows = append(answer.Flows, flow)
		}
	}
	if len(answer.Flows) == 0 {
		return answer, fmt.Errorf("%s and %s are the same single endpoint", q.From, q.To)
	}
	return answer, nil
}

// notAnswered returns why DNS does not answer with a party, as its node reported it, or "".
func notAnswered(status api.Status, p api.Party) string {
	for _, n := range status.Nodes {
		for _, e := range n.Endpoints {
			if p.Live() && e.Endpoint == p.Endpoint && n.ID() == p.Node {
				return e.Withheld
			}
		}
	}
	return ""
}

// problems lists what must not be in the data path of a node.
func (v View) problems(node fabric.NodeID) []string {
	list := v.Dumps[node].Problems
	if len(list) > 0 && v.Reads != nil {
		return []string{"it differs from the desired state; run sif verify with a token that may read all domains"}
	}
	return list
}

// The ways that are not a processor, in the words of a dump.
var ownInterface, zoneLink = desired.OwnInterface.String(), desired.ZoneLink.String()

// exit is the place of the processor by which flows leave the fabric.
const exit = "exit"

// station is a data path on the path of a flow.
type station struct {
	node             fabric.NodeID
	place            string
	layer            api.Layer
	fromVia, destVia string // by what the parties are reached from there
	onward           onward // zero: the packets go straight to the destination
}

// way returns the data paths on the path of a flow.
func way(f verify.Fabric, from, to api.Party, q api.Question) []station {
	if from.Live() && to.Outside() {
		return outwardWay(f, from, to)
	}
	if !to.Live() {
		return nil
	}
	if from.External != (fabric.Ref{}) {
		return []station{{node: to.Node, place: "receiver", layer: api.LayerEBPF, destVia: ownInterface}}
	}
	if !from.Live() {
		return nil
	}
	sender := station{node: from.Node, place: "sender", layer: api.LayerEBPF, fromVia: ownInterface, destVia: zoneLink}
	receiver := station{node: to.Node, place: "receiver", layer: api.LayerEBPF, fromVia: zoneLink, destVia: ownInterface}
	if from.Node == to.Node {
		sender.destVia, receiver.fromVia = ownInterface, ownInterface
	}
	if from.Zone == to.Zone {
		return []station{sender, receiver}
	}
	return byWays(verify.Topology(f), sender, receiver, from, to, classOf(f, from, to, q))
}

// outwardWay returns the data paths on the path of a flow that leaves the fabric.
func outwardWay(f verify.Fabric, from, to api.Party) []station {
	stations := []station{{node: from.Node, place: "sender", layer: api.LayerEBPF, fromVia: ownInterface}}
	if to.OwnNode {
		return stations
	}
	if processor, is := exitOf(f.Status, from, fabric.ExitZone); is && !processor.IsZero() {
		stations = append(stations, station{node: processor, place: exit, layer: api.LayerSwitch, fromVia: zoneLink})
	}
	return stations
}

// look tells what a data path does with the first packet of a flow, over IPv4 and IPv6. It returns
// false if it knows no address of the destination, as of a name that nobody has resolved.
func (s station) look(f verify.Fabric, from, to api.Party, q api.Question) (l api.ExplainedLayer, looked bool) {
	l = api.ExplainedLayer{Node: s.node.String(), Layer: s.layer, Place: s.place}
	dump, ok := f.Dumps[s.node]
	l.Broken = len(dump.Problems) > 0
	if !ok {
		l.Unread, l.Why = true, cmp.Or(f.Failed[s.node], "not read")
		return l, true
	}
	if dump.Sequence != f.Pointer.Sequence || dump.Root != f.Pointer.Root {
		l.Follows = &dump.Sequence
	}
	judge := func(src, dst netip.Addr) api.ExplainedLayer {
		l := l // one for each version of IP
		source, why := s.owner(dump, src, s.fromVia, "source")
		if from.External != (fabric.Ref{}) {
			source, why = external(dump, src, false)
		}
		if why == "" {
			var destination string
			if to.Outside() {
				destination, why = external(dump, dst, true)
			} else {
				destination, why = s.owner(dump, dst, s.destVia, "destination")
			}
			if why == "" {
				s.rule(&l, dump, source, destination, q)
				if why := s.onward.missing(dump); l.Allowed && why != "" {
					l.Allowed, l.Why = false, why
				}
				return l
			}
		}
		l.Why = why
		return l
	}
	if from.External != (fabric.Ref{}) {
		if from.Address.Is4() {
			return judge(from.Address, to.IPv4), true
		}
		return judge(from.Address, to.IPv6), true
	}
	if to.Outside() {
		return judgeAll(addressesOf(knownTo(f, from), from, to), from, judge)
	}
	four, six := judge(from.IPv4, to.IPv4), judge(from.IPv6, to.IPv6)
	if four.Why != six.Why {
		four.Allowed = four.Allowed && six.Allowed
		four.Why = "over IPv4 " + four.Why + "; over IPv6 " + six.Why
	}
	return four, true
}

// judgeAll judges a flow to each of the addresses of what it goes to. It passes if all pass.
func judgeAll(addresses []netip.Addr, from api.Party, judge func(src, dst netip.Addr) api.ExplainedLayer) (all api.ExplainedLayer, judged bool) {
	for _, a := range addresses {
		src := from.IPv4
		if a.Is6() {
			src = from.IPv6
		}
		l := judge(src, a)
		if len(addresses) > 1 {
			l.Why = fmt.Sprintf("to %s %s", a, l.Why)
		}
		if !judged || all.Allowed && !l.Allowed {
			all, judged = l, true
		}
	}
	return all, judged
}

// owner returns the party that has an address, or why the packet is dropped.
func (s station) owner(d api.Dump, a netip.Addr, via, role string) (identity, why string) {
	if via == ownInterface {
		i := slices.IndexFunc(d.Guarded, func(e api.DumpEndpoint) bool { return e.IPv4 == a || e.IPv6 == a })
		if i < 0 {
			return "", fmt.Sprintf("no endpoint is guarded with the %s address", role)
		}
	}
	i := slices.IndexFunc(d.Peers, func(p api.DumpPeer) bool { return p.Address == a })
	if i < 0 {
		return "", fmt.Sprintf("the %s address is unknown", role)
	}
	if p := d.Peers[i]; p.Via != via {
		return "", fmt.Sprintf("the %s address is expected by way of %s, not %s", role, p.Via, via)
	}
	return d.Peers[i].Identity, ""
}

// external returns the party that has an address outside the fabric, as the source of a flow or as
// its destination.
func external(d api.Dump, a netip.Addr, destination bool) (identity, why string) {
	role, narrowest := "source", -1
	if destination {
		role = "destination"
	}
	for _, x := range d.External {
		// A prefix that nobody has is one in both directions.
		other := x.In && !x.Out
		if !destination {
			other = x.Out && !x.In
		}
		if !other && x.Prefix.Contains(a) && x.Prefix.Bits() > narrowest {
			narrowest, identity = x.Prefix.Bits(), x.Identity
		}
	}
	if narrowest < 0 {
		return "", fmt.Sprintf("the %s address is unknown", role)
	}
	if identity == "" {
		return "", fmt.Sprintf("no external has the %s address", role)
	}
	return identity, ""
}

func (s station) rule(l *api.ExplainedLayer, d api.Dump, from, to string, q api.Question) {
	var open []string
	for _, r := range d.Rules {
		if r.From != from || r.To != to || r.Shadowed {
			continue
		}
		if r.Protocol == q.Protocol && r.Ports.Contains(q.Port) {
			l.Allowed, l.Contract, l.Audit = true, r.Contract, r.Audit
			l.Why = "contract " + r.Contract
			if r.Audit {
				l.Why += ", reported for audit mode"
			}
			return
		}
		open = append(open, fmt.Sprintf("%s/%s", r.Protocol, r.Ports))
	}
	l.Why = "no rule between the two identities"
	if len(open) > 0 {
		l.Why = "the rules between the two identities allow only " + strings.Join(open, " ")
	}
}
