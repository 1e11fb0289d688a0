// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"golang.zx2c4.com/wireguard/conn"
	wgdevice "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"pgregory.net/rapid"
)

func newKey(t testing.TB) PrivateKey {
	t.Helper()
	key, err := GenerateKey()
	must.NoError(t, err)
	return key
}

func TestPrivateKeyShowsNowhere(t *testing.T) {
	key := newKey(t)
	secret := []string{key.Base64(), key.hex(), fmt.Sprint([32]byte(key))}
	device := Device{Name: "sif-a", PrivateKey: key}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb, key)
		fmt.Fprintf(&out, verb, device)
		fmt.Fprintf(&out, verb, &device)
	}
	text, err := json.Marshal(device)
	must.NoError(t, err)
	out.Write(text)
	for _, jsonFormat := range []bool{false, true} {
		hclog.New(&hclog.LoggerOptions{Output: &out, JSONFormat: jsonFormat}).Info("x", "key", key, "device", device)
	}
	for _, s := range secret {
		must.StrNotContains(t, out.String(), s)
	}
	must.StrContains(t, out.String(), redacted)
}

func TestKeys(t *testing.T) {
	// From `wg genkey` and `wg pubkey`.
	private, err := ParsePrivateKey("SM9dnZfXQze+BTxg0JwvenN1AVIPzGZHxaML4Tu+zE8=")
	must.NoError(t, err)
	must.Eq(t, "SM9dnZfXQze+BTxg0JwvenN1AVIPzGZHxaML4Tu+zE8=", private.Base64())
	must.Eq(t, "rfSQ9wwTbNX8p2IpC2SlRf24vcT6svx8+wKV8KvpA0I=", private.Public().String())
	var again Key
	text, err := private.Public().MarshalText()
	must.NoError(t, err)
	must.NoError(t, again.UnmarshalText(text))
	must.Eq(t, private.Public(), again)
	must.True(t, PrivateKey{}.Public().IsZero())

	for _, bad := range []string{"", "x", "AAAA", private.Base64() + "AAAA", "SM9dnZfXQze+BTxg0JwvenN1AVIPzGZHxaML4Tu+zE8"} {
		_, err := ParsePrivateKey(bad)
		must.Error(t, err)
		_, err = ParseKey(bad)
		must.Error(t, err)
	}
}

func TestValidate(t *testing.T) {
	private, peer, other := newKey(t), newKey(t).Public(), newKey(t).Public()
	good := func() Device {
		return Device{
			Name: "sif-zone", Interface: Interface{MTU: 1420, Routes: true}, ListenPort: 51820, PrivateKey: private,
			Peers: []Peer{{PublicKey: peer, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("100.64.1.0/24")}}},
		}
	}
	fit, err := good().fit()
	must.NoError(t, err)
	must.Len(t, 1, fit.Peers)
	for name, tc := range map[string]struct {
		change func(*Device)
		want   string
	}{
		"name of another":    {func(d *Device) { d.Name = "eth0" }, `device name "eth0"`},
		"name too long":      {func(d *Device) { d.Name = "sif-123456789012" }, "device name"},
		"name with path":     {func(d *Device) { d.Name = "sif-../x" }, "device name"},
		"MTU too small":      {func(d *Device) { d.MTU = 1279 }, "MTU 1279"},
		"MTU too large":      {func(d *Device) { d.MTU = 65536 }, "MTU 65536"},
		"no port":            {func(d *Device) { d.ListenPort = 0 }, "no listen port"},
		"no key":             {func(d *Device) { d.PrivateKey = PrivateKey{} }, "no private key"},
		"peer without key":   {func(d *Device) { d.Peers[0].PublicKey = Key{} }, "no public key"},
		"peer is itself":     {func(d *Device) { d.Peers[0].PublicKey = private.Public() }, "own key"},
		"peer twice":         {func(d *Device) { d.Peers = append(d.Peers, d.Peers[0]) }, "listed twice"},
		"part of a second":   {func(d *Device) { d.Peers[0].PersistentKeepalive = time.Millisecond }, "whole seconds"},
		"host bits":          {func(d *Device) { d.Peers[0].AllowedIPs[0] = netip.MustParsePrefix("100.64.1.1/24") }, "not a network"},
		"kernel's table":     {func(d *Device) { d.Table = 254 }, "one of the kernel"},
		"address of another": {func(d *Device) { d.Peers = append(d.Peers, Peer{PublicKey: other, AllowedIPs: d.Peers[0].AllowedIPs}) }, "both claim 100.64.1.0/24"},
	} {
		t.Run(name, func(t *testing.T) {
			d := good()
			tc.change(&d)
			fit, err := d.fit()
			must.ErrorContains(t, err, tc.want)
			// A peer is left out alone, an invalid device as a whole.
			must.True(t, fit.Name == "" || len(fit.Peers) == len(d.Peers)-1)
		})
	}
}

func TestSavedDevices(t *testing.T) {
	dir := t.TempDir()
	devices, err := loadDevices(dir)
	must.NoError(t, err)
	must.SliceEmpty(t, devices)

	want := []Device{{
		Name: "sif-zone", Interface: Interface{Namespace: "/run/netns/x", MTU: 1420, Routes: true},
		ListenPort: 51820, PrivateKey: newKey(t),
		Peers: []Peer{
			{PublicKey: newKey(t).Public(), Endpoint: netip.MustParseAddrPort("[fd00::1]:51820"),
				AllowedIPs:          []netip.Prefix{netip.MustParsePrefix("100.64.1.0/24"), netip.MustParsePrefix("fd5f:1::/64")},
				PersistentKeepalive: 25 * time.Second},
			{PublicKey: newKey(t).Public()},
		},
	}, {Name: "sif-p-1", Interface: Interface{MTU: 1280}}}
	must.NoError(t, saveDevices(dir, want))
	got, err := loadDevices(dir)
	must.NoError(t, err)
	must.Eq(t, want, got, must.Cmp(cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })))

	info, err := os.Stat(filepath.Join(dir, stateFile))
	must.NoError(t, err)
	must.Eq(t, os.FileMode(0o600), info.Mode())
	entries, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.Len(t, 1, entries)

	must.NoError(t, os.WriteFile(filepath.Join(dir, stateFile), []byte(`[{"name":"eth0","mtu":1420}]`), 0o600))
	_, err = loadDevices(dir)
	must.Error(t, err)
}

// wantedDevices generates desired states with few keys and prefixes, so that peers come back and
// addresses move from one peer to another.
func wantedDevices(keys []PrivateKey) *rapid.Generator[Device] {
	return rapid.Custom(func(t *rapid.T) Device {
		d := Device{
			Name: "sif-law", Interface: Interface{MTU: 1420},
			PrivateKey: rapid.SampledFrom(keys[:2]).Draw(t, "private"),
			ListenPort: uint16(rapid.IntRange(1, 3).Draw(t, "port")),
		}
		owners := make([]int, 8)
		for i := range owners {
			owners[i] = rapid.IntRange(0, len(keys)-1).Draw(t, "owner")
		}
		for i, key := range keys[2:] {
			if !rapid.Bool().Draw(t, "present") {
				continue
			}
			p := Peer{
				PublicKey:           key.Public(),
				Endpoint:            netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(rapid.IntRange(1, 2).Draw(t, "endpoint"))),
				PersistentKeepalive: time.Duration(rapid.IntRange(0, 2).Draw(t, "keepalive")) * time.Second,
			}
			for n, owner := range owners {
				if owner == i+2 {
					p.AllowedIPs = append(p.AllowedIPs,
						netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(n), 0}), 24),
						netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x5f, 7: byte(n)}), 64))
				}
			}
			sortPrefixes(p.AllowedIPs)
			d.Peers = append(d.Peers, p)
		}
		slices.SortFunc(d.Peers, func(a, b Peer) int { return bytes.Compare(a.PublicKey[:], b.PublicKey[:]) })
		return d
	})
}

// Law: from any state of a real device, the change brings it into the desired state, after which
// there is no further change.
func TestChangeMakesDeviceAsWanted(t *testing.T) {
	keys := make([]PrivateKey, 6)
	for i := range keys {
		keys[i] = newKey(t)
	}
	rapid.Check(t, func(t *rapid.T) {
		device := wgdevice.NewDevice(tuntest.NewChannelTUN().TUN(), conn.NewStdNetBind(), &wgdevice.Logger{
			Verbosef: wgdevice.DiscardLogf, Errorf: wgdevice.DiscardLogf})
		defer device.Close()
		state := func() wireguardState {
			text, err := device.IpcGet()
			must.NoError(t, err)
			s, err := parseUAPI(text)
			must.NoError(t, err)
			return s
		}
		for _, want := range rapid.SliceOfN(wantedDevices(keys), 1, 4).Draw(t, "wanted") {
			_, err := want.fit()
			must.NoError(t, err)
			must.NoError(t, device.IpcSet(difference(state(), want, nil, time.Now()).uapi()))
			got := state()
			must.Eq(t, want.PrivateKey, got.privateKey)
			must.Eq(t, want.ListenPort, got.listenPort)
			var peers []Peer
			for _, p := range got.peers {
				peers = append(peers, p.Peer)
			}
			must.Eq(t, "", cmp.Diff(want.Peers, peers, cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{})))
			must.Eq(t, "", difference(got, want, nil, time.Now()).uapi())
		}
	})
}

// A peer that moved keeps the endpoint that WireGuard learnt until its session is dead or its
// declaration changes.
func TestChangeOfEndpoint(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	declared, learnt := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("198.51.100.9:9")
	peer := newKey(t).Public()
	for name, tc := range map[string]struct {
		handshake time.Time
		last      map[Key]netip.AddrPort
		want      bool
	}{
		"alive, same declaration":    {at.Add(-time.Minute), map[Key]netip.AddrPort{peer: declared}, false},
		"alive, first application":   {at.Add(-time.Minute), nil, false},
		"alive, new declaration":     {at.Add(-time.Minute), map[Key]netip.AddrPort{peer: netip.MustParseAddrPort("192.0.2.7:1")}, true},
		"dead":                       {at.Add(-time.Hour), map[Key]netip.AddrPort{peer: declared}, true},
		"never a session":            {time.Time{}, nil, true},
		"dead at first application.": {at.Add(-time.Hour), nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			state := wireguardState{peers: []PeerStatus{{Peer: Peer{PublicKey: peer, Endpoint: learnt}, LastHandshake: tc.handshake}}}
			change := difference(state, Device{Peers: []Peer{{PublicKey: peer, Endpoint: declared}}}, tc.last, at).uapi()
			must.Eq(t, tc.want, strings.Contains(change, "endpoint=192.0.2.1:1\n"))
		})
	}
}

func FuzzParseUAPI(f *testing.F) {
	f.Add("private_key=" + strings.Repeat("a8", 32) + "\nlisten_port=51820\npublic_key=" + strings.Repeat("01", 32) +
		"\nendpoint=[fd00::1]:1\nallowed_ip=10.0.0.0/8\nlast_handshake_time_sec=1\nlast_handshake_time_nsec=2\n" +
		"rx_bytes=3\ntx_bytes=4\npersistent_keepalive_interval=5\nerrno=0\n\n")
	f.Add("endpoint=1.2.3.4:5\n")
	f.Add("listen_port=65536")
	f.Fuzz(func(t *testing.T, text string) {
		state, err := parseUAPI(text)
		if err != nil && len(state.peers) > 0 {
			t.Fatal("a state beside an error")
		}
	})
}
