// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// readWireGuard returns what the kernel's WireGuard says of a device in the calling thread's
// namespace.
func readWireGuard(name string) (state wireguardState, err error) {
	err = withWireGuard(func(client *wgctrl.Client) error {
		state, err = readDevice(client, name)
		return err
	})
	return state, err
}

func withWireGuard(do func(*wgctrl.Client) error) error {
	client, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("reach the kernel's WireGuard: %w", err)
	}
	return errors.Join(do(client), client.Close())
}

func readDevice(client *wgctrl.Client, name string) (wireguardState, error) {
	device, err := client.Device(name)
	if err != nil {
		return wireguardState{}, fmt.Errorf("read the state of WireGuard: %w", err)
	}
	return stateOf(device), nil
}

func stateOf(device *wgtypes.Device) wireguardState {
	s := wireguardState{privateKey: PrivateKey(device.PrivateKey), listenPort: uint16(device.ListenPort)}
	for _, p := range device.Peers {
		x := PeerStatus{
			Peer:          Peer{PublicKey: Key(p.PublicKey), PersistentKeepalive: p.PersistentKeepaliveInterval},
			LastHandshake: p.LastHandshakeTime, ReceivedBytes: uint64(p.ReceiveBytes), SentBytes: uint64(p.TransmitBytes),
		}
		if p.Endpoint != nil {
			at := p.Endpoint.AddrPort()
			x.Endpoint = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
		}
		for _, n := range p.AllowedIPs {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				bits, _ := n.Mask.Size()
				x.AllowedIPs = append(x.AllowedIPs, netip.PrefixFrom(addr.Unmap(), bits))
			}
		}
		sortPrefixes(x.AllowedIPs)
		s.peers = append(s.peers, x)
	}
	slices.SortFunc(s.peers, func(a, b PeerStatus) int { return slices.Compare(a.PublicKey[:], b.PublicKey[:]) })
	return s
}

// configureWireGuard writes to a device in the calling thread's namespace what differs from the
// desired state, and returns it. What it can write it does, also if the port is taken.
func configureWireGuard(d Device, declared map[Key]netip.AddrPort, now time.Time) (c change, err error) {
	err = withWireGuard(func(client *wgctrl.Client) error {
		state, err := readDevice(client, d.Name)
		if err != nil {
			return err
		}
		c = difference(state, d, declared, now)
		if c.privateKey != nil || len(c.peers) > 0 {
			config, err := c.config()
			if err != nil {
				return err
			}
			if err := client.ConfigureDevice(d.Name, config); err != nil {
				return fmt.Errorf("configure WireGuard: %w", err)
			}
		}
		if c.listenPort == nil {
			return nil
		}
		port := int(d.ListenPort)
		err = client.ConfigureDevice(d.Name, wgtypes.Config{ListenPort: &port})
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EPERM): // what WireGuard says of a namespace that is gone
			return errNoSocket
		case !errors.Is(err, unix.EADDRINUSE):
			return fmt.Errorf("listen on UDP port %d: %w", port, err)
		}
		// WireGuard goes on with its old socket, but reports the new port. Setting the old one
		// fails, too, because that socket has it; it is then reported.
		old := int(state.listenPort)
		_ = client.ConfigureDevice(d.Name, wgtypes.Config{ListenPort: &old})
		return fmt.Errorf("%w %d: %w", errPortTaken, port, err)
	})
	return c, err
}

// config translates a change, but for the port.
//
// Before Linux 6.16 WireGuard cannot take one allowed address from a peer without taking all of
// them for a moment, in which packets are lost. So a peer with a throw-away key gets what nobody is
// to have, and is then removed.
func (c change) config() (wgtypes.Config, error) {
	config := wgtypes.Config{PrivateKey: (*wgtypes.Key)(c.privateKey)}
	gained := map[netip.Prefix]bool{}
	var orphans []net.IPNet
	for _, p := range c.peers {
		for _, prefix := range p.gained {
			gained[prefix] = true
		}
	}
	for _, p := range c.peers {
		x := wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.key), Remove: p.remove, PersistentKeepaliveInterval: p.keepalive}
		if p.endpoint.IsValid() {
			x.Endpoint = net.UDPAddrFromAddrPort(p.endpoint)
		}
		for _, prefix := range p.gained {
			x.AllowedIPs = append(x.AllowedIPs, ipNet(prefix))
		}
		for _, prefix := range p.lost {
			if !gained[prefix] {
				orphans = append(orphans, ipNet(prefix))
			}
		}
		config.Peers = append(config.Peers, x)
	}
	if len(orphans) > 0 {
		key, err := GenerateKey()
		if err != nil {
			return config, err
		}
		nobody := wgtypes.Key(key.Public())
		config.Peers = append(config.Peers, wgtypes.PeerConfig{PublicKey: nobody, AllowedIPs: orphans}, wgtypes.PeerConfig{PublicKey: nobody, Remove: true})
	}
	return config, nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sendKeepalives sends a packet to peers of a device in the calling thread's namespace, which
// begins a handshake: WireGuard does so when a keepalive interval is set where there was none.
func sendKeepalives(name string, peers []Key) error {
	if len(peers) == 0 {
		return nil
	}
	return withWireGuard(func(client *wgctrl.Client) error {
		for _, interval := range []time.Duration{time.Second, 0} {
			var config wgtypes.Config
			for _, p := range peers {
				config.Peers = append(config.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(p), UpdateOnly: true, PersistentKeepaliveInterval: &interval})
			}
			if err := client.ConfigureDevice(name, config); err != nil {
				return fmt.Errorf("start handshakes: %w", err)
			}
		}
		return nil
	})
}
