// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sif-project/sif/internal/dirlock"
	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/supervisor"
	"github.com/sif-project/sif/internal/wellknown"
)

// repairInterval is how often the server compares actual and desired state. In the settling time
// after its start it tries settlingInterval after a failure: the kernel may still have the ports of
// a predecessor that was killed.
const (
	repairInterval   = 2 * time.Second
	settlingTime     = 5 * time.Second
	settlingInterval = 50 * time.Millisecond
)

// lockFile is the file in the run directory by which a server keeps others out.
const lockFile = "link.lock"

// ServerConfig configures a Server.
type ServerConfig struct {
	// RunDir is the directory of the sockets. Access to it is access to the links.
	RunDir string
	// DataDir is the directory of the saved devices and their private keys.
	DataDir string
	Logger  hclog.Logger
	// Supervisor is told when the server serves; nil if nobody supervises it.
	Supervisor *supervisor.Supervisor
}

// Server runs the devices of a node.
type Server struct {
	config ServerConfig
	logger hclog.Logger

	mu      sync.Mutex
	devices map[string]*managedDevice
}

// NewServer returns a server. Run starts it.
func NewServer(config ServerConfig) *Server {
	return &Server{config: config, logger: config.Logger, devices: make(map[string]*managedDevice)}
}

// Run restores the saved devices and serves until ctx ends. The devices' interfaces stay then, and
// drop packets, so that the next server finds them with their routes. It returns an error if it
// cannot serve, for instance because another server uses the run directory.
func (s *Server) Run(ctx context.Context) error {
	for _, dir := range []string{s.config.RunDir, s.config.DataDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create the directory: %w", err)
		}
	}
	// A second server would replace the sockets.
	lock, err := dirlock.Take(s.config.RunDir, lockFile)
	if errors.Is(err, dirlock.ErrLocked) {
		return fmt.Errorf("lock %s: another `sif link` is running there", s.config.RunDir)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	defer s.closeDevices()
	restored, err := s.restore()
	if err != nil {
		return err
	}
	listener, err := listenUnix(filepath.Join(s.config.RunDir, wellknown.LinkSocket))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	s.logger.Info("serving", logkey.Address, listener.Addr().String())
	s.config.Supervisor.Ready()
	s.settle(ctx)
	if restored {
		s.removeStrays()
	}

	tick := time.NewTicker(repairInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.config.Supervisor.Alive(fmt.Sprintf("running %d devices", s.repairAll()), nil)
		case err := <-served:
			return fmt.Errorf("serve %s: %w", listener.Addr(), err)
		case <-ctx.Done():
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if err := server.Shutdown(stop); err != nil {
				return fmt.Errorf("stop serving %s: %w", listener.Addr(), err)
			}
			return nil
		}
	}
}

// restore creates the saved devices, and reports whether they could be read. Devices that cannot be
// created yet, because after a reboot their namespace does not exist, are retried by repairAll.
func (s *Server) restore() (bool, error) {
	devices, err := loadDevices(s.config.DataDir)
	if err != nil {
		// The file only bridges the time until the agent or the engine applies the devices again.
		path := filepath.Join(s.config.DataDir, stateFile)
		s.logger.Error("starting without the saved devices, whose file is unreadable and was renamed", logkey.Error, err)
		if err := os.Rename(path, path+".unreadable"); err != nil {
			return false, fmt.Errorf("rename the unreadable file of saved devices: %w", err)
		}
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var running sync.WaitGroup
	defer running.Wait()
	for _, d := range devices {
		m, err := s.add(d)
		if err != nil {
			return false, err
		}
		running.Go(func() { m.logRepair(m.repair(), nil) })
	}
	running.Wait()
	if len(devices) > 0 {
		s.logger.Info("restored saved devices", logkey.Count, len(devices))
	}
	return true, nil
}

// settle repairs the devices until none has failed or the settling time is over.
func (s *Server) settle(ctx context.Context) {
	for end := time.Now().Add(settlingTime); time.Now().Before(end); {
		s.mu.Lock()
		failed := false
		for _, m := range s.devices {
			failed = failed || m.err != nil
		}
		s.mu.Unlock()
		if !failed || !retry.Sleep(ctx, settlingInterval) {
			return
		}
		s.repairAll()
	}
}

// removeStrays deletes the interfaces that an earlier server left and that are not devices of this
// one any more, or not where these are.
func (s *Server) removeStrays() {
	s.mu.Lock()
	defer s.mu.Unlock()
	home, err := currentNamespace()
	if err != nil {
		s.logger.Warn("cannot look for interfaces of an earlier process", logkey.Error, err)
		return
	}
	removed, err := removeStrays(s.config.DataDir, func(name string, index int) bool {
		m, known := s.devices[name]
		if !known {
			return false
		}
		at := home
		if m.want.Namespace != "" {
			if at, err = identifyNamespace(m.want.Namespace); err != nil {
				return false
			}
		}
		here, err := currentNamespace()
		return err != nil || here == at && (m.running == nil || m.running.index == index)
	})
	if len(removed) > 0 {
		s.logger.Info("deleted interfaces of an earlier process", logkey.Interface, removed)
	}
	if err != nil {
		s.logger.Warn("cannot delete an interface of an earlier process", logkey.Error, err)
	}
}

// add adds a device and opens its UAPI socket. The device is created by repair.
func (s *Server) add(d Device) (*managedDevice, error) {
	socket, err := listenUnix(filepath.Join(s.config.RunDir, d.Name+".sock"))
	if err != nil {
		return nil, err
	}
	m := &managedDevice{want: d, mark: markOf(d.Name, s.config.DataDir), socket: socket, logger: s.logger.With(logkey.Interface, d.Name), counts: map[string]uint64{}}
	s.devices[d.Name] = m
	go s.serveUAPI(d.Name, socket)
	return m, nil
}

func (s *Server) remove(m *managedDevice) {
	m.socket.Close() // removes the file
	m.stop()
	delete(s.devices, m.want.Name)
}

// putDevice creates the device or changes its interface in place.
func (s *Server) putDevice(name string, want Interface) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, known := s.devices[name]
	if !known {
		var err error
		if m, err = s.add(Device{Name: name, Interface: want}); err != nil {
			return err
		}
	}
	if known && m.want.Interface == want {
		m.repairRegularly()
		return m.err
	}
	m.want.Interface = want
	if err := m.repair(); err != nil {
		if !known {
			s.remove(m)
		}
		return errors.Join(err, s.save())
	}
	m.logger.Info("device set up", logkey.Namespace, want.Namespace, logkey.MTU, want.MTU)
	return s.save()
}

// deleteDevice deletes a device. That it does not exist is not an error.
func (s *Server) deleteDevice(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, known := s.devices[name]
	if !known {
		return nil
	}
	s.remove(m)
	m.logger.Info("device deleted")
	return s.save()
}

// configure runs a UAPI "set" operation on a device.
func (s *Server) configure(name string, lines string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, known := s.devices[name]
	if !known {
		return fmt.Errorf("device %s was deleted", name)
	}
	err := m.set(lines)
	// An address may have moved here from a peer of another device, whose route must then go.
	for _, other := range s.devices {
		if other != m {
			before := other.err
			other.logRepair(other.repair(), before)
		}
	}
	return errors.Join(err, m.repair(), s.save())
}

// repairAll compares all devices with the desired state, and returns their number.
func (s *Server) repairAll() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.devices {
		m.repairRegularly()
	}
	return len(s.devices)
}

func (s *Server) status() []DeviceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]DeviceStatus, 0, len(s.devices))
	for _, name := range s.names() {
		list = append(list, s.devices[name].status())
	}
	return list
}

func (s *Server) save() error {
	var devices []Device
	for _, name := range s.names() {
		devices = append(devices, s.devices[name].want)
	}
	return saveDevices(s.config.DataDir, devices)
}

func (s *Server) names() []string {
	names := make([]string, 0, len(s.devices))
	for name := range s.devices {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// closeDevices ends the devices, but leaves their interfaces.
func (s *Server) closeDevices() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.devices {
		m.socket.Close()
		m.leave()
	}
	clear(s.devices)
}

// listenUnix opens a socket that only root can use. It replaces one that a killed server left; the
// lock guarantees that no other server uses it.
func listenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the stale socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, fmt.Errorf("restrict access to the socket: %w", err)
	}
	return listener, nil
}
