// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
	wgdevice "golang.zx2c4.com/wireguard/device"

	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/wellknown"
)

// Device is the desired state of a WireGuard device.
type Device struct {
	// Name is the interface's name: "sif-" and one to eleven of a-z, 0-9 and "-". The prefix marks
	// interfaces that this package may create and remove.
	Name string
	Interface
	// ListenPort is the UDP port, 1 to 65535. It is opened in the namespace of `sif link` or of a
	// Kernel, whichever namespace the interface is in.
	ListenPort uint16
	PrivateKey PrivateKey
	Peers      []Peer
}

// Interface is the kernel's side of a device, where packets are in the clear.
type Interface struct {
	// Namespace is the path of the network namespace that the interface is in. Empty means the
	// namespace of `sif link` or of a Kernel.
	Namespace string `json:"namespace,omitempty"`
	// MTU is the size of the largest packet in the clear, in bytes: at least 1280, IPv6's minimum.
	// The underlay's MTU must be 60 bytes larger with IPv4 and 80 with IPv6.
	MTU int `json:"mtu"`
	// Routes says whether the main table of the namespace has routes to the interface for the
	// peers' allowed addresses. It never has a default route to it.
	Routes bool `json:"routes"`
	// Table is a routing table of the namespace whose default routes lead to the interface; 0:
	// none.
	Table int `json:"table,omitempty"`
}

// Peer is the other end of a link.
type Peer struct {
	PublicKey Key `json:"public_key"`
	// Endpoint is the address at which the peer listens. If it is unset, the peer must start the
	// handshake.
	Endpoint netip.AddrPort `json:"endpoint"`
	// AllowedIPs are the peer's addresses: the destinations of packets to it and the only sources
	// that are accepted from it.
	AllowedIPs []netip.Prefix `json:"allowed_ips"`
	// PersistentKeepalive is in whole seconds, up to 65535 s. 0 disables it.
	PersistentKeepalive time.Duration `json:"persistent_keepalive"`
}

// DeviceStatus is the actual state of a device.
type DeviceStatus struct {
	Name string `json:"name"`
	Interface
	Kind string `json:"kind"` // KindKernel or KindUserspace
	// Up says that packets can pass: key and port are set, the interface is up and the UDP socket
	// is open.
	Up bool `json:"up"`
	// Error says why the device is not in its desired state. It is empty if it is.
	Error      string       `json:"error,omitempty"`
	PublicKey  Key          `json:"public_key"`
	ListenPort uint16       `json:"listen_port"`
	Peers      []PeerStatus `json:"peers"`
	// Repaired counts what others changed of the interface and was put back, by kind, since the
	// device was set up.
	Repaired map[string]uint64 `json:"repaired,omitempty"`
}

// PeerStatus is the actual state of a peer. Its Endpoint is the source of the last authenticated
// packet.
type PeerStatus struct {
	Peer
	// LastHandshake is zero if there was none yet.
	LastHandshake time.Time `json:"last_handshake"`
	ReceivedBytes uint64    `json:"received_bytes"`
	SentBytes     uint64    `json:"sent_bytes"`
}

// Kinds of devices.
const (
	KindKernel    = "kernel"
	KindUserspace = "userspace"
)

// interfaceState is what must be of a device's interface: it passes IPv6 and has no link-local
// address; there is no reverse-path filter, because WireGuard checks source addresses by key.
func interfaceState(d Device, index int) kernel.State {
	i := kernel.Interface{
		Name: d.Name, Index: index, MTU: d.MTU,
		IPv4:       []kernel.Sysctl{{Name: "rp_filter", Value: "0"}, {Name: "forwarding", Value: "1"}},
		IPv6:       []kernel.Sysctl{{Name: "disable_ipv6", Value: "0"}, {Name: "addr_gen_mode", Value: "1"}, {Name: "accept_ra", Value: "0"}},
		OnlyRoutes: []int{unix.RT_TABLE_MAIN},
	}
	if d.Routes {
		for _, p := range d.Peers {
			for _, prefix := range p.AllowedIPs {
				if prefix.Bits() > 0 { // never replace the namespace's default route
					i.Routes = append(i.Routes, kernel.Route{Prefix: prefix, MTU: d.MTU})
				}
			}
		}
	}
	if d.Table != 0 {
		// Where net.ipv4.conf.all.rp_filter is 1 or 2, the device's own value does not switch the
		// filter off. It then asks for the way back of packets with the mark that they get here.
		i.IPv4 = append(i.IPv4, kernel.Sysctl{Name: "src_valid_mark", Value: "1"})
		i.OnlyRoutes = append(i.OnlyRoutes, d.Table)
		for _, anywhere := range Anywhere {
			i.Routes = append(i.Routes, kernel.Route{Prefix: anywhere, Table: d.Table, MTU: d.MTU})
		}
	}
	return kernel.State{Interfaces: []kernel.Interface{i}}
}

// Anywhere are the allowed addresses of a peer that leads to everything.
var Anywhere = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}

var deviceName = regexp.MustCompile(`^` + wellknown.ReservedPrefix + `[a-z0-9-]{1,11}$`) // IFNAMSIZ allows 15 bytes

func validateName(name string) error {
	if !deviceName.MatchString(name) {
		return fmt.Errorf("device name %q: must be \"sif-\" and one to eleven of a-z, 0-9, \"-\"", name)
	}
	return nil
}

func (i Interface) validate() error {
	if i.MTU < 1280 || i.MTU > wgdevice.MaxContentSize {
		return fmt.Errorf("MTU %d: must be 1280 to %d", i.MTU, wgdevice.MaxContentSize)
	}
	if i.Table < 0 || i.Table >= unix.RT_TABLE_COMPAT && i.Table <= unix.RT_TABLE_LOCAL {
		return fmt.Errorf("routing table %d: must not be one of the kernel's", i.Table)
	}
	return nil
}

// equal reports whether two desired states are the same, but for the order of peers.
func (d Device) equal(o Device) bool {
	if d.Name != o.Name || d.Interface != o.Interface || d.ListenPort != o.ListenPort || d.PrivateKey != o.PrivateKey || len(d.Peers) != len(o.Peers) {
		return false
	}
	others := make(map[Key]Peer, len(o.Peers))
	for _, p := range o.Peers {
		others[p.PublicKey] = p
	}
	for _, p := range d.Peers {
		q, there := others[p.PublicKey]
		if !there || p.Endpoint != q.Endpoint || p.PersistentKeepalive != q.PersistentKeepalive ||
			len(without(p.AllowedIPs, q.AllowedIPs))+len(without(q.AllowedIPs, p.AllowedIPs)) > 0 {
			return false
		}
	}
	return true
}

// fitting returns the devices that can be configured and the names of all, and an error for each
// device or peer that cannot.
func fitting(devices []Device) (fit []Device, wanted map[string]bool, errs []error) {
	wanted = make(map[string]bool, len(devices))
	ports := make(map[uint16]string, len(devices))
	for _, d := range devices {
		usable, err := d.fit()
		if err != nil {
			errs = append(errs, err)
		}
		other, taken := ports[d.ListenPort]
		switch {
		case wanted[d.Name]:
			errs = append(errs, fmt.Errorf("device %s is listed twice", d.Name))
		case taken:
			errs = append(errs, fmt.Errorf("devices %s and %s have the same listen port %d", other, d.Name, d.ListenPort))
		case usable.Name != "":
			fit = append(fit, usable)
			ports[d.ListenPort] = d.Name
		}
		wanted[d.Name] = true
	}
	return fit, wanted, errs
}

// fit returns the device with the peers that can be configured, and an error that names everything
// else: one peer with an unusable key does not keep the others from being configured. It returns
// the zero Device if the device itself is invalid.
//
// fit also rejects what WireGuard accepts without an error and then does not do: it ignores a peer
// with the device's own key, and gives an address that two peers claim to the last of them.
func (d Device) fit() (Device, error) {
	errs := []error{validateName(d.Name), d.Interface.validate()}
	if d.ListenPort == 0 {
		errs = append(errs, errors.New("no listen port"))
	}
	if d.PrivateKey.IsZero() {
		errs = append(errs, errors.New("no private key"))
	}
	if err := errors.Join(errs...); err != nil {
		return Device{}, fmt.Errorf("device %s: %w", d.Name, err)
	}
	var peers []Peer
	keys := map[Key]bool{d.PrivateKey.Public(): true}
	owner := make(map[netip.Prefix]Key)
	for _, p := range d.Peers {
		if err := d.checkPeer(p, keys, owner); err != nil {
			errs = append(errs, fmt.Errorf("peer at %s left out: %w", p.Endpoint, err))
			continue
		}
		keys[p.PublicKey] = true
		for _, prefix := range p.AllowedIPs {
			owner[prefix] = p.PublicKey
		}
		peers = append(peers, p)
	}
	d.Peers = peers
	if err := errors.Join(errs...); err != nil {
		return d, fmt.Errorf("device %s: %w", d.Name, err)
	}
	return d, nil
}

// checkPeer returns an error if a peer cannot be configured beside those that own the keys and
// prefixes.
func (d Device) checkPeer(p Peer, keys map[Key]bool, owner map[netip.Prefix]Key) error {
	switch {
	case p.PublicKey.IsZero():
		return errors.New("it has no public key")
	case p.PublicKey == d.PrivateKey.Public():
		return fmt.Errorf("peer %s has the device's own key", p.PublicKey)
	case keys[p.PublicKey]:
		return fmt.Errorf("peer %s is listed twice", p.PublicKey)
	}
	if k := p.PersistentKeepalive; k < 0 || k > 65535*time.Second || k%time.Second != 0 {
		return fmt.Errorf("peer %s: keepalive %s: must be whole seconds up to 65535", p.PublicKey, k)
	}
	for _, prefix := range p.AllowedIPs {
		if !prefix.IsValid() || prefix != prefix.Masked() || prefix.Addr().Is4In6() {
			return fmt.Errorf("peer %s: allowed prefix %s is not a network", p.PublicKey, prefix)
		}
		if other, taken := owner[prefix]; taken {
			return fmt.Errorf("peers %s and %s both claim %s", other, p.PublicKey, prefix)
		}
	}
	return nil
}
