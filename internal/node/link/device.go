// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	wgdevice "golang.zx2c4.com/wireguard/device"

	"github.com/sif-project/sif/internal/wellknown"
)

// Device is a WireGuard device as its owner wants it.
type Device struct {
	// Name is the interface's name: "sif-" and up to eleven of a-z, 0-9 and
	// "-". The prefix marks the interface as ours to make and remove.
	Name string
	// Interface is what the kernel's side of the device looks like.
	Interface
	// ListenPort is the UDP port, 1 to 65535, in the namespace of `sif link`
	// itself, wherever the interface lives.
	ListenPort uint16
	PrivateKey PrivateKey
	Peers      []Peer
}

// Interface is the side of a device that packets in clear enter and leave by.
type Interface struct {
	// Namespace is the path of the network namespace in which the interface
	// lives; empty means that of `sif link`.
	Namespace string `json:"namespace,omitempty"`
	// MTU is in bytes, of the packet in clear: at least 1280, IPv6's minimum.
	// An IPv4 underlay's is 60 higher, an IPv6 underlay's 80.
	MTU int `json:"mtu"`
	// Routes says whether the peers' allowed addresses are routed to the
	// interface, in the main table of its namespace.
	Routes bool `json:"routes"`
}

// Peer is the other end of a link.
type Peer struct {
	PublicKey Key `json:"public_key"`
	// Endpoint is where the peer listens. Unset, the peer must speak first.
	Endpoint netip.AddrPort `json:"endpoint"`
	// AllowedIPs are the addresses that are the peer's: only they are sent to
	// it, and only they are accepted from it.
	AllowedIPs []netip.Prefix `json:"allowed_ips"`
	// PersistentKeepalive is in whole seconds, up to 65535 s; 0 switches it off.
	PersistentKeepalive time.Duration `json:"persistent_keepalive"`
}

// DeviceStatus is a device as it is.
type DeviceStatus struct {
	Name string `json:"name"`
	Interface
	// Up says that packets can pass: key and port are set, the interface is
	// up, the UDP socket open.
	Up bool `json:"up"`
	// Error says why the device is not as it should be; empty if it is.
	Error      string       `json:"error,omitempty"`
	PublicKey  Key          `json:"public_key"`
	ListenPort uint16       `json:"listen_port"`
	Peers      []PeerStatus `json:"peers"`
}

// PeerStatus is a peer as it is. Its Endpoint is the one that authenticated
// packets came from last.
type PeerStatus struct {
	Peer
	// LastHandshake is the zero time if there was none yet.
	LastHandshake time.Time `json:"last_handshake"`
	ReceivedBytes uint64    `json:"received_bytes"`
	SentBytes     uint64    `json:"sent_bytes"`
}

var deviceName = regexp.MustCompile(`^` + wellknown.ReservedPrefix + `[a-z0-9-]{1,11}$`) // IFNAMSIZ leaves 15

func validateName(name string) error {
	if !deviceName.MatchString(name) {
		return fmt.Errorf("device name %q: want \"sif-\" and one to eleven of a-z, 0-9, \"-\"", name)
	}
	return nil
}

func (i Interface) validate() error {
	if i.MTU < 1280 || i.MTU > wgdevice.MaxContentSize {
		return fmt.Errorf("MTU %d: want 1280 to %d", i.MTU, wgdevice.MaxContentSize)
	}
	return nil
}

// validate refuses what WireGuard would take but not do: it drops a peer with
// the device's own key silently, and gives an address claimed by two peers to
// the last one.
func (d Device) validate() error {
	errs := []error{validateName(d.Name), d.Interface.validate()}
	if d.ListenPort == 0 {
		errs = append(errs, errors.New("no listen port"))
	}
	if d.PrivateKey.IsZero() {
		errs = append(errs, errors.New("no private key"))
	}
	own := d.PrivateKey.Public()
	keys := make(map[Key]bool)
	owner := make(map[netip.Prefix]Key)
	for _, p := range d.Peers {
		switch {
		case p.PublicKey.IsZero():
			errs = append(errs, errors.New("a peer without public key"))
		case p.PublicKey == own:
			errs = append(errs, fmt.Errorf("peer %s has the device's own key", p.PublicKey))
		case keys[p.PublicKey]:
			errs = append(errs, fmt.Errorf("peer %s is listed twice", p.PublicKey))
		}
		keys[p.PublicKey] = true
		if k := p.PersistentKeepalive; k < 0 || k > 65535*time.Second || k%time.Second != 0 {
			errs = append(errs, fmt.Errorf("peer %s: keepalive %s: want whole seconds up to 65535", p.PublicKey, k))
		}
		for _, prefix := range p.AllowedIPs {
			if !prefix.IsValid() || prefix != prefix.Masked() || prefix.Addr().Is4In6() {
				errs = append(errs, fmt.Errorf("peer %s: allowed prefix %s is not a network", p.PublicKey, prefix))
				continue
			}
			if d.Routes && prefix.Bits() == 0 {
				errs = append(errs, fmt.Errorf("peer %s: %s would take the namespace's default route", p.PublicKey, prefix))
			}
			if other, taken := owner[prefix]; taken {
				errs = append(errs, fmt.Errorf("peers %s and %s both claim %s", other, p.PublicKey, prefix))
			}
			owner[prefix] = p.PublicKey
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("device %s: %w", d.Name, err)
	}
	return nil
}
