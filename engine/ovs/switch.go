// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	govs "github.com/digitalocean/go-openvswitch/ovs"
	"github.com/vishvananda/netlink"

	of "github.com/sif-project/sif/engine/openflow"
)

// Config says how to reach one Open vSwitch. Several may run on one machine.
type Config struct {
	// RunDir is the run directory of its daemons (OVS_RUNDIR).
	RunDir string
	// Database is the path of ovsdb-server's unix socket; RunDir/db.sock if empty.
	Database string
	// Control is the path of ovs-vswitchd's control socket. If empty, it follows from
	// RunDir/ovs-vswitchd.pid.
	Control string
	// Bridge is the bridge's name.
	Bridge string
	// Datapath is "system", the kernel's, or "netdev", in user space. If empty, it is the kernel's
	// if the kernel has one.
	Datapath string
}

// Switch manages the bridge that Config names.
type Switch struct {
	config Config
	limits *limits // those that LimitConnections was called with

	datapath atomic.Value // its type, a string; see datapathType
	windows  atomic.Bool  // IgnoreWindows was called
}

// datapathType returns the type of the bridge's datapath, or "" if there is no bridge. It asks
// until there is one: afterwards no tool is started while packets wait for a switch that restarted.
func (s *Switch) datapathType(ctx context.Context) (string, error) {
	if known, _ := s.datapath.Load().(string); known != "" {
		return known, nil
	}
	datapath, err := s.get(ctx, "bridge", s.config.Bridge, "datapath_type")
	if err == nil {
		s.datapath.Store(datapath)
	}
	return datapath, err
}

// NewSwitch returns a Switch. It does not access Open vSwitch.
func NewSwitch(config Config) *Switch {
	if config.Database == "" {
		config.Database = filepath.Join(config.RunDir, "db.sock")
	}
	return &Switch{config: config}
}

// toolTimeout bounds a call of an Open vSwitch tool, which otherwise waits forever for a daemon
// that does not run.
const toolTimeout = 10 * time.Second

// client returns a go-openvswitch client that runs the tools with our database and within ctx.
func (s *Switch) client(ctx context.Context) *govs.Client {
	return govs.New(govs.Exec(func(cmd string, args ...string) ([]byte, error) {
		return s.run(ctx, cmd, args...)
	}))
}

func (s *Switch) run(ctx context.Context, cmd string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, cmd, append([]string{"--db=unix:" + s.config.Database}, args...)...)
	c.Env = append(os.Environ(), "OVS_RUNDIR="+s.config.RunDir)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("%s %s: %w: %s", cmd, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// KernelDatapath reports whether the kernel has a datapath of Open vSwitch. Asking loads its
// module.
func KernelDatapath() bool {
	_, err := netlink.GenlFamilyGet("ovs_datapath")
	return err == nil
}

// usualDatapath is that of a new bridge, unless Config.Datapath names one.
func usualDatapath() string {
	if KernelDatapath() {
		return "system"
	}
	return "netdev"
}

// Create makes the bridge if it does not exist. A bridge without flows drops everything.
func (s *Switch) Create(ctx context.Context) error {
	datapath := s.config.Datapath
	if datapath == "" {
		datapath = usualDatapath()
	}
	// Not by go-openvswitch's AddBridge: the bridge must never exist with the default fail mode,
	// which forwards packets, nor with another datapath.
	if _, err := s.run(ctx, "ovs-vsctl", "--may-exist", "add-br", s.config.Bridge, "--",
		"set", "bridge", s.config.Bridge, "fail_mode="+string(govs.FailModeSecure), "datapath_type="+datapath,
		"protocols="+govs.ProtocolOpenFlow13+","+govs.ProtocolOpenFlow14, "mcast_snooping_enable=false"); err != nil {
		return fmt.Errorf("create bridge %s: %w", s.config.Bridge, err)
	}
	_, err := s.repairFragments(ctx)
	return err
}

// AddPort makes a network device of the switch's namespace a port of the bridge, if it is not one,
// and returns its OpenFlow number, which it keeps when the switch restarts.
func (s *Switch) AddPort(ctx context.Context, device string) (uint32, error) {
	if err := s.client(ctx).VSwitch.AddPort(s.config.Bridge, device); err != nil {
		return 0, fmt.Errorf("add port %s: %w", device, err)
	}
	ports, err := s.Ports(ctx)
	if err != nil {
		return 0, fmt.Errorf("add port %s: %w", device, err)
	}
	no, ok := ports[device]
	if !ok {
		return 0, fmt.Errorf("add port %s: the switch could not open the device", device)
	}
	if _, err := s.run(ctx, "ovs-vsctl", "set", "interface", device, fmt.Sprintf("ofport_request=%d", no)); err != nil {
		return 0, fmt.Errorf("keep the number of port %s: %w", device, err)
	}
	return no, nil
}

// DeletePort removes a port from the bridge, if it is one.
func (s *Switch) DeletePort(ctx context.Context, device string) error {
	if err := s.client(ctx).VSwitch.DeletePort(s.config.Bridge, device); err != nil {
		return fmt.Errorf("delete port %s: %w", device, err)
	}
	return nil
}

// Ports returns the OpenFlow numbers of the ports whose devices the switch could open.
func (s *Switch) Ports(ctx context.Context) (map[string]uint32, error) {
	conn, err := s.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	list, err := conn.Ports(ctx)
	if err != nil {
		return nil, err
	}
	ports := make(map[string]uint32, len(list))
	for _, p := range list {
		if p.No != of.LocalPort {
			ports[p.Name] = p.No
		}
	}
	return ports, nil
}

// Dial opens an OpenFlow connection to the bridge, and makes the bridge match fragments as flows
// expect.
func (s *Switch) Dial(ctx context.Context) (*of.Conn, error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := matchFragments(ctx, conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func (s *Switch) dial(ctx context.Context) (*of.Conn, error) {
	return of.Dial(ctx, filepath.Join(s.config.RunDir, s.config.Bridge+".mgmt"))
}

// Revalidated returns when ovs-vswitchd has compared the datapath's cached decisions with the flow
// tables once more, which it does after each change of a table and otherwise every half second. All
// bridges of the daemon must have the same datapath type.
func (s *Switch) Revalidated(ctx context.Context) error {
	return s.control(ctx, "revalidator/wait")
}

// control runs a command of ovs-vswitchd for its effect.
func (s *Switch) control(ctx context.Context, method string, params ...string) error {
	_, err := s.ask(ctx, method, params...)
	return err
}

// ask runs a command of ovs-vswitchd as ovs-appctl does, by JSON-RPC 1.0 on its control socket, and
// returns what it prints.
func (s *Switch) ask(ctx context.Context, method string, params ...string) (string, error) {
	socket := s.config.Control
	if socket == "" {
		pid, err := os.ReadFile(filepath.Join(s.config.RunDir, "ovs-vswitchd.pid"))
		if err != nil {
			return "", fmt.Errorf("find ovs-vswitchd: %w", err)
		}
		socket = filepath.Join(s.config.RunDir, "ovs-vswitchd."+strings.TrimSpace(string(pid))+".ctl")
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return "", fmt.Errorf("connect to ovs-vswitchd's control socket: %w", err)
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(nc).Encode(map[string]any{"id": 0, "method": method, "params": append([]string{}, params...)}); err != nil {
		return "", fmt.Errorf("call %s of ovs-vswitchd: %w", method, errors.Join(err, ctx.Err()))
	}
	var reply struct {
		Result string `json:"result"`
		Error  any    `json:"error"`
	}
	if err := json.NewDecoder(nc).Decode(&reply); err != nil {
		return "", fmt.Errorf("call %s of ovs-vswitchd: %w", method, errors.Join(err, ctx.Err()))
	}
	if reply.Error != nil {
		return "", fmt.Errorf("call %s of ovs-vswitchd: %v", method, reply.Error)
	}
	return reply.Result, nil
}
