// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/firewallcall"
	"github.com/sif-project/sif/internal/testhost"
)

// machine is a node's namespace with a firewall, and another one on its underlay.
type machine struct {
	t             *testing.T
	node, outside ns.NetNS
	dir           string
	mode          *mode
}

func newMachine(t *testing.T) *machine {
	testhost.RequireRoot(t)
	m := &machine{t: t, dir: t.TempDir()}
	for _, n := range []*ns.NetNS{&m.node, &m.outside} {
		made, err := testutils.NewNS()
		must.NoError(t, err)
		t.Cleanup(func() {
			must.NoError(t, made.Close())
			must.NoError(t, testutils.UnmountNS(made))
		})
		*n = made
	}
	for _, c := range []struct {
		in      ns.NetNS
		command string
	}{
		{m.node, "ip link set lo up; ip link add under0 type veth peer name eth0 netns " + m.outside.Path() + "; ip addr add 192.0.2.1/24 dev under0; ip link set under0 up"},
		{m.outside, "ip addr add 192.0.2.9/24 dev eth0; ip link set eth0 up"},
	} {
		out, err := exec.Command("nsenter", "--net="+c.in.Path(), "sh", "-ec", c.command).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	return m
}

// start starts a daemon, or starts it again.
func (m *machine) start(configured firewall.Mode, now time.Time) {
	m.t.Helper()
	f := firewall.New(firewall.Config{Underlay: "under0", Links: func() []uint16 { return nil }, Management: []firewall.Port{{Protocol: fabric.TCP, Number: 22}}, Published: 1, DNSPackets: 100})
	var err error
	m.mode, err = newMode(f, []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}, filepath.Join(m.dir, "firewall.json"), configured, now)
	must.NoError(m.t, err)
	m.repair(now)
}

func (m *machine) repair(now time.Time) {
	m.t.Helper()
	must.NoError(m.t, m.mode.settle(now))
	must.NoError(m.t, m.node.Do(func(ns.NetNS) error { _, err := m.mode.firewall.Apply(); return err }))
}

func (m *machine) call(action firewallcall.Action, over net.Conn, now time.Time) (s api.FirewallStatus, err error) {
	m.t.Helper()
	r := firewallcall.Request{Action: action}
	if over != nil {
		r.Connection = &firewallcall.Connection{Client: over.LocalAddr().(*net.TCPAddr).AddrPort(), Server: over.RemoteAddr().(*net.TCPAddr).AddrPort()}
	}
	must.NoError(m.t, m.node.Do(func(ns.NetNS) error {
		if _, err = m.mode.change(r, now); err != nil {
			return nil
		}
		if _, err := m.mode.firewall.Apply(); err != nil {
			return err
		}
		s, err = m.mode.status(now, 0)
		return err
	}))
	return s, err
}

// listen accepts connections at a port of the node.
func (m *machine) listen(port int) {
	m.t.Helper()
	must.NoError(m.t, m.node.Do(func(ns.NetNS) error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		must.NoError(m.t, err)
		m.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				m.t.Cleanup(func() { c.Close() })
				go io.Copy(c, c)
			}
		}()
		return nil
	}))
}

func (m *machine) dial(port int) (c net.Conn, err error) {
	m.t.Helper()
	must.NoError(m.t, m.outside.Do(func(ns.NetNS) error {
		c, err = net.DialTimeout("tcp", fmt.Sprintf("192.0.2.1:%d", port), 300*time.Millisecond)
		return nil
	}))
	if err == nil {
		m.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (m *machine) reaches(port int) bool {
	_, err := m.dial(port)
	return err == nil
}

func portOf(s api.FirewallStatus, number uint16) (found api.FirewallPort) {
	for _, p := range s.Ports {
		if p.Port == number {
			found = p
		}
	}
	return found
}

// A node that reports lists what enforcement would close. Enforcement ends by itself unless it is
// confirmed over a connection that was made since.
func TestModeIsConfirmedOrTakenBack(t *testing.T) {
	m := newMachine(t)
	m.listen(22)
	m.listen(8080)
	now := time.Now()
	m.start(firewall.Report, now)
	old, err := m.dial(22)
	must.NoError(t, err)
	must.True(t, m.reaches(8080))
	must.False(t, m.reaches(9999))

	s, err := m.call(firewallcall.Status, nil, now)
	must.NoError(t, err)
	must.Eq(t, "report", s.Mode)
	must.True(t, portOf(s, 22).Open)
	closed := portOf(s, 8080)
	must.False(t, closed.Open)
	must.Positive(t, closed.Packets)
	must.Eq(t, os.Getpid(), closed.PID)
	must.NotEq(t, "", closed.Process)
	must.Positive(t, portOf(s, 9999).Packets)
	must.False(t, portOf(s, 9999).Address.IsValid())
	_, err = m.call(firewallcall.Confirm, nil, now)
	must.ErrorContains(t, err, "there is nothing to confirm")

	s, err = m.call(firewallcall.Enforce, nil, now)
	must.NoError(t, err)
	must.Eq(t, "enforce", s.Mode)
	must.True(t, now.Add(trial).Equal(s.Until))
	must.False(t, m.reaches(8080))
	must.True(t, m.reaches(22))
	must.SliceLen(t, 1, m.mode.findings())
	_, err = m.call(firewallcall.Confirm, old, now)
	must.ErrorContains(t, err, "is older than the change")

	// A daemon that starts in between knows when the trial ends, and what was there before it.
	m.start(firewall.Report, now.Add(time.Minute))
	must.False(t, m.reaches(8080))
	_, err = m.call(firewallcall.Confirm, old, now.Add(time.Minute))
	must.ErrorContains(t, err, "is older than the change")
	m.repair(now.Add(trial))
	must.True(t, m.reaches(8080))
	_, err = m.call(firewallcall.Confirm, nil, now.Add(trial))
	must.ErrorContains(t, err, "there is nothing to confirm")

	// One that starts after the end goes back at once.
	_, err = m.call(firewallcall.Enforce, nil, now)
	must.NoError(t, err)
	m.start(firewall.Enforce, now.Add(2*trial))
	must.True(t, m.reaches(8080))

	now = time.Now()
	_, err = m.call(firewallcall.Enforce, nil, now)
	must.NoError(t, err)
	// What a session in tmux has in its environment may have ended long before.
	must.NoError(t, old.Close())
	m.start(firewall.Report, now)
	_, err = m.call(firewallcall.Report, nil, now)
	must.NoError(t, err)
	_, err = m.call(firewallcall.Enforce, nil, now)
	must.NoError(t, err)
	_, err = m.call(firewallcall.Confirm, old, now)
	must.ErrorContains(t, err, "is not there any more")
	fresh, err := m.dial(22)
	must.NoError(t, err)
	s, err = m.call(firewallcall.Confirm, fresh, now)
	must.NoError(t, err)
	must.True(t, s.Until.IsZero())
	m.repair(now.Add(time.Hour))
	must.False(t, m.reaches(8080))
	must.SliceEmpty(t, m.mode.findings())

	// The chosen mode overrides the configuration.
	m.start(firewall.Report, now.Add(time.Hour))
	must.False(t, m.reaches(8080))
	_, err = m.call(firewallcall.Report, nil, now.Add(time.Hour))
	must.NoError(t, err)
	m.start(firewall.Enforce, now.Add(time.Hour))
	must.True(t, m.reaches(8080))
	must.NoError(t, os.Remove(filepath.Join(m.dir, "firewall.json")))
	m.start(firewall.Enforce, now)
	must.False(t, m.reaches(8080))
}

// A mode that cannot be stored is not enforced: nobody would know when it ends.
func TestModeIsStoredBeforeItIsEnforced(t *testing.T) {
	m := newMachine(t)
	now := time.Now()
	m.start(firewall.Report, now)
	m.mode.file.Path = filepath.Join(m.dir, "nowhere", "firewall.json")
	_, err := m.call(firewallcall.Enforce, nil, now)
	must.ErrorContains(t, err, "the mode of the node's firewall")
	s, err := m.call(firewallcall.Status, nil, now)
	must.NoError(t, err)
	must.Eq(t, "report", s.Mode)
}

// A state file that cannot be read is named.
func TestCorruptModeIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "firewall.json")
	must.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	_, err := newMode(firewall.New(firewall.Config{}), nil, path, firewall.Enforce, time.Now())
	must.ErrorContains(t, err, path)
}
