// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import "github.com/sif-project/sif/fabric"

// Way is by what the packets of an endpoint come in, and what leads to it. Ways are compared with
// ==. Their text forms are "endpoint", "zone", "ways" and the "zone/node" of a processor.
type Way struct {
	own, ways bool
	processor fabric.NodeID
}

var (
	// OwnInterface is the way to an endpoint of the node itself: the endpoint's veth.
	OwnInterface = Way{own: true}
	// ZoneLink is the link to the nodes of the own zone.
	ZoneLink = Way{}
	// ByWays is the way to an endpoint of another zone: that of its pair's bucket. Its packets may
	// come by any link to a processor of the own zone, and, at a processor, by the tunnels that
	// Topology.Sources names.
	ByWays = Way{ways: true}
)

// Through is the link to a processor. The zero NodeID stands for the nodes of the own zone, as it
// does among the peers of links.
func Through(processor fabric.NodeID) Way { return Way{processor: processor} }

// Processor returns the processor at the far end of the link; false if the way is another one.
func (w Way) Processor() (fabric.NodeID, bool) { return w.processor, !w.processor.IsZero() }

func (w Way) String() string {
	switch {
	case w.own:
		return "endpoint"
	case w.ways:
		return "ways"
	case w.processor.IsZero():
		return "zone"
	}
	return w.processor.String()
}
