// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"encoding/json"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/cli"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/firewallcall"
)

// A command asks over the socket, and shows what it was told, or the refusal.
func TestNodeFirewall(t *testing.T) {
	state := api.FirewallStatus{Mode: "report", Forwarded: 1, Ports: []api.FirewallPort{
		{Protocol: fabric.TCP, Port: 22, Open: true, Address: netip.MustParseAddr("0.0.0.0"), Process: "sshd", PID: 812, Unit: "ssh.service"},
		{Protocol: fabric.TCP, Port: 5432, Address: netip.MustParseAddr("::"), Process: "postgres", PID: 900, Packets: 7},
		{Protocol: fabric.UDP, Port: 9999, Packets: 3},
	}}
	dir := t.TempDir()
	asked := make(chan firewallcall.Request, 10)
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		served <- firewallcall.Serve(ctx, dir, func(r firewallcall.Request) (api.FirewallStatus, error) {
			asked <- r
			switch r.Action {
			case firewallcall.Confirm:
				return state, errReported
			case firewallcall.Enforce:
				state.Mode, state.Until = "enforce", time.Now().Add(2*time.Minute)
			}
			return state, nil
		})
	}()
	defer func() {
		cancel()
		must.NoError(t, <-served)
	}()
	run := func(code int, args ...string) (string, string) {
		t.Helper()
		var ui *cli.MockUi
		got := 0
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			ui = cli.NewMockUi()
			got = newRunner(ui, "node firewall", &NodeFirewallCommand{}).Run(append([]string{"-run-dir=" + dir}, args...))
			if got == code || time.Now().After(deadline) {
				break
			}
		}
		must.Eq(t, code, got, must.Sprint(ui.ErrorWriter.String()))
		return ui.OutputWriter.String(), ui.ErrorWriter.String()
	}
	text, _ := run(0)
	must.StrHasPrefix(t, "Mode: report. What comes to ports that are not open is counted, and passes.\n", text)
	must.StrContains(t, text, "tcp/22    0.0.0.0  open      sshd (812, ssh.service)  0")
	must.StrContains(t, text, "tcp/5432  ::       reported  postgres (900)           7")
	must.StrContains(t, text, "udp/9999  -        reported  none listens             3")
	must.StrContains(t, text, "1 packet routed between other machines would have been dropped")
	must.Eq(t, firewallcall.Status, (<-asked).Action)

	text, _ = run(0, "-json")
	var got api.FirewallStatus
	must.NoError(t, json.Unmarshal([]byte(text), &got))
	must.Eq(t, state, got)
	<-asked

	text, _ = run(0, "-auto-approve", "enforce")
	must.StrContains(t, text, "Log in again, and in that session: sif node firewall confirm")
	must.StrContains(t, text, "closed  postgres (900)")
	must.Eq(t, firewallcall.Enforce, (<-asked).Action)

	t.Setenv("SSH_CONNECTION", "")
	_, problem := run(1, "-force", "confirm")
	must.StrContains(t, problem, errReported.Error())
	must.Nil(t, (<-asked).Connection)
}

// The connection of a session is found although sudo took the variable from the command.
func TestSessionConnection(t *testing.T) {
	shell := exec.Command("sh", "-c", "env -u SSH_CONNECTION sleep 60; true")
	shell.Env = []string{"PATH=/usr/bin:/bin", "SSH_CONNECTION=2001:db8::9 4000 ::ffff:192.0.2.1 22"}
	must.NoError(t, shell.Start())
	defer func() { _ = shell.Process.Kill(); _ = shell.Wait() }()
	child := 0
	for deadline := time.Now().Add(5 * time.Second); child == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		child = childOf(t, shell.Process.Pid)
	}
	c, err := sessionConnection(child)
	must.NoError(t, err)
	must.Eq(t, firewallcall.Connection{Client: netip.MustParseAddrPort("[2001:db8::9]:4000"), Server: netip.MustParseAddrPort("192.0.2.1:22")}, *c)
	for _, bad := range []string{"", "a 1 b 2", "192.0.2.9 70000 192.0.2.1 22", "192.0.2.9 1 192.0.2.1"} {
		_, err := parseSSHConnection(bad)
		must.ErrorContains(t, err, "SSH_CONNECTION is")
	}
}

// childOf returns the process ID of a child that runs sleep, or 0.
func childOf(t *testing.T, parent int) int {
	t.Helper()
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(parent), "sleep").Output()
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	must.NoError(t, err)
	return pid
}
