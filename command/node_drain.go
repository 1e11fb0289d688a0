// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// NodeDrainCommand is sif node drain.
type NodeDrainCommand struct {
	Meta
	enable, disable bool
	detach          bool
	deadline        time.Duration
	ignoreSystem    bool
	message         string
}

// drainReply is what a drain did, for -json.
type drainReply struct {
	Node      string `json:"node"`
	NomadNode string `json:"nomadNode,omitempty"`
	Draining  bool   `json:"draining"`
	Done      bool   `json:"done"` // no allocation is left that the drain concerns, or no way that passes the processor
	// Alone says that no other processor of the zone is there, so packets go on passing this one.
	Alone bool `json:"alone,omitempty"`
	// Attached is what the node has attached from outside Nomad. It stays: nobody could move it.
	Attached []string `json:"attached,omitempty"`
}

// Synopsis implements cli.Command.
func (c *NodeDrainCommand) Synopsis() string {
	return "Move the workloads or the traffic of a node elsewhere"
}

func (c *NodeDrainCommand) usage() string {
	return `
Usage: sif node drain [options] -enable|-disable <zone>/<node>

  Takes a node out before work on it. The command waits until the drain is over,
  unless -detach is given.

  Of a processor, the traffic moves: running connections between zones go on by
  the other processors, and nothing is lost. New connections to the outside take
  other exits; running ones keep to this one until they end. If the zone has no
  other processor that is ready, packets go on passing this one. The token must
  be an operator's.

  Of a node with workloads, Nomad drains the Nomad node that it is: its
  allocations move to other nodes, their endpoints leave the fabric with them,
  and nothing new is placed there. It is nomad node drain, with the fabric's
  name of the node. What is attached there from outside Nomad stays, for nobody
  could move it. The command names it: detach it on the node, with sif detach.
  NOMAD_ADDR and NOMAD_TOKEN say where Nomad is and who drains; the token needs
  node:write. The controller says which Nomad node it is, to a token with
  sif-read.
`
}

func (c *NodeDrainCommand) options() []*flag.FlagSet {
	o := newOptions("Drain Options")
	o.BoolVar(&c.enable, "enable", false, "Drain the node.")
	o.BoolVar(&c.disable, "disable", false, "End the drain, and let Nomad place allocations there again.")
	o.BoolVar(&c.detach, "detach", false, "Do not wait until the drain is over.")
	o.DurationVar(&c.deadline, "deadline", time.Hour, "After `how` long allocations that are left are stopped. Of nodes with workloads. Default: 1h")
	o.BoolVar(&c.ignoreSystem, "ignore-system", false, "Leave the allocations of system jobs where they are. Of nodes with workloads.")
	o.StringVar(&c.message, "message", "", "A `message` that says why, for Nomad, or the audit log.")
	c.jsonOption(o, "Print the result in JSON.")
	return []*flag.FlagSet{c.generalOptions(), o}
}

func (c *NodeDrainCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: <zone>/<node>", predict: complete.PredictAnything}
}

func (c *NodeDrainCommand) run(ctx context.Context, args []string) error {
	id, err := fabric.ParseNodeID(args[0])
	if err != nil {
		return usagef("%v", err)
	}
	if c.enable == c.disable {
		return usagef("Either -enable or -disable is needed.")
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	list, err := client.Nodes(ctx)
	if err != nil {
		return fmt.Errorf("draining node %s: ask what it is: %w", id, err)
	}
	if slices.ContainsFunc(list.Nodes, func(n api.NodeInfo) bool { return n.Node.ID() == id && n.Node.Boundary() }) {
		reply, err := c.drainProcessor(ctx, client, id)
		if err != nil {
			return fmt.Errorf("draining processor %s: %w", id, err)
		}
		return c.output(reply, func() string { return processorText(reply) })
	}
	nomadNode, err := nomadNodeOf(list, id)
	if err != nil {
		return fmt.Errorf("draining node %s: %w", id, err)
	}
	nomad, err := nomadapi.NewClient(nomadapi.DefaultConfig())
	if err != nil {
		return fmt.Errorf("draining node %s: make a client of Nomad: %w", id, err)
	}
	defer nomad.Close()
	if err := c.drain(ctx, nomad, nomadNode); err != nil {
		return fmt.Errorf("draining node %s: %w", id, err)
	}
	reply := drainReply{Node: id.String(), NomadNode: nomadNode, Draining: c.enable, Done: c.enable && !c.detach}
	if c.enable {
		if reply.Attached, err = attachedTo(ctx, client, id); err != nil {
			c.UI.Warn(fmt.Sprintf("What is attached to the node is unknown: %v", err))
		}
	}
	return c.output(reply, func() string { return drainText(reply) })
}

func drainText(r drainReply) string {
	text := fmt.Sprintf("Node %s is drained.", r.Node)
	switch {
	case !r.Draining:
		text = fmt.Sprintf("Node %s is no longer drained, and Nomad places allocations there again.", r.Node)
	case !r.Done:
		text = fmt.Sprintf("Node %s is being drained.", r.Node)
	}
	if len(r.Attached) > 0 {
		text += "\nAttached there, and not moved; detach on the node what shall go:"
		for _, name := range r.Attached {
			text += "\n    sif detach " + name
		}
	}
	return text
}

// publishedWithin is how long the state of a processor may take to follow the operator's word.
const publishedWithin = 30 * time.Second

// drainProcessor has a zone's traffic leave a processor, or come back.
func (c *NodeDrainCommand) drainProcessor(ctx context.Context, client *api.Client, id fabric.NodeID) (drainReply, error) {
	reply := drainReply{Node: id.String(), Draining: c.enable}
	if _, err := client.DrainNode(ctx, id, api.DrainRequest{Draining: c.enable}, c.message); err != nil || c.detach {
		return reply, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, publishedWithin, fmt.Errorf("its engine did not follow within %s; the fabric goes on waiting for it", publishedWithin))
	defer cancel()
	for {
		status, err := client.Status(ctx)
		if err != nil {
			return reply, cmp.Or(context.Cause(ctx), err)
		}
		if reply.Done, reply.Alone = drained(status, id, c.enable); reply.Done {
			return reply, nil
		}
		select {
		case <-ctx.Done():
			return reply, context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// drained reports whether the engine of a processor has published that it drains, or does not; and
// whether no other processor of its zone is ready.
func drained(status api.Status, id fabric.NodeID, draining bool) (done, alone bool) {
	alone = true
	for _, n := range status.Nodes {
		if n.State == nil || n.Zone != id.Zone {
			continue
		}
		if n.ID() == id {
			done = n.State.Draining == draining
		} else if n.State.Ready && !n.State.Draining {
			alone = false
		}
	}
	return done, alone
}

func processorText(r drainReply) string {
	switch {
	case !r.Draining && r.Done:
		return fmt.Sprintf("Processor %s takes part again.", r.Node)
	case !r.Draining:
		return fmt.Sprintf("Processor %s takes part again when its engine knows.", r.Node)
	case !r.Done:
		return fmt.Sprintf("Processor %s is being drained.", r.Node)
	case r.Alone:
		return fmt.Sprintf("Processor %s drains, but no other processor of its zone is ready: packets of other zones go on passing it.", r.Node)
	}
	return fmt.Sprintf("Processor %s is drained: packets of other zones take other processors. Connections to the outside that use it go on until they end.", r.Node)
}

// attachedTo returns the names of what a node has attached from outside Nomad.
func attachedTo(ctx context.Context, client *api.Client, id fabric.NodeID) ([]string, error) {
	list, err := client.Endpoints(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range list.Endpoints {
		if e.Host() == id && e.Origin.Attached != "" {
			names = append(names, e.Origin.Attached)
		}
	}
	for _, w := range list.Waiting {
		if w.Zone == id.Zone && w.Node == id.Name {
			names = append(names, w.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// drain has Nomad begin or end the drain of a Nomad node.
func (c *NodeDrainCommand) drain(ctx context.Context, nomad *nomadapi.Client, node string) error {
	options := &nomadapi.DrainOptions{MarkEligible: c.disable, Meta: map[string]string{"message": c.message}}
	if c.enable {
		options.DrainSpec = &nomadapi.DrainSpec{Deadline: c.deadline, IgnoreSystemJobs: c.ignoreSystem}
	}
	answer, err := nomad.Nodes().UpdateDrainOpts(node, options, (&nomadapi.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("ask Nomad to drain node %s: %w", node, err)
	}
	if !c.enable || c.detach {
		return nil
	}
	if err := c.monitor(ctx, nomad, node, answer.LastIndex); err != nil {
		return fmt.Errorf("wait for Nomad: %w; the drain goes on", err)
	}
	return nil
}

// nomadNodeOf returns the ID of the Nomad node that a node is.
func nomadNodeOf(list api.NodeList, id fabric.NodeID) (string, error) {
	i := slices.IndexFunc(list.Nodes, func(n api.NodeInfo) bool { return n.Node.ID() == id })
	if i < 0 {
		return "", fmt.Errorf("there is no node %q; `sif node list` lists the nodes", id)
	}
	if list.Nodes[i].NomadNode == "" {
		return "", fmt.Errorf("it is bound to no Nomad node: no allocation has run there yet; if it has a Nomad client, run `sif node bind %s`", id)
	}
	return list.Nodes[i].NomadNode, nil
}

// monitor shows what the drain does until it is over.
func (c *NodeDrainCommand) monitor(ctx context.Context, nomad *nomadapi.Client, node string, index uint64) error {
	for m := range nomad.Nodes().MonitorDrain(ctx, node, index, c.ignoreSystem) {
		if m.Level == nomadapi.MonitorMsgLevelError {
			return errors.New(m.Message)
		}
		if !c.json {
			c.UI.Output(m.Message)
		}
	}
	return ctx.Err()
}
