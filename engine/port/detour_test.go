// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package port_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/engine/ovs/ovstest"
	"github.com/sif-project/sif/internal/node/link"
)

// While the packets of a link between two processors take a detour, its ports and switches see them
// come and go by the link's device, and a connection does not lose a segment.
func TestDetourOfALink(t *testing.T) {
	z := newZones(t, zonesOptions{switched: true, encrypted: true, userspace: true, switchMTU: zonesMTU - 26})
	type side struct {
		client    *link.Client
		key       link.PrivateKey
		diversion link.Diversion
	}
	var sides [2]side
	for i := range sides {
		n := z.nodes[i+1]
		key, err := link.GenerateKey()
		must.NoError(t, err)
		device := fmt.Sprintf("sif-l%d", 1-i)
		sides[i] = side{n.startLink(t, nil), key, link.Diversion{
			Namespace: filepath.Join("/run/netns", n.name+device[3:]), Device: device, Detour: device + "d",
		}}
		must.NoError(t, link.Divert(link.Diversion{Namespace: sides[i].diversion.Namespace, Device: device, Ready: true}))
	}
	beyond := func(i int) []netip.Prefix { return []netip.Prefix{netip.PrefixFrom(zonesAddr(3-3*i), 32)} }
	for i, s := range sides {
		must.NoError(t, s.client.Apply(t.Context(), []link.Device{{
			Name: s.diversion.Detour, Interface: link.Interface{Namespace: s.diversion.Namespace, MTU: zonesMTU}, ListenPort: 51899, PrivateKey: s.key,
			Peers: []link.Peer{{
				PublicKey: sides[1-i].key.Public(), Endpoint: netip.AddrPortFrom(z.nodes[2-i].underlay, 51899), AllowedIPs: beyond(i), PersistentKeepalive: time.Second,
			}},
		}}))
	}
	peer := func(s side) link.PeerStatus {
		list, err := s.client.Status(t.Context())
		must.NoError(t, err)
		return list[0].Peers[0]
	}
	near, far := z.open()
	go func() { _, _ = io.Copy(far, far) }()
	echo := func(rounds int) {
		t.Helper()
		must.NoError(t, near.SetDeadline(time.Now().Add(time.Minute)))
		b := make([]byte, 1000)
		for i := range rounds {
			binary.BigEndian.PutUint64(b, uint64(i))
			_, err := near.Write(b)
			must.NoError(t, err)
			_, err = io.ReadFull(near, b)
			must.NoError(t, err)
			must.Eq(t, uint64(i), binary.BigEndian.Uint64(b))
		}
	}
	for _, s := range sides {
		must.NoError(t, link.Divert(s.diversion))
		ovstest.Patiently(t, func() error {
			if peer(s).LastHandshake.IsZero() {
				return fmt.Errorf("no handshake")
			}
			return nil
		})
	}
	echo(50)
	again := z.tcpCounter("RetransSegs")
	for range 3 {
		for i, s := range sides { // one direction after the other
			s.diversion.To = beyond(i)
			before := peer(sides[1-i]).ReceivedBytes
			must.NoError(t, link.Divert(s.diversion))
			echo(100)
			must.Greater(t, before+50_000, peer(sides[1-i]).ReceivedBytes)
		}
		for _, s := range sides {
			must.NoError(t, link.Divert(s.diversion))
			echo(50)
		}
	}
	must.Eq(t, again, z.tcpCounter("RetransSegs"))
}
