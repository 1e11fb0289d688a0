// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package supervisor

import (
	"net"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

var reloading = regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=\d+$`)

func TestMessages(t *testing.T) {
	address := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"}
	l, err := net.ListenUnixgram("unixgram", address)
	must.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	t.Setenv("NOTIFY_SOCKET", address.Name)
	read := func() string {
		t.Helper()
		must.NoError(t, l.SetReadDeadline(time.Now().Add(5*time.Second)))
		buf := make([]byte, 1024)
		n, err := l.Read(buf)
		must.NoError(t, err)
		return string(buf[:n])
	}

	s := New(hclog.NewNullLogger())
	s.Ready()
	must.Eq(t, "READY=1", read())
	s.Alive("enforcing revision 7", nil)
	must.Eq(t, "WATCHDOG=1\nSTATUS=enforcing revision 7", read())
	s.Alive("enforcing revision 7", []string{"links:\nno port", "host"})
	must.Eq(t, "WATCHDOG=1\nSTATUS=enforcing revision 7; degraded (2): links: no port", read())
	s.Reload(func() { must.RegexMatch(t, reloading, read()) })
	must.Eq(t, "READY=1", read())
	s.Stopping()
	must.Eq(t, "STOPPING=1\nSTATUS=stopping", read())
}

func TestWithoutSupervisor(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	ran := false
	for _, s := range []*Supervisor{nil, New(hclog.NewNullLogger())} {
		s.Ready()
		s.Alive("well", nil)
		s.Stopping()
		ran = false
		s.Reload(func() { ran = true })
		must.True(t, ran)
	}
	t.Setenv("NOTIFY_SOCKET", "/nowhere/notify") // is logged, and nothing else
	New(hclog.NewNullLogger()).Ready()
}
