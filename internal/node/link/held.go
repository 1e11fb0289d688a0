// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	wgdevice "golang.zx2c4.com/wireguard/device"

	"github.com/sif-project/sif/internal/logkey"
)

// heldDevice is a device that the server holds: what is wanted, and what there
// is of it at the moment. The server's mutex guards it.
type heldDevice struct {
	want    Device
	socket  net.Listener // UAPI
	running *runningDevice
	err     error // why it is not as wanted
	logger  hclog.Logger
}

// runningDevice is the interface, and the WireGuard that serves it.
type runningDevice struct {
	namespace string
	id        namespaceID
	tun       *tunDevice
	wireguard *wgdevice.Device
	netlink   netlinksafe.Handle // in the interface's namespace
	// relisten says that the UDP socket could not be opened: WireGuard has then
	// forgotten the port and would take any.
	relisten bool
	// greeted are the peers that were sent a handshake of ours.
	greeted map[Key]bool
}

// repair makes of the device what is wanted, whatever is there: it is the one
// way by which devices come to be, and finds nothing to do most of the time.
func (h *heldDevice) repair() error {
	h.err = h.doRepair()
	return h.err
}

func (h *heldDevice) doRepair() error {
	id, err := identifyNamespace(h.want.Namespace)
	if err != nil {
		h.stop() // lest the open TUN keep alive a namespace that nobody can enter any more
		return err
	}
	if r := h.running; r != nil && (r.ended() || r.namespace != h.want.Namespace || r.id != id) {
		h.stop()
	}
	if h.running == nil {
		if h.running, err = startDevice(h.want, id, h.logger); err != nil {
			return err
		}
	}
	return h.running.settle(h.want)
}

func (h *heldDevice) stop() {
	if h.running != nil {
		h.running.close()
		h.running = nil
	}
}

// startDevice makes the interface, still down, and configures WireGuard.
func startDevice(want Device, id namespaceID, logger hclog.Logger) (*runningDevice, error) {
	r := &runningDevice{namespace: want.Namespace, id: id}
	err := inNamespace(want.Namespace, func() (err error) {
		if r.tun, err = openTUN(want.Name, want.MTU); err != nil {
			return err
		}
		if r.netlink, err = netlinksafe.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		if reversePathFiltered() {
			logger.Warn("net.ipv4.conf.all.rp_filter is on in the interface's namespace and may drop what comes by it")
		}
		return setSysctls(want.Name)
	})
	if err != nil {
		r.netlink.Close()
		if r.tun != nil {
			r.tun.Close()
		}
		return nil, fmt.Errorf("make interface: %w", err)
	}
	// The UDP socket is opened by WireGuard's own goroutines, whose threads are
	// in the process's namespace.
	r.wireguard = wgdevice.NewDevice(r.tun, conn.NewStdNetBind(), &wgdevice.Logger{
		Verbosef: func(format string, args ...any) { logger.Trace(fmt.Sprintf(format, args...)) },
		Errorf:   func(format string, args ...any) { logger.Warn(fmt.Sprintf(format, args...)) },
	})
	if change := uapiChange(uapiState{}, want, nil, time.Now()); change != "" {
		if err := r.wireguard.IpcSet(change); err != nil {
			r.close()
			return nil, fmt.Errorf("configure WireGuard: %w", err)
		}
	}
	return r, nil
}

// settle brings interface, socket and routes into the wanted state. Without a
// key and port, which come over UAPI after the interface, the device stays
// down and has no socket.
func (r *runningDevice) settle(want Device) error {
	link, err := r.netlink.LinkByName(want.Name)
	if err != nil {
		return fmt.Errorf("find interface: %w", err)
	}
	if link.Attrs().MTU != want.MTU {
		if err := r.netlink.LinkSetMTU(link, want.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", want.MTU, err)
		}
	}
	r.tun.setMTU(want.MTU)
	if want.PrivateKey.IsZero() || want.ListenPort == 0 {
		return nil
	}
	if err := r.listen(want.ListenPort); err != nil {
		return fmt.Errorf("listen on UDP port %d: %w", want.ListenPort, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := r.netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set interface up: %w", err)
		}
	}
	var prefixes []netip.Prefix
	if want.Routes {
		for _, p := range want.Peers {
			for _, prefix := range p.AllowedIPs {
				if prefix.Bits() > 0 { // never the namespace's default route
					prefixes = append(prefixes, prefix)
				}
			}
		}
	}
	if err := setRoutes(r.netlink, link, prefixes, want.MTU); err != nil {
		return err
	}
	r.greet(want.Peers)
	return nil
}

// listen brings WireGuard up on the port.
func (r *runningDevice) listen(port uint16) error {
	if r.relisten {
		if err := r.wireguard.IpcSet(fmt.Sprintf("listen_port=%d\n", port)); err != nil {
			return err
		}
	}
	r.relisten = true
	if err := r.wireguard.Up(); err != nil {
		return err
	}
	r.relisten = false
	return nil
}

// greet starts a handshake with each new peer. A peer that knew us before
// would otherwise go on sending under a session that died with our process,
// into the void, for the 15 s after which WireGuard gives one up.
func (r *runningDevice) greet(peers []Peer) {
	greeted := make(map[Key]bool, len(peers))
	for _, p := range peers {
		if !p.Endpoint.IsValid() {
			continue
		}
		greeted[p.PublicKey] = true
		if r.greeted[p.PublicKey] {
			continue
		}
		if peer := r.wireguard.LookupPeer(wgdevice.NoisePublicKey(p.PublicKey)); peer != nil {
			// An unreachable peer is no error here; WireGuard tries again, and logs.
			_ = peer.SendHandshakeInitiation(false)
		}
	}
	r.greeted = greeted
}

// set runs the lines of a UAPI "set" operation and takes what the device then
// has, also after an error halfway, as what is wanted from now on; a port that
// it could not get is not wanted.
func (h *heldDevice) set(lines string) error {
	if h.running == nil {
		return fmt.Errorf("the device is not there: %w", h.err)
	}
	err := h.running.wireguard.IpcSet(lines)
	if err != nil {
		h.running.relisten = true
	}
	state, getErr := h.state()
	if getErr != nil {
		return errors.Join(err, getErr)
	}
	h.want.PrivateKey = state.privateKey
	if state.listenPort != 0 || err == nil {
		h.want.ListenPort = state.listenPort
	}
	h.want.Peers = nil
	for _, p := range state.peers {
		h.want.Peers = append(h.want.Peers, p.Peer)
	}
	return err
}

// state asks the running device.
func (h *heldDevice) state() (uapiState, error) {
	var b strings.Builder
	if err := h.running.wireguard.IpcGetOperation(&b); err != nil {
		return uapiState{}, fmt.Errorf("ask WireGuard for its state: %w", err)
	}
	return parseUAPI(b.String())
}

func (h *heldDevice) status() DeviceStatus {
	s := DeviceStatus{Name: h.want.Name, Interface: h.want.Interface, Peers: []PeerStatus{}}
	err := h.err
	if h.running != nil {
		state, stateErr := h.state()
		err = errors.Join(err, stateErr)
		s.PublicKey, s.ListenPort = state.privateKey.Public(), state.listenPort
		s.Peers = append(s.Peers, state.peers...)
		s.Up = err == nil && !h.running.ended() && s.ListenPort != 0 && !s.PublicKey.IsZero()
	}
	if err != nil {
		s.Error = err.Error()
	}
	return s
}

// ended reports whether WireGuard gave up, as it does when the interface is
// deleted under it.
func (r *runningDevice) ended() bool {
	select {
	case <-r.wireguard.Wait():
		return true
	default:
		return false
	}
}

func (r *runningDevice) close() {
	r.wireguard.Close()
	r.netlink.Close()
}

func (h *heldDevice) logRepair(err error, before error) {
	switch {
	case err == nil && before != nil:
		h.logger.Info("device is as wanted again")
	case err != nil && (before == nil || before.Error() != err.Error()):
		h.logger.Error("device is not as wanted", logkey.Error, err)
	}
}
