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
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/logkey"
	"github.com/sif-project/sif/internal/wellknown"
)

// repairInterval is how often the server compares what there is with what is
// wanted, unasked.
const repairInterval = 2 * time.Second

// ServerConfig says where a Server keeps its things.
type ServerConfig struct {
	// RunDir takes the sockets. Whoever may enter it may change the links.
	RunDir string
	// DataDir takes the saved devices, private keys included.
	DataDir string
	Logger  hclog.Logger
}

// Server holds the devices of a node.
type Server struct {
	config ServerConfig
	logger hclog.Logger

	mu      sync.Mutex
	devices map[string]*heldDevice
}

// NewServer returns a server that does nothing yet.
func NewServer(config ServerConfig) *Server {
	return &Server{config: config, logger: config.Logger, devices: make(map[string]*heldDevice)}
}

// Run restores the saved devices and serves until ctx ends; then the devices
// go away, and stay saved. It returns an error if it could not serve, also
// when another server uses the run dir.
func (s *Server) Run(ctx context.Context) error {
	for _, dir := range []string{s.config.RunDir, s.config.DataDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	lock, err := lockDir(s.config.RunDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	defer s.closeDevices()
	if err := s.restore(); err != nil {
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

	tick := time.NewTicker(repairInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.repairAll()
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

// restore makes the saved devices. One that cannot be made yet, because its
// namespace is not there after a reboot, is tried again by and by.
func (s *Server) restore() error {
	devices, err := loadDevices(s.config.DataDir)
	if err != nil {
		// The file is a cache of what agent or engine will ask for again.
		path := filepath.Join(s.config.DataDir, stateFile)
		s.logger.Error("starting without the saved devices; their file is put aside", logkey.Error, err)
		if err := os.Rename(path, path+".unreadable"); err != nil {
			return fmt.Errorf("put aside unreadable devices: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range devices {
		h, err := s.hold(d)
		if err != nil {
			return err
		}
		h.logRepair(h.repair(), nil)
	}
	if len(devices) > 0 {
		s.logger.Info("restored saved devices", logkey.Count, len(devices))
	}
	return nil
}

// hold takes up a device and opens its UAPI socket.
func (s *Server) hold(d Device) (*heldDevice, error) {
	socket, err := listenUnix(filepath.Join(s.config.RunDir, d.Name+".sock"))
	if err != nil {
		return nil, err
	}
	h := &heldDevice{want: d, socket: socket, logger: s.logger.With(logkey.Interface, d.Name)}
	s.devices[d.Name] = h
	go s.serveUAPI(d.Name, socket)
	return h, nil
}

func (s *Server) drop(h *heldDevice) {
	h.socket.Close() // removes the file
	h.stop()
	delete(s.devices, h.want.Name)
}

// putDevice makes the device or changes its interface in place.
func (s *Server) putDevice(name string, want Interface) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, known := s.devices[name]
	if !known {
		var err error
		if h, err = s.hold(Device{Name: name, Interface: want}); err != nil {
			return err
		}
	}
	if known && h.want.Interface == want {
		return h.repair()
	}
	h.want.Interface = want
	if err := h.repair(); err != nil {
		if !known {
			s.drop(h)
		}
		return errors.Join(err, s.save())
	}
	h.logger.Info("device is set up", logkey.Namespace, want.Namespace, logkey.MTU, want.MTU)
	return s.save()
}

// deleteDevice is content with a device that is not there.
func (s *Server) deleteDevice(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, known := s.devices[name]
	if !known {
		return nil
	}
	s.drop(h)
	h.logger.Info("device is deleted")
	return s.save()
}

// configure runs a UAPI "set" operation on a device.
func (s *Server) configure(name string, lines string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, known := s.devices[name]
	if !known {
		return fmt.Errorf("device %s is gone", name)
	}
	err := h.set(lines)
	// An address may have moved from another device's peers to this one's:
	// the route there and the route here are set in one go.
	for _, other := range s.devices {
		if other != h {
			before := other.err
			other.logRepair(other.repair(), before)
		}
	}
	return errors.Join(err, h.repair(), s.save())
}

func (s *Server) repairAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.devices {
		before := h.err
		h.logRepair(h.repair(), before)
	}
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

func (s *Server) closeDevices() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.devices {
		s.drop(h)
	}
}

// lockDir keeps a second server, which would take the sockets over, out of a
// run dir. The kernel releases the lock with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "link.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s, is another `sif link` running there?: %w", f.Name(), err)
	}
	return f, nil
}

// listenUnix opens a socket for root alone, in place of one that a killed
// server left: the lock says that there is no other.
func listenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, fmt.Errorf("restrict socket: %w", err)
	}
	return listener, nil
}
