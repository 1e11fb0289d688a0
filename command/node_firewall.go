// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/node/firewallcall"
	"github.com/sif-project/sif/internal/wellknown"
)

// NodeFirewallCommand is sif node firewall.
type NodeFirewallCommand struct {
	Meta
	runDir          string
	approved, force bool
}

// Synopsis implements cli.Command.
func (c *NodeFirewallCommand) Synopsis() string {
	return "Show or change the mode of this machine's firewall"
}

func (c *NodeFirewallCommand) usage() string {
	return `
Usage: sif node firewall [options] [enforce | confirm | report]

  Shows the mode of the firewall of this machine towards the underlay, the
  processes that listen there, and what came to ports that are not open. Open
  are the ports of the fabric and those of underlay.management in the daemon's
  configuration. The command asks the daemon on this machine, as root.

  In mode "report" what comes to other ports is counted and passes. In mode
  "enforce" it is dropped. All other rules of the fabric hold in both modes.

  enforce   Shows each listener that would be closed, and asks for approval if
            standard input is a terminal. The mode goes back to "report" after
            two minutes, even if the daemon has ended, unless it is confirmed.
            Connections that exist go on.
  confirm   Keeps mode "enforce". Log in again for it: over a connection that
            is older than the change it is refused, because that does not show
            that you can still log in.
  report    Goes to mode "report" at once.

  The mode that was chosen here is kept in the daemon's data directory, and
  overrides firewall.mode in its configuration.
`
}

func (c *NodeFirewallCommand) options() []*flag.FlagSet {
	o := newOptions("Options")
	o.BoolVar(&c.approved, "auto-approve", false, "Enforce without asking.")
	o.BoolVar(&c.force, "force", false, "Confirm without looking at the connection of this session.")
	c.jsonOption(o, "Print the state in JSON. No approval is asked for.")
	o.StringVar(&c.runDir, "run-dir", wellknown.RunDir, "The `path` to the daemon's run_dir. Default: "+wellknown.RunDir)
	return []*flag.FlagSet{o}
}

func (c *NodeFirewallCommand) arguments() arguments {
	return arguments{max: 1, words: "at most one argument: enforce, confirm or report", predict: complete.PredictSet("enforce", "confirm", "report")}
}

func (c *NodeFirewallCommand) run(ctx context.Context, args []string) error {
	r := firewallcall.Request{Action: firewallcall.Status}
	doing := "reading the firewall of this machine"
	if len(args) > 0 {
		r.Action = firewallcall.Action(args[0])
		doing = "changing the firewall of this machine"
		if !slices.Contains([]firewallcall.Action{firewallcall.Enforce, firewallcall.Confirm, firewallcall.Report}, r.Action) {
			return usagef("%q is not one of enforce, confirm, report", args[0])
		}
	}
	switch r.Action {
	case firewallcall.Enforce:
		if !c.json && !c.approved && interactive() {
			if err := c.ask(ctx); err != nil {
				return err
			}
		}
	case firewallcall.Confirm:
		if !c.force {
			var err error
			if r.Connection, err = sessionConnection(os.Getpid()); err != nil {
				return fmt.Errorf("confirming the firewall of this machine: %w", err)
			}
		}
	}
	state, err := firewallcall.Call(ctx, c.runDir, r)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return c.output(state, func() string { return firewallText(state, time.Now()) })
}

// ask shows what would be closed and asks for approval.
func (c *NodeFirewallCommand) ask(ctx context.Context) error {
	state, err := firewallcall.Call(ctx, c.runDir, firewallcall.Request{Action: firewallcall.Status})
	if err != nil {
		return fmt.Errorf("reading the firewall of this machine: %w", err)
	}
	if state.Mode == "enforce" && state.Until.IsZero() {
		return nil
	}
	rows := [][]string{{"Port", "Address", "Process", "Packets"}}
	for _, p := range state.Ports {
		if !p.Open && p.Address.IsValid() {
			rows = append(rows, []string{portName(p), p.Address.String(), processOf(p), fmt.Sprint(p.Packets)})
		}
	}
	if len(rows) == 1 {
		c.UI.Output("No process listens on a port that would be closed.")
	} else {
		var b strings.Builder
		b.WriteString("These listeners would be closed to the underlay:\n\n")
		table(&b, rows)
		c.UI.Output(strings.TrimSuffix(b.String(), "\n"))
	}
	return c.confirm("\nClose them for two minutes, and then for good if you confirm it?")
}

func firewallText(s api.FirewallStatus, now time.Time) string {
	var b strings.Builder
	switch {
	case s.Mode == "report":
		b.WriteString("Mode: report. What comes to ports that are not open is counted, and passes.\n")
	case s.Until.IsZero():
		b.WriteString("Mode: enforce. What comes to ports that are not open is dropped.\n")
	default:
		fmt.Fprintf(&b, "Mode: enforce, for %s more. Log in again, and in that session: sif node firewall confirm\n", brief(s.Until.Sub(now)))
	}
	rows := [][]string{{"Port", "Address", "State", "Process", "Packets"}}
	for _, p := range s.Ports {
		address, state := "-", "closed"
		if p.Address.IsValid() {
			address = p.Address.String()
		}
		switch {
		case p.Open:
			state = "open"
		case s.Mode == "report":
			state = "reported"
		}
		rows = append(rows, []string{portName(p), address, state, processOf(p), fmt.Sprint(p.Packets)})
	}
	if len(rows) > 1 {
		b.WriteString("\n")
		table(&b, rows)
	}
	if s.Forwarded > 0 {
		fmt.Fprintf(&b, "\n%s routed between other machines would have been dropped.\n", count(int(s.Forwarded), "packet"))
	}
	return b.String()
}

// closedPorts are the ports of a node that are not open, for the status of the fabric.
func closedPorts(node string, s *api.FirewallStatus) (rows [][]string) {
	if s == nil {
		return nil
	}
	for _, p := range s.Ports {
		if !p.Open {
			rows = append(rows, []string{node, s.Mode, portName(p), processOf(p), fmt.Sprint(p.Packets)})
		}
	}
	return rows
}

func portName(p api.FirewallPort) string {
	if p.Port == 0 {
		return p.Protocol.String() // it has no ports
	}
	return fmt.Sprintf("%s/%d", p.Protocol, p.Port)
}

func processOf(p api.FirewallPort) string {
	switch {
	case !p.Address.IsValid():
		return "none listens"
	case p.Process == "":
		return "the kernel, or unknown"
	case p.Unit != "":
		return fmt.Sprintf("%s (%d, %s)", p.Process, p.PID, p.Unit)
	}
	return fmt.Sprintf("%s (%d)", p.Process, p.PID)
}

// errNoSession means that a process belongs to no session over the network.
var errNoSession = errors.New("this session did not come over SSH, so it does not show that somebody can log in from outside: use another one, or -force")

// sessionConnection returns the connection over which the session of a process came. sudo takes the
// variable away, so that of a parent is taken.
func sessionConnection(pid int) (*firewallcall.Connection, error) {
	for pid > 1 {
		environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			return nil, fmt.Errorf("find the connection of this session: %w", err)
		}
		for variable := range strings.SplitSeq(string(environment), "\x00") {
			if value, found := strings.CutPrefix(variable, "SSH_CONNECTION="); found {
				return parseSSHConnection(value)
			}
		}
		if pid, err = parentOf(pid); err != nil {
			return nil, fmt.Errorf("find the connection of this session: %w", err)
		}
	}
	return nil, errNoSession
}

func parentOf(pid int) (int, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name is in parentheses and may contain anything.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 2 {
		return 0, fmt.Errorf("/proc/%d/stat cannot be read", pid)
	}
	return strconv.Atoi(fields[1])
}

// parseSSHConnection parses "client port server port".
func parseSSHConnection(value string) (*firewallcall.Connection, error) {
	fields := strings.Fields(value)
	if len(fields) != 4 {
		return nil, fmt.Errorf("SSH_CONNECTION is %q, expected two addresses with their ports", value)
	}
	var ends [2]netip.AddrPort
	for i := range ends {
		addr, err := netip.ParseAddr(fields[2*i])
		if err != nil {
			return nil, fmt.Errorf("SSH_CONNECTION is %q: %w", value, err)
		}
		port, err := strconv.ParseUint(fields[2*i+1], 10, 16)
		if err != nil {
			return nil, fmt.Errorf("SSH_CONNECTION is %q: %w", value, err)
		}
		ends[i] = netip.AddrPortFrom(addr.Unmap().WithZone(""), uint16(port))
	}
	return &firewallcall.Connection{Client: ends[0], Server: ends[1]}, nil
}
