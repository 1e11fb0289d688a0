// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	ovsSchema        = "/usr/share/openvswitch/vswitch.ovsschema"
	receiveBufferKey = "net/core/rmem_default"
	receiveBuffer    = 8 << 20 // bytes; with less, the userspace datapath loses bursts
)

// hostSettings are settings of the whole machine, not of a namespace, that the lab changes and Down
// restores.
type hostSettings struct {
	ReceiveBuffer string // the previous net.core.rmem_default
}

func hostSettingsFile(lab string) string { return runRoot + "/" + lab + "/host.json" }

// raiseReceiveBuffer raises the machine's default socket buffer. There is only one such setting,
// and a socket of ovs-vswitchd uses the value at the time when its port is added.
func (l *Lab) raiseReceiveBuffer() error {
	have, err := os.ReadFile("/proc/sys/" + receiveBufferKey)
	if err != nil {
		return fmt.Errorf("read sysctl: %w", err)
	}
	old := strings.TrimSpace(string(have))
	if n, err := strconv.Atoi(old); err == nil && n >= receiveBuffer {
		return nil
	}
	if err := writeJSON(hostSettingsFile(l.Name), hostSettings{ReceiveBuffer: old}); err != nil {
		return fmt.Errorf("store the machine's settings: %w", err)
	}
	return sysctl(receiveBufferKey, strconv.Itoa(receiveBuffer))
}

// OVSRunDir is the directory of a processor's Open vSwitch sockets: db.sock, ovs-vswitchd.ctl,
// <bridge>.mgmt.
func (l *Lab) OVSRunDir(node string) string { return l.runDir(node, "ovs") }

// OVSDatabase is the address of a processor's Open vSwitch database.
func (l *Lab) OVSDatabase(node string) string { return "unix:" + l.OVSRunDir(node) + "/db.sock" }

// startOVS starts a processor's own Open vSwitch, without bridges.
func (l *Lab) startOVS(ctx context.Context, node *Node) error {
	run, data := l.OVSRunDir(node.Name), l.varDir(node.Name, "ovs")
	if err := mkdirs(run, data); err != nil {
		return err
	}
	db := data + "/conf.db"
	if err := command(ctx, "ovsdb-tool", "create", db, ovsSchema); err != nil {
		return err
	}
	env := []string{"OVS_RUNDIR=" + run, "OVS_DBDIR=" + data, "OVS_LOGDIR=" + data, "OVS_SYSCONFDIR=" + data}
	logging := []string{"-vconsole:info", "-vsyslog:off", "-vfile:off"}
	server := &Process{
		Node: node.Name, Name: "ovsdb-server", Env: env,
		Args: append([]string{"ovsdb-server", db, "--remote=punix:" + run + "/db.sock", "--unixctl=" + run + "/ovsdb-server.ctl"}, logging...),
	}
	vsctl := []string{"--db=" + l.OVSDatabase(node.Name), "--no-wait", "--timeout=3"}
	if err := l.launch(ctx, server, 20*time.Second, func(ctx context.Context) error {
		if !exists(run + "/db.sock") {
			return fmt.Errorf("%s/db.sock does not exist", run)
		}
		return command(ctx, "ovs-vsctl", append(vsctl, "init")...)
	}); err != nil {
		return err
	}
	// Without this, TCP over a veth fails because of partial checksums. ovs-vswitchd reads it only
	// when it starts.
	if err := command(ctx, "ovs-vsctl", append(vsctl, "set", "Open_vSwitch", ".", "other_config:userspace-tso-enable=true")...); err != nil {
		return err
	}
	ctl := run + "/ovs-vswitchd.ctl"
	vswitchd := &Process{
		Node: node.Name, Name: "ovs-vswitchd", Env: env,
		Args: append([]string{"ovs-vswitchd", l.OVSDatabase(node.Name), "--unixctl=" + ctl}, logging...),
	}
	return l.launch(ctx, vswitchd, 20*time.Second, func(ctx context.Context) error {
		if !exists(ctl) {
			return fmt.Errorf("%s does not exist", ctl)
		}
		return command(ctx, "ovs-appctl", "--timeout=3", "-t", ctl, "version")
	})
}

func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
