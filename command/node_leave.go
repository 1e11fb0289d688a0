// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/agent"
	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/engine"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/join/redeem"
	"github.com/sif-project/sif/internal/leftover"
	"github.com/sif-project/sif/internal/machine"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/wellknown"
)

// NodeLeaveCommand is sif node leave.
type NodeLeaveCommand struct {
	Meta
	layout    machine.Layout
	dryRun    bool
	force     bool
	keep      bool
	approved  bool
	noReload  bool
	nomadUnit string
}

// leaveReply is what leaving did, or would do, for -json.
type leaveReply struct {
	Node      string              `json:"node,omitempty"`
	DryRun    bool                `json:"dryRun,omitempty"`
	Workloads []agent.Running     `json:"workloads,omitempty"`
	Leftovers []leftover.Leftover `json:"leftovers"` // in the order of their removal
	Failed    []string            `json:"failed,omitempty"`
	Next      []string            `json:"next,omitempty"`
}

// Synopsis implements cli.Command.
func (c *NodeLeaveCommand) Synopsis() string { return "Take the fabric off this machine" }

func (c *NodeLeaveCommand) usage() string {
	return `
Usage: sif node leave [options]

  Stops the fabric's daemons on this machine and takes away every trace of them:
  units, interfaces, eBPF programs, the switch's bridge, addresses, routes, the
  node's firewall, the CNI network, kernel parameters that were changed, data,
  configuration and credential. What is not the fabric's stays as it is. It
  works as well if daemons do not run, and can be run again.

  It refuses while workloads in the fabric run here: drain the node first, with
  sif node drain, and detach what is attached, with sif detach. With -force they
  lose their network.

  The other machines drop the node when it is removed: leaving does that itself
  if an operator's token is set, otherwise it names the command.

  If standard input is a terminal, the command shows what it would take away and
  asks for approval.
`
}

func (c *NodeLeaveCommand) options() []*flag.FlagSet {
	o := newOptions("Leave Options")
	o.BoolVar(&c.approved, "auto-approve", false, "Leave without asking.")
	o.BoolVar(&c.dryRun, "dry-run", false, "Show what would be taken away, and change nothing.")
	o.BoolVar(&c.force, "force", false, "Leave even if workloads run here, which lose their network, or if a controller does, whose data is deleted.")
	o.BoolVar(&c.keep, "keep-config", false, "Keep the configuration and the credential, with which sif node join -resume joins again.")
	o.BoolVar(&c.noReload, "no-reload-nomad", false, "Do not reload the Nomad agent, which then offers the network until it is started again.")
	o.StringVar(&c.nomadUnit, "nomad-unit", "nomad.service", "The `unit` of the Nomad agent. Default: nomad.service")
	c.jsonOption(o, "Print what is taken away in JSON. No approval is asked for.")
	return []*flag.FlagSet{c.generalOptions(), o, layoutOptions(&c.layout)}
}

// leaving is what is known of the machine.
type leaving struct {
	joined  machine.Joined
	found   bool
	configs map[string]*config.Config // by daemon; with fromFile, those that have a file
}

const fromFile = " file"

func (c *NodeLeaveCommand) run(ctx context.Context, _ []string) error {
	if os.Geteuid() != 0 {
		return errors.New("leaving: this needs root")
	}
	for _, dir := range []*string{&c.layout.ConfigDir, &c.layout.DataDir, &c.layout.RunDir, &c.layout.BPFDir} {
		var err error
		if *dir, err = filepath.Abs(*dir); err != nil {
			return fmt.Errorf("leaving: %w", err)
		}
	}
	m, err := c.look()
	if err != nil {
		return fmt.Errorf("leaving: %w", err)
	}
	if err := c.layout.Check(); err != nil {
		return fmt.Errorf("leaving: %w", err)
	}
	reply := leaveReply{Node: m.node().String(), DryRun: c.dryRun, Leftovers: []leftover.Leftover{}}
	if reply.Workloads, err = agent.Workloads(m.configs["agent"]); err != nil {
		return fmt.Errorf("leaving: %w", err)
	}
	running, err := machine.Running(ctx, c.layout)
	if err != nil {
		return fmt.Errorf("leaving: %w", err)
	}
	rest, err := c.leftovers(ctx, m)
	if err != nil {
		return fmt.Errorf("leaving: %w", err)
	}
	reply.Leftovers = append(slices.Clone(running), rest...)
	if c.dryRun {
		return c.output(reply, func() string { return describeLeaving(reply) })
	}
	if err := c.mayLeave(m, reply.Workloads); err != nil {
		return err
	}
	if len(reply.Leftovers) == 0 {
		return c.output(reply, func() string { return "Nothing of the fabric is on this machine." })
	}
	if !c.json && !c.approved && interactive() {
		c.UI.Output(describeLeaving(reply))
		if err := c.confirm("\nTake all of it away?"); err != nil {
			return err
		}
	}
	return c.leave(ctx, m, running, reply)
}

func describeLeaving(r leaveReply) string {
	if len(r.Leftovers) == 0 {
		return "Nothing of the fabric is on this machine."
	}
	var b strings.Builder
	for _, w := range r.Workloads {
		fmt.Fprintf(&b, "Runs here: %s\n", w)
	}
	rows := [][]string{{"Kind", "Name"}}
	for _, l := range r.Leftovers {
		rows = append(rows, []string{l.Kind, l.Name})
	}
	table(&b, rows)
	return b.String()
}

// look reads how the machine joined and how its daemons are configured. What is missing is as by
// default: an earlier call may have been interrupted.
func (c *NodeLeaveCommand) look() (leaving, error) {
	m := leaving{configs: map[string]*config.Config{}}
	var err error
	if m.joined, m.found, err = c.layout.Joined(); err != nil {
		c.UI.Warn(fmt.Sprintf("How this machine joined cannot be read, going on without it: %v", err))
	}
	if m.found { // what was configured counts
		c.layout = m.joined.Layout
	}
	for _, name := range []config.Role{config.RoleController, config.RoleEngine, config.RoleAgent} {
		file := c.layout.ConfigFile(string(name))
		conf, err := config.Load(file, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			conf, err = c.byDefault(m.joined)
		case err == nil:
			m.configs[string(name)+fromFile] = conf
			if conf.IsNode() && !m.found {
				c.layout.DataDir, c.layout.RunDir, c.layout.BPFDir = conf.DataDir, conf.RunDir, conf.BPFDir
			}
		}
		if err != nil {
			return m, fmt.Errorf("%w; it says what is to be taken away: mend the file, or move it away to go on with the defaults", err)
		}
		m.configs[string(name)] = conf
	}
	return m, nil
}

// byDefault is the configuration of a daemon without a file.
func (c *NodeLeaveCommand) byDefault(j machine.Joined) (*config.Config, error) {
	conf, err := config.FromEnvironment()
	if err != nil {
		return nil, err
	}
	conf.DataDir, conf.RunDir, conf.BPFDir = c.layout.DataDir, c.layout.RunDir, c.layout.BPFDir
	if id := j.Grant.Node; !id.IsZero() {
		conf.Zone, conf.Node = id.Zone, id.Name
		conf.Engine.Namespaces = wellknown.ReservedPrefix + id.Name
	}
	if j.Nomad.CNIConfigDir != "" {
		conf.CNI.PluginDir, conf.CNI.ConfigDir = j.Nomad.CNIPath, j.Nomad.CNIConfigDir
	}
	return conf, nil
}

// node returns the node that the machine is, which is zero if nothing says so.
func (m leaving) node() fabric.NodeID {
	for _, c := range m.configs {
		if c.IsNode() {
			return c.NodeID()
		}
	}
	return m.joined.Grant.Node
}

// leftovers returns what is to be taken away after the daemons, in order.
func (c *NodeLeaveCommand) leftovers(ctx context.Context, m leaving) ([]leftover.Leftover, error) {
	a, e := m.configs["agent"], m.configs["engine"]
	var list []leftover.Leftover
	var errs []error
	add := func(more []leftover.Leftover, err error) {
		list, errs = append(list, more...), append(errs, err)
	}
	add(agent.Leftovers(a, daemon.Record(a)))
	add(engine.Leftovers(ctx, e))
	if m.configs["engine"+fromFile] != nil && m.configs["agent"+fromFile] == nil {
		a = e // it has what both have
	}
	add(daemon.Leftovers(a))
	add(machine.Leftovers(c.layout, m.joined.Made, c.keep), nil)
	return list, errors.Join(errs...)
}

// mayLeave refuses to cut off what still runs here.
func (c *NodeLeaveCommand) mayLeave(m leaving, workloads []agent.Running) error {
	if c.force {
		return nil
	}
	if len(workloads) > 0 {
		var names []string
		for _, w := range workloads {
			names = append(names, w.String())
		}
		remedies := []string{}
		if slices.ContainsFunc(workloads, func(w agent.Running) bool { return w.Attached == "" }) {
			remedies = append(remedies, "drain the node first with: sif node drain -enable "+m.node().String())
		}
		for _, w := range workloads {
			if w.Attached != "" {
				remedies = append(remedies, "sif detach "+w.Attached)
			}
		}
		return fmt.Errorf("leaving: %s in the fabric on this machine: %s; %s; or use -force, and they lose their network",
			map[bool]string{true: "a workload runs", false: "workloads run"}[len(names) == 1], strings.Join(names, ", "), strings.Join(remedies, "; "))
	}
	if m.configs["controller"+fromFile] != nil {
		return errors.New("leaving: this machine runs a controller: its audit log and its last verified revision would be deleted. Keep a copy of its data_dir, and use -force")
	}
	return nil
}

// leave takes all of it away. It goes on after a failure, and says what is left.
func (c *NodeLeaveCommand) leave(ctx context.Context, m leaving, running []leftover.Leftover, reply leaveReply) error {
	remove := func(list []leftover.Leftover) {
		for _, l := range list {
			if err := l.Remove(ctx); err != nil {
				reply.Failed = append(reply.Failed, fmt.Sprintf("%s: %v", l, err))
				continue
			}
			if !c.json {
				c.UI.Output("Removed " + l.String())
			}
		}
	}
	remove(running)
	if len(reply.Failed) > 0 { // what runs would put back what is taken away
		return c.report("leaving: %s", strings.Join(reply.Failed, "\n"))
	}
	reply.Next = append(reply.Next, c.farewell(ctx, m)...)
	// Without its daemons the machine may have more or less than before.
	rest, err := c.leftovers(ctx, m)
	if err != nil {
		return fmt.Errorf("leaving: %w", err)
	}
	reply.Leftovers = append(slices.Clone(running), rest...)
	remove(rest)
	if next := c.reload(ctx, m); next != "" {
		reply.Next = append(reply.Next, next)
	}
	if err := c.output(reply, func() string {
		if len(reply.Next) == 0 {
			return "This machine has left the fabric."
		}
		return "This machine has left the fabric.\n\nNext:\n    " + strings.Join(reply.Next, "\n    ")
	}); err != nil {
		return err
	}
	if len(reply.Failed) > 0 {
		return c.report("leaving: some of it is left, run the command again when this is mended:\n%s", strings.Join(reply.Failed, "\n"))
	}
	return nil
}

// farewellTime bounds what the machine tells the fabric when it leaves.
const farewellTime = 20 * time.Second

// farewell tells the fabric, as far as it answers, and returns what an operator has to do.
func (c *NodeLeaveCommand) farewell(ctx context.Context, m leaving) (next []string) {
	ctx, cancel := context.WithTimeout(ctx, farewellTime)
	defer cancel()
	id := m.node()
	if m.found {
		if err := c.retract(ctx, m.joined.Grant); err != nil {
			c.UI.Warn(fmt.Sprintf("Vault: %v", err))
		}
	}
	if id.IsZero() {
		return nil
	}
	command := fmt.Sprintf("sif node remove %s      # as an operator: the other machines drop it, and its credential ends", id)
	if a := m.configs["agent"]; c.config.Token == "" && c.config.VaultToken == "" && c.token == "" && c.vaultToken == "" || a == nil {
		return []string{command}
	}
	c.controllerOf(m)
	client, err := c.client()
	if err == nil {
		_, err = client.RemoveNode(ctx, id, "the machine left")
		client.Close()
	}
	if err != nil {
		c.UI.Warn(fmt.Sprintf("The node is not removed: %v", err))
		return []string{command}
	}
	c.UI.Info(fmt.Sprintf("Node %s is removed.", id))
	return nil
}

// controllerOf has the client call the controller of this machine's configuration, unless the
// caller named one.
func (c *NodeLeaveCommand) controllerOf(m leaving) {
	for _, name := range []string{"agent" + fromFile, "engine" + fromFile} {
		conf := m.configs[name]
		if conf == nil || c.config.Address != api.DefaultAddress {
			continue
		}
		c.config.Address = strings.Join(conf.Controller.All(), ",")
		if c.config.CACert == "" {
			c.config.CACert = c.layout.FabricCAFile()
		}
		return
	}
}

// retract takes back what the machine has written into Vault, and ends its token.
func (c *NodeLeaveCommand) retract(ctx context.Context, g join.Grant) error {
	s, err := redeem.Login(ctx, g)
	if err != nil {
		return err
	}
	if g.Is(join.Controller) {
		err = s.Retract(ctx)
	}
	return errors.Join(err, s.End(ctx))
}

// reload has Nomad forget the network, and returns the command if it could not.
func (c *NodeLeaveCommand) reload(ctx context.Context, m leaving) string {
	if m.configs["agent"+fromFile] == nil {
		return ""
	}
	command := "systemctl reload " + strings.TrimSuffix(c.nomadUnit, ".service") + "      # Nomad offers the network until it is reloaded"
	if c.noReload {
		return command
	}
	a := m.joined.Nomad
	if a.Address == "" {
		a.Address = m.configs["agent"].Nomad.Address
	}
	did, err := a.ReloadNomad(ctx, c.nomadUnit)
	if err != nil {
		return command
	}
	c.UI.Info("Nomad: " + did)
	return ""
}
