// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/firewallcall"
	"github.com/sif-project/sif/internal/node/listener"
	"github.com/sif-project/sif/internal/statefile"
	"github.com/sif-project/sif/internal/wellknown"
)

// trial is how long ports stay closed unless that is confirmed.
const trial = 2 * time.Minute

// portsAge is how old the list of ports in a report may be, and unheardPorts how many ports on
// which nobody listens it names.
const (
	portsAge     = time.Minute
	unheardPorts = 100
)

// modeState is the mode of the node's firewall as it was chosen on the machine. It overrides that
// of the configuration.
type modeState struct {
	Mode  firewall.Mode `json:"mode"`
	Until time.Time     `json:"until,omitzero"` // of a trial
	// Before are the connections of the machine when a trial began.
	Before []firewallcall.Connection `json:"before,omitempty"`
}

// mode keeps the mode of a node's firewall.
type mode struct {
	firewall *firewall.Firewall
	ranges   []netip.Prefix
	file     statefile.File[modeState]

	mu     sync.Mutex
	state  modeState
	last   api.FirewallStatus
	listed time.Time // when last was read
}

// newMode reads the mode that was chosen; that of the configuration applies if none was.
func newMode(f *firewall.Firewall, ranges []netip.Prefix, path string, configured firewall.Mode, now time.Time) (*mode, error) {
	m := &mode{firewall: f, ranges: ranges, file: statefile.File[modeState]{Path: path, What: "the mode of the node's firewall"}}
	state, found, err := m.file.Read()
	if err != nil {
		return nil, err
	}
	if !found {
		state = modeState{Mode: configured}
	}
	// A wall clock that went back must not make a trial longer.
	if most := now.Add(trial); state.Until.After(most) {
		state.Until = most
	}
	m.state = state
	m.firewall.SetMode(state.Mode, state.Until)
	return m, m.settle(now)
}

// settle ends a trial whose time is over.
func (m *mode) settle(now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Until.IsZero() || now.Before(m.state.Until) {
		return nil
	}
	return m.set(modeState{Mode: firewall.Report})
}

// set changes the mode. The next Apply of the firewall makes it so. The caller must hold mu.
func (m *mode) set(s modeState) error {
	err := m.file.Write(s)
	if err != nil && s.Mode != firewall.Report {
		return err // after a restart nobody would know when it ends
	}
	m.state = s
	m.firewall.SetMode(s.Mode, s.Until)
	return err
}

// findings says that a trial waits for somebody.
func (m *mode) findings() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Until.IsZero() {
		return nil
	}
	return []string{fmt.Sprintf("the node's firewall goes back to reporting at %s unless it is confirmed: sif node firewall confirm", m.state.Until.Format(time.RFC3339))}
}

// change does what a call asks for, and reports whether the mode changed.
func (m *mode) change(r firewallcall.Request, now time.Time) (changed bool, err error) {
	if err := m.settle(now); err != nil {
		return true, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	switch r.Action {
	case firewallcall.Status:
		return false, nil
	case firewallcall.Report:
		return true, m.set(modeState{Mode: firewall.Report})
	case firewallcall.Enforce:
		if s.Mode == firewall.Enforce && s.Until.IsZero() {
			return false, nil
		}
		before, err := established()
		if err != nil {
			return false, err
		}
		return true, m.set(modeState{Mode: firewall.Enforce, Until: now.Add(trial), Before: before})
	case firewallcall.Confirm:
		switch {
		case s.Mode != firewall.Enforce:
			return false, errors.New("there is nothing to confirm: closed ports are not enforced, or that has ended; `sif node firewall enforce` begins")
		case s.Until.IsZero():
			return false, nil
		case r.Connection != nil && slices.Contains(s.Before, *r.Connection):
			return false, fmt.Errorf("the session from %s is older than the change, so it does not show that a new one is possible: log in again, and confirm there before %s",
				r.Connection.Client, s.Until.Format(time.TimeOnly))
		}
		if r.Connection != nil {
			now, err := established()
			if err != nil {
				return false, err
			}
			if !slices.Contains(now, *r.Connection) { // what a terminal multiplexer began in, perhaps
				return false, fmt.Errorf("the connection from %s over which this session began is not there any more, so it does not show that a new one is possible: log in again, and confirm there, outside tmux or screen, before %s",
					r.Connection.Client, s.Until.Format(time.TimeOnly))
			}
		}
		return true, m.set(modeState{Mode: firewall.Enforce})
	}
	return false, fmt.Errorf("unknown action %q", r.Action)
}

// established returns the TCP connections of the machine.
func established() (list []firewallcall.Connection, err error) {
	const stateEstablished = 1
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := netlink.SocketDiagTCP(family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list the connections of this machine: %w", err)
		}
		for _, s := range sockets {
			if s.State != stateEstablished {
				continue
			}
			local, _ := netip.AddrFromSlice(s.ID.Source)
			remote, _ := netip.AddrFromSlice(s.ID.Destination)
			list = append(list, firewallcall.Connection{
				Client: netip.AddrPortFrom(remote.Unmap(), s.ID.DestinationPort), Server: netip.AddrPortFrom(local.Unmap(), s.ID.SourcePort),
			})
		}
	}
	return list, nil
}

// status returns the state of the firewall. The list of ports may be as old as age.
func (m *mode) status(now time.Time, age time.Duration) (api.FirewallStatus, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.listed.IsZero() || now.Sub(m.listed) >= age {
		hits, forwarded, err := m.firewall.Hits()
		if err != nil {
			return api.FirewallStatus{}, err
		}
		ports, err := m.list()
		if err != nil {
			return api.FirewallStatus{}, err
		}
		m.last, m.listed = api.FirewallStatus{Ports: merge(ports, hits), Forwarded: forwarded}, now
	}
	s := m.last
	s.Mode, s.Until = string(m.state.Mode), m.state.Until
	return s, nil
}

// merge adds what was counted to the ports on which processes listen. Of the others it names those
// to which the most packets came.
func merge(list []api.FirewallPort, hits []firewall.Hit) []api.FirewallPort {
	var unheard []api.FirewallPort
	for _, h := range hits {
		found := false
		for i := range list {
			if list[i].Protocol == h.Protocol && list[i].Port == h.Number {
				list[i].Packets, found = h.Packets, true
			}
		}
		if !found {
			unheard = append(unheard, api.FirewallPort{Protocol: h.Protocol, Port: h.Number, Packets: h.Packets})
		}
	}
	slices.SortFunc(unheard, func(a, b api.FirewallPort) int { return cmp.Compare(b.Packets, a.Packets) })
	list = append(list, unheard[:min(len(unheard), unheardPorts)]...)
	slices.SortFunc(list, func(a, b api.FirewallPort) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), a.Address.Compare(b.Address))
	})
	return list
}

// list returns the ports on which processes of the machine listen for the underlay.
func (m *mode) list() (list []api.FirewallPort, err error) {
	all, err := listener.All()
	if err != nil {
		return nil, err
	}
	sockets := slices.DeleteFunc(all, func(s listener.Socket) bool { return !m.exposed(s) })
	owners := listener.Owners(sockets)
	open := m.firewall.Open()
	for _, s := range sockets {
		port := api.FirewallPort{
			Protocol: s.Protocol, Port: s.Address.Port(), Address: s.Address.Addr(),
			Process: owners[s].Name, PID: owners[s].PID, Unit: owners[s].Unit,
		}
		port.Open = slices.Contains(open, firewall.Port{Protocol: port.Protocol, Number: port.Port})
		if !slices.Contains(list, port) { // several sockets of one process
			list = append(list, port)
		}
	}
	return list, nil
}

// exposed reports whether what comes from the underlay can reach a socket.
func (m *mode) exposed(s listener.Socket) bool {
	addr := s.Address.Addr()
	return s.Address.Port() != 0 && !addr.IsLoopback() && addr != wellknown.LinkLocal4 &&
		(s.Protocol == fabric.TCP || s.Protocol == fabric.UDP) &&
		!slices.ContainsFunc(m.ranges, func(p netip.Prefix) bool { return p.Contains(addr) })
}
