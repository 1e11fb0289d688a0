// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"net"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/testhost"
)

// A port on which a process of the same program listens is not exposed; one of another program is,
// and one on which nobody listens.
func TestPortsOfDaemonsAreNotExposed(t *testing.T) {
	testhost.RequireRoot(t) // to see whose sockets they are
	testhost.RequireProgram(t, "sleep")
	own, err := net.Listen("tcp4", "127.0.0.1:0")
	must.NoError(t, err)
	defer own.Close()
	other, err := net.Listen("tcp4", "127.0.0.1:0")
	must.NoError(t, err)
	file, err := other.(*net.TCPListener).File()
	must.NoError(t, err)
	holder := exec.Command("sleep", "600")
	holder.Stdin = file
	must.NoError(t, holder.Start())
	defer func() { must.NoError(t, holder.Process.Kill()); _ = holder.Wait() }()
	must.NoError(t, file.Close())
	must.NoError(t, other.Close()) // only the other process has it now

	exposure := func(at string) config.Exposure {
		return config.Exposure{Protocol: fabric.TCP, Port: 80, To: netip.MustParseAddrPort(at)}
	}
	list := []config.Exposure{exposure(own.Addr().String()), exposure(other.Addr().String()), exposure("127.0.0.1:1")}
	open, refused, err := exposed(list)
	must.NoError(t, err)
	must.Len(t, 2, open)
	must.Eq(t, other.Addr().String(), open[0].To.String())
	must.Len(t, 1, refused)
	must.StrContains(t, refused[0], "which leads to "+own.Addr().String()+", where a daemon of the fabric listens")
}
