// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package explain

import (
	"fmt"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/inspect/verify"
)

// onward is which hop must come next on the way of a flow.
type onward struct {
	from, to desired.Group
	class    desired.Class
	bucket   uint8
	hop      desired.Hop // zero: none fits
}

// missing returns why a data path does not lead a flow onward, or "".
func (o onward) missing(d api.Dump) string {
	if o == (onward{}) {
		return ""
	}
	wish := ""
	if o.class != "" {
		wish = fmt.Sprintf(" for contracts that %s", o.class)
	}
	if o.hop.IsZero() {
		return fmt.Sprintf("no way from %s to %s%s", o.from, o.to, wish)
	}
	leads := ""
	for _, w := range d.Ways {
		if w.From != o.from.String() || w.To != o.to.String() || w.Path != string(o.class) {
			continue
		}
		for hop, share := range w.Next {
			if desired.InShare(share, o.bucket) {
				leads = hop
			}
		}
	}
	switch leads {
	case o.hop.String():
		return ""
	case "":
		return fmt.Sprintf("it has no way from %s to %s%s for this pair, expected %s", o.from, o.to, wish, o.hop)
	}
	return fmt.Sprintf("it leads this pair to %s, not %s", leads, o.hop)
}

// byWays returns the data paths on the path of a flow between two zones.
func byWays(t desired.Topology, sender, receiver station, from, to api.Party, class desired.Class) []station {
	fromGroup, toGroup := t.GroupOf(from.Node), t.GroupOf(to.Node)
	number := desired.Number(from.Endpoint)
	fromWays, toWays := desired.ViaWays(fromGroup, number), desired.ViaWays(toGroup, desired.Number(to.Endpoint))
	o := onward{from: fromGroup, to: toGroup, class: class, bucket: desired.Bucket(number, desired.Number(to.Endpoint))}
	sender.destVia, receiver.fromVia, sender.onward = toWays, fromWays, o
	route, found := t.Route(fromGroup, toGroup, class, o.bucket)
	if !found {
		return []station{sender, receiver}
	}
	sender.onward.hop = desired.Hop{Processor: route.Processors[0]}
	stations := []station{sender}
	for _, p := range route.Processors {
		s := station{node: p, place: "boundary", layer: api.LayerSwitch, fromVia: fromWays, destVia: toWays}
		if p.Zone == from.Zone {
			s.fromVia = zoneLink
		}
		if next, _ := route.Next(p); !next.IsZero() {
			s.onward = o
			s.onward.hop = next
		} else {
			s.destVia = zoneLink
		}
		stations = append(stations, s)
	}
	return append(stations, receiver)
}

// classOf returns what a flow between two endpoints wishes of its way.
func classOf(f verify.Fabric, from, to api.Party, q api.Question) desired.Class {
	grants := fabric.Grants(from.Identity(), verify.Documents(f.Graph, f.Now)[from.Service], to.Identity())
	return desired.ClassOfFlow(grants, q.Protocol, q.Port)
}
