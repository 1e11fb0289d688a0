// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.zx2c4.com/wireguard/conn"
	wgdevice "golang.zx2c4.com/wireguard/device"

	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/node/kernel"
)

// managedDevice is the desired and the actual state of a device. The server's mutex guards it.
type managedDevice struct {
	want    Device
	mark    string       // of its interface
	socket  net.Listener // UAPI
	running *runningDevice
	err     error // why it is not in the desired state
	logger  hclog.Logger
	changes []kernel.Change // that the last repair made
	counts  map[string]uint64
}

// runningDevice is an interface and the WireGuard instance behind it.
type runningDevice struct {
	namespace string
	id        namespaceID
	tun       *tunDevice
	wireguard *wgdevice.Device
	index     int // of the interface
	// relisten says that the UDP socket could not be opened. WireGuard has then forgotten the port
	// and would choose one itself.
	relisten bool
	// initiated are the peers to which a handshake was started.
	initiated map[Key]bool
}

// repair brings the device into the desired state from any other. Devices are created and changed
// only here; mostly there is nothing to do.
func (m *managedDevice) repair() error {
	m.err = m.doRepair()
	return m.err
}

func (m *managedDevice) doRepair() error {
	id, err := identifyNamespace(m.want.Namespace)
	if err != nil {
		m.stop() // the open TUN would keep a namespace alive that has no path any more
		return err
	}
	if r := m.running; r != nil && (r.ended() || r.namespace != m.want.Namespace || r.id != id) {
		m.stop()
	}
	if m.running == nil {
		if m.running, err = startDevice(m.want, m.mark, id, m.logger); err != nil {
			return err
		}
	}
	m.changes, err = m.running.apply(m.want)
	if !errors.Is(err, kernel.ErrNoInterface) {
		return err
	}
	// Somebody moved it into another namespace.
	m.stop()
	if m.running, err = startDevice(m.want, m.mark, id, m.logger); err != nil {
		return err
	}
	_, err = m.running.apply(m.want)
	m.changes = []kernel.Change{{Kind: kernel.KindInterface, Subject: m.want.Name, What: "was not in its namespace, made again"}}
	return err
}

// repairRegularly repairs what others changed, and counts it.
func (m *managedDevice) repairRegularly() {
	before, was := m.err, m.running
	m.changes = nil
	m.logRepair(m.repair(), before)
	if was != nil && was != m.running && len(m.changes) == 0 {
		m.changes = []kernel.Change{{Kind: kernel.KindInterface, Subject: m.want.Name, What: "was removed, made again"}}
	}
	if before != nil || len(m.changes) == 0 {
		return // it was not as it should be before either
	}
	m.logger.Warn("the device had been changed and was put back", logkey.Repaired, m.changes)
	for _, c := range m.changes {
		m.counts[c.Kind]++
	}
}

// stop removes the interface.
func (m *managedDevice) stop() {
	if m.running != nil {
		m.running.destroy()
		m.running = nil
	}
}

// leave leaves the interface to the next process.
func (m *managedDevice) leave() {
	if m.running != nil {
		m.running.close()
		m.running = nil
	}
}

// startDevice creates the interface, which stays down, or takes over that of an earlier process,
// and configures WireGuard.
func startDevice(want Device, mark string, id namespaceID, logger hclog.Logger) (*runningDevice, error) {
	r := &runningDevice{namespace: want.Namespace, id: id}
	err := inNamespace(want.Namespace, func() (err error) {
		if r.tun, r.index, err = openTUN(want.Name, mark, want.MTU); err != nil {
			return err
		}
		if reversePathFiltered() {
			logger.Warn("net.ipv4.conf.all.rp_filter is enabled in the interface's namespace and may drop its packets")
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("create the interface: %w", err)
	}
	// WireGuard opens the UDP socket on goroutines of its own, so in the process's namespace.
	r.wireguard = wgdevice.NewDevice(r.tun, conn.NewStdNetBind(), &wgdevice.Logger{
		Verbosef: func(format string, args ...any) { logger.Trace(fmt.Sprintf(format, args...)) },
		Errorf:   func(format string, args ...any) { logger.Warn(fmt.Sprintf(format, args...)) },
	})
	if change := difference(wireguardState{}, want, nil, time.Now()).uapi(); change != "" {
		if err := r.wireguard.IpcSet(change); err != nil {
			r.destroy()
			return nil, fmt.Errorf("configure WireGuard: %w", err)
		}
	}
	return r, nil
}

// apply brings interface, socket and routes into the desired state, and returns what differed. The
// device stays down and has no socket until key and port are set, which happens over UAPI after the
// interface exists.
func (r *runningDevice) apply(want Device) (changes []kernel.Change, err error) {
	r.tun.setMTU(want.MTU)
	if want.PrivateKey.IsZero() || want.ListenPort == 0 {
		return nil, nil
	}
	if err := r.listen(want.ListenPort); err != nil {
		return nil, fmt.Errorf("listen on UDP port %d: %w", want.ListenPort, err)
	}
	err = inNamespace(want.Namespace, func() (err error) {
		changes, err = kernel.Repair(interfaceState(want, r.index))
		return err
	})
	if err != nil {
		return changes, err
	}
	r.initiateHandshakes(want.Peers)
	return changes, nil
}

// listen makes WireGuard listen on the port.
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

// initiateHandshakes starts a handshake with each new peer. Otherwise a peer that knew this device
// before would go on sending in a session that ended with our process, and lose its packets for the
// 15 s after which WireGuard gives up a session.
func (r *runningDevice) initiateHandshakes(peers []Peer) {
	initiated := make(map[Key]bool, len(peers))
	for _, p := range peers {
		if !p.Endpoint.IsValid() {
			continue
		}
		initiated[p.PublicKey] = true
		if r.initiated[p.PublicKey] {
			continue
		}
		if peer := r.wireguard.LookupPeer(wgdevice.NoisePublicKey(p.PublicKey)); peer != nil {
			// If the peer is unreachable, WireGuard logs it and retries.
			_ = peer.SendHandshakeInitiation(false)
		}
	}
	r.initiated = initiated
}

// set executes the lines of a UAPI "set" operation. The configuration that the device then has
// becomes the desired one, also if the operation failed halfway, except for a port that could not
// be opened.
func (m *managedDevice) set(lines string) error {
	if m.running == nil {
		return fmt.Errorf("the device does not exist: %w", m.err)
	}
	err := m.running.wireguard.IpcSet(lines)
	if err != nil {
		m.running.relisten = true
	}
	state, getErr := m.state()
	if getErr != nil {
		return errors.Join(err, getErr)
	}
	m.want.PrivateKey = state.privateKey
	if state.listenPort != 0 || err == nil {
		m.want.ListenPort = state.listenPort
	}
	m.want.Peers = nil
	for _, p := range state.peers {
		m.want.Peers = append(m.want.Peers, p.Peer)
	}
	return err
}

// state reads the state of the running device.
func (m *managedDevice) state() (wireguardState, error) {
	var b strings.Builder
	if err := m.running.wireguard.IpcGetOperation(&b); err != nil {
		return wireguardState{}, fmt.Errorf("read the state of WireGuard: %w", err)
	}
	return parseUAPI(b.String())
}

func (m *managedDevice) status() DeviceStatus {
	s := DeviceStatus{Name: m.want.Name, Interface: m.want.Interface, Kind: KindUserspace, Peers: []PeerStatus{}, Repaired: maps.Clone(m.counts)}
	err := m.err
	if m.running != nil {
		state, stateErr := m.state()
		err = errors.Join(err, stateErr)
		s.PublicKey, s.ListenPort = state.privateKey.Public(), state.listenPort
		s.Peers = append(s.Peers, state.peers...)
		s.Up = err == nil && !m.running.ended() && s.ListenPort != 0 && !s.PublicKey.IsZero()
	}
	if err != nil {
		s.Error = err.Error()
	}
	return s
}

// ended reports whether WireGuard stopped, as it does when the interface is deleted.
func (r *runningDevice) ended() bool {
	select {
	case <-r.wireguard.Wait():
		return true
	default:
		return false
	}
}

// destroy ends WireGuard and removes the interface.
func (r *runningDevice) destroy() {
	_ = r.tun.persist(false) // it fails only if somebody deleted the interface
	r.close()
}

// close ends WireGuard. The interface stays.
func (r *runningDevice) close() {
	r.wireguard.Close()
}

func (m *managedDevice) logRepair(err error, before error) {
	switch {
	case err == nil && before != nil:
		m.logger.Info("device repaired")
	case err != nil && (before == nil || before.Error() != err.Error()):
		m.logger.Error("cannot repair device", logkey.Error, err)
	}
}
