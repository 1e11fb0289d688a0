// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package listener

import (
	"net"
	"os"
	"testing"

	"github.com/shoenig/test/must"
)

func TestUnitOf(t *testing.T) {
	for groups, want := range map[string]string{
		"0::/system.slice/ssh.service\n": "ssh.service",
		"12:pids:/system.slice/docker-1a.scope\n1:name=systemd:/system.slice/nomad.service/a\n0::/\n": "nomad.service",
		"0::/user.slice/user-0.slice/user@0.service/app.slice/web.service\n":                          "web.service",
		"0::/user.slice/user-0.slice/session-3.scope\n":                                               "",
		"": "", "\n": "",
	} {
		must.Eq(t, want, unitOf(groups), must.Sprint(groups))
	}
}

func TestOwners(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must.NoError(t, err)
	defer l.Close()
	all, err := All()
	must.NoError(t, err)
	owners := Owners(all)
	found := false
	for _, s := range all {
		if s.Address.Port() == uint16(l.Addr().(*net.TCPAddr).Port) && s.Address.Addr().Is4() {
			found = true
			must.Eq(t, os.Getpid(), owners[s].PID)
			must.NotEq(t, "", owners[s].Name)
		}
	}
	must.True(t, found)
}
