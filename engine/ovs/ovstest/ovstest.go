// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package ovstest starts an Open vSwitch for one test, in a network namespace of its own, and
// removes everything when the test ends. It knows how to start the daemons, and nothing of bridges
// and flows. Only tests may import it.
package ovstest

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/internal/testhost"
)

// Instance is a running ovsdb-server and ovs-vswitchd.
type Instance struct {
	// Namespace is the name of their network namespace.
	Namespace string
	// Config is for ovs.NewSwitch. The bridge does not exist yet.
	Config ovs.Config

	tb       testing.TB
	vswitchd *exec.Cmd
}

// receiveBuffer is the default size of a socket's receive buffer, in bytes, that ovs-vswitchd needs
// to keep up with a veth.
const receiveBuffer = 8 << 20

// datapathVariable names the environment variable that says which datapath the switch has:
// "netdev", which is the default, or "system".
const datapathVariable = "SIF_TEST_DATAPATH"

// Start starts the daemons and stops them when the test ends. The datapath is the one in user
// space, with segmentation offload, without which TCP over a veth does not work there; or the
// kernel's, if the environment says so.
func Start(tb testing.TB) *Instance {
	tb.Helper()
	testhost.RequireRoot(tb)
	for _, program := range []string{"ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ip", "nsenter"} {
		testhost.RequireProgram(tb, program)
	}
	datapath := cmp.Or(os.Getenv(datapathVariable), "netdev")
	if datapath == "system" && !ovs.KernelDatapath() {
		testhost.UnmetHere(tb, "needs the kernel's Open vSwitch")
	}
	dir, err := os.MkdirTemp("", "sifovs")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	i := &Instance{
		tb:        tb,
		Namespace: Namespace(tb, "sw"),
		Config: ovs.Config{
			RunDir:   dir,
			Control:  filepath.Join(dir, "ovs-vswitchd.ctl"),
			Bridge:   "br-sif",
			Datapath: datapath,
		},
	}
	raiseReceiveBuffer(tb)
	database := filepath.Join(dir, "conf.db")
	Run(tb, "ovsdb-tool", "create", database, "/usr/share/openvswitch/vswitch.ovsschema")
	i.spawn("ovsdb-server", "--remote=punix:"+dir+"/db.sock", "--unixctl="+dir+"/ovsdb-server.ctl",
		"--pidfile="+dir+"/ovsdb-server.pid", "--log-file="+dir+"/ovsdb-server.log", database)
	i.wait("ovsdb-server", func() error { _, err := os.Stat(dir + "/db.sock"); return err })
	i.vsctl("--no-wait", "init")
	if datapath == "netdev" {
		i.vsctl("--no-wait", "set", "Open_vSwitch", ".", "other_config:userspace-tso-enable=true")
	}
	i.startSwitch()
	return i
}

func (i *Instance) startSwitch() {
	i.tb.Helper()
	dir := i.Config.RunDir
	i.vswitchd = i.spawn("ovs-vswitchd", "unix:"+dir+"/db.sock", "--unixctl="+i.Config.Control,
		"--pidfile="+dir+"/ovs-vswitchd.pid", "--log-file="+dir+"/ovs-vswitchd.log")
	i.wait("ovs-vswitchd", func() error { _, err := os.Stat(i.Config.Control); return err })
}

// RestartSwitch kills ovs-vswitchd and starts it again: flows and connections are lost, bridges and
// ports come back.
func (i *Instance) RestartSwitch() {
	i.tb.Helper()
	_ = i.vswitchd.Process.Kill()
	_ = i.vswitchd.Wait()
	_ = os.Remove(i.Config.Control)
	i.startSwitch()
	// The bridge's socket appears when the bridge exists again.
	i.wait("bridge", func() error {
		conn, err := ovs.NewSwitch(i.Config).Dial(context.Background())
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

// Management is where ovs-ofctl finds the bridge of Config.
func (i *Instance) Management() string {
	return "unix:" + filepath.Join(i.Config.RunDir, i.Config.Bridge+".mgmt")
}

// Ofctl runs a command of ovs-ofctl on the bridge of Config, and returns what it says.
func (i *Instance) Ofctl(command string, args ...string) string {
	i.tb.Helper()
	return Run(i.tb, "ovs-ofctl", append([]string{"-O", "OpenFlow14", command, i.Management()}, args...)...)
}

// ProcessorTime returns how long ovs-vswitchd has run on processors, with a resolution of 10 ms.
func (i *Instance) ProcessorTime() time.Duration {
	i.tb.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", i.vswitchd.Process.Pid))
	if err != nil {
		i.tb.Fatal(err)
	}
	_, fields, _ := strings.Cut(string(text), ") ") // after the name, which may contain blanks
	var user, system time.Duration
	if list := strings.Fields(fields); len(list) > 12 {
		for field, to := range map[int]*time.Duration{11: &user, 12: &system} {
			n, err := strconv.Atoi(list[field])
			if err != nil {
				i.tb.Fatalf("read the processor time of ovs-vswitchd: %v", err)
			}
			*to = time.Duration(n) * 10 * time.Millisecond
		}
	}
	return user + system
}

// spawn starts a daemon in the namespace, in the foreground, so that the test can kill it.
func (i *Instance) spawn(program string, args ...string) *exec.Cmd {
	i.tb.Helper()
	// nsenter execs, so the process ID is the daemon's.
	c := exec.Command("nsenter", append([]string{"--net=/var/run/netns/" + i.Namespace, program}, args...)...)
	c.Env = append(os.Environ(), "OVS_RUNDIR="+i.Config.RunDir, "OVS_DBDIR="+i.Config.RunDir)
	if err := c.Start(); err != nil {
		i.tb.Fatalf("start %s: %v", program, err)
	}
	i.tb.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c
}

// Patiently calls fn, which asks the daemons for something, again until it succeeds: an emulated
// machine takes longer than an Open vSwitch tool waits. It gives up after two minutes.
func Patiently(tb testing.TB, fn func() error) {
	tb.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (i *Instance) vsctl(args ...string) {
	i.tb.Helper()
	Run(i.tb, "ovs-vsctl", append([]string{"--db=unix:" + i.Config.RunDir + "/db.sock", "--timeout=10"}, args...)...)
}

func (i *Instance) wait(what string, ready func() error) {
	i.tb.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(i.Config.RunDir, "ovs-vswitchd.log"))
			i.tb.Fatalf("%s is not ready: %v\n%s", what, err, log)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

var namespaces atomic.Int64 // that Namespace made

// Namespace makes a network namespace with a unique name that ends in suffix, and its loopback up,
// and deletes it when the test ends.
func Namespace(tb testing.TB, suffix string) string {
	tb.Helper()
	testhost.RequireRoot(tb)
	name := fmt.Sprintf("sifovs-%d-%d%s", os.Getpid(), namespaces.Add(1), suffix)
	Run(tb, "ip", "netns", "add", name)
	tb.Cleanup(func() { Run(tb, "ip", "netns", "del", name) })
	Run(tb, "ip", "-n", name, "link", "set", "lo", "up")
	return name
}

// In runs do in a named network namespace.
func In(tb testing.TB, namespace string, do func()) {
	tb.Helper()
	err := ns.WithNetNSPath("/run/netns/"+namespace, func(ns.NetNS) error {
		do()
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// Run runs a program, returns its output and fails the test if it fails.
func Run(tb testing.TB, program string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// raiseReceiveBuffer changes a setting of the whole machine, so it restores it when the test ends.
func raiseReceiveBuffer(tb testing.TB) {
	tb.Helper()
	const path = "/proc/sys/net/core/rmem_default"
	old, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(old))); err == nil && n >= receiveBuffer {
		return
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(receiveBuffer)), 0o644); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.WriteFile(path, old, 0o644) })
}
