// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machine

import (
	"net"
	"net/netip"
	"testing"

	"github.com/shoenig/test/must"
)

// An operator's environment names the servers; a node uses the agents of its own machine.
func TestAddressesOfTheEnvironmentCountIfTheyAreOfThisMachine(t *testing.T) {
	for said, ours := range map[string]bool{
		"":                             false,
		"https://192.0.2.10:4646":      false,
		"192.0.2.10:8500":              false,
		"https://[2001:db8::1]:8501":   false,
		"https://no.such.invalid:4646": false,
		"http://127.0.0.1:4646":        true,
		"127.0.0.1:8500":               true,
		"https://[::1]:8501":           true,
		"http://localhost:8500":        true,
		"unix:///run/consul.sock":      true,
	} {
		t.Setenv("NOMAD_ADDR", said)
		must.Eq(t, ours, ofThisMachine("NOMAD_ADDR") == said && said != "", must.Sprint(said))
	}
	own, err := net.InterfaceAddrs()
	must.NoError(t, err)
	for _, o := range own {
		at := netip.MustParsePrefix(o.String()).Addr()
		if at.IsLinkLocalUnicast() {
			continue
		}
		said := "https://" + netip.AddrPortFrom(at, 4646).String()
		t.Setenv("NOMAD_ADDR", said)
		must.Eq(t, said, ofThisMachine("NOMAD_ADDR"))
	}
}
