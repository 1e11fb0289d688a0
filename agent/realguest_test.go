// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/bpf"
	guestimage "github.com/sif-project/sif/e2e/guest"
	"github.com/sif-project/sif/internal/testhost"
	"github.com/sif-project/sif/internal/wellknown"
)

// guestImage returns a machine that takes its addresses by DHCP and runs testdata/guestapp.
func guestImage(t testing.TB) guestimage.Image {
	t.Helper()
	testhost.RequireRoot(t)
	testhost.RequireProgram(t, "qemu-system-x86_64")
	dir := filepath.Join(t.TempDir(), "bin")
	for name, source := range map[string]string{"sif-guest": "../e2e/cmd/sif-guest", "sif-demo": "./testdata/guestapp"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), source)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	i, err := guestimage.Build(t.Context(), dir)
	if err != nil {
		testhost.Unmet(t, "needs Debian's cloud kernel, once from the machine's mirror: "+err.Error())
	}
	return i
}

// machine is a virtual machine that runs in a namespace.
type machine struct {
	t       testing.TB
	log     string
	process *os.Process
	ended   chan struct{}
}

// boot starts a machine with its card at an interface of a namespace.
func boot(t testing.TB, i guestimage.Image, space ns.NetNS, tap string) *machine {
	t.Helper()
	m := &machine{t: t, log: filepath.Join(t.TempDir(), "console"), ended: make(chan struct{})}
	qemu := exec.Command("nsenter", "--net="+space.Path(), "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35", "-smp", "1", "-m", "256",
		"-display", "none", "-nodefaults", "-no-reboot", "-serial", "file:"+m.log, "-kernel", i.Kernel, "-initrd", i.Initrd, "-append", "console=ttyS0 quiet mitigations=off panic=-1",
		"-netdev", "tap,id=sif,ifname="+tap+",script=no,downscript=no", "-device", "virtio-net-pci,netdev=sif,mac="+wellknown.GuestMAC)
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the machine ends with the thread that started it
		started <- qemu.Start()
		_ = qemu.Wait() // it is killed
		close(m.ended)
	}()
	must.NoError(t, <-started)
	m.process = qemu.Process
	t.Cleanup(m.stop)
	return m
}

func (m *machine) stop() {
	if m.process == nil {
		return
	}
	_ = m.process.Kill()
	<-m.ended
	m.process = nil
	if m.t.Failed() {
		console, _ := os.ReadFile(m.log)
		m.t.Logf("console:\n%s", console)
	}
}

// TestRealGuest boots an unmodified kernel of Debian behind an endpoint. It learns its addresses,
// is called and calls by both of them; a connection outlives the agent; another QEMU takes its
// place.
func TestRealGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots an emulated machine")
	}
	i := guestImage(t)
	r := newRoom(t, "")
	m := boot(t, i, r.workload, wellknown.GuestTap)
	greet(t, r.container, 8000)
	to := func(address netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(address, port) }
	works := func() {
		t.Helper()
		eventually(t, r.container, to(r.guest.IPv4, 9005), "", "web-0a1b2c3d <nil>")
		eventually(t, r.container, to(r.guest.IPv6, 9005), "", "web-0a1b2c3d <nil>")
		eventually(t, r.container, to(r.guest.IPv4, 9004), to(r.other.IPv4, 8000).String(), "100.64.0.2: hello from the guest")
		eventually(t, r.container, to(r.guest.IPv4, 9004), to(r.other.IPv6, 8000).String(), "fd5f::2: hello from the guest")
	}
	works()
	answered, ok := r.a.guests.get(r.guest.HostIf)
	must.True(t, ok)
	must.False(t, answered.Told().IPv4.IsZero())
	must.False(t, answered.Told().IPv6.IsZero())

	// A connection and its guest go on while there is no agent, and with the next one.
	c, err := dial(r.container, to(r.guest.IPv4, 9003), 5*time.Second)
	must.NoError(t, err)
	defer c.Close()
	lines := bufio.NewReader(c)
	echo := func() {
		t.Helper()
		must.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
		fmt.Fprintln(c, "still here")
		line, err := lines.ReadString('\n')
		must.NoError(t, err)
		must.Eq(t, "still here\n", line)
	}
	echo()
	must.NoError(t, r.data.Close())
	r.a.guests.close(r.guest.HostIf)
	echo()
	works()
	r.start()
	for _, ep := range []endpoint{r.guest, r.other} {
		must.NoError(t, r.a.endpoints.put(ep)())
	}
	r.onNode(func() {
		must.NoError(t, r.a.repairHost())
		must.NoError(t, r.a.repairGuests())
	})
	echo()
	works()

	// What leaves the guest is whole: segments larger than the link's MTU reach the node, if QEMU
	// and the guest agreed on them.
	data, err := dial(r.container, to(r.guest.IPv4, 9002), 5*time.Second)
	must.NoError(t, err)
	_, err = io.CopyN(io.Discard, data, 4<<20)
	must.NoError(t, errors.Join(err, data.Close()))

	// Another QEMU in the same namespace.
	m.stop()
	boot(t, i, r.workload, wellknown.GuestTap)
	works()
	frames, err := r.data.GuestFrames(r.guest.HostIf)
	must.NoError(t, err)
	t.Logf("frames: %v", frames)
	for _, forged := range []bpf.Frame{bpf.FrameForgedMAC, bpf.FrameForgedAddress, bpf.FrameForgedARP, bpf.FrameForgedND, bpf.FrameForgedDHCP, bpf.FrameForgedRA, bpf.FrameMalformed, bpf.FrameTooLong} {
		must.Zero(t, frames[forged], must.Sprint(forged))
	}
	r.onNode(func() {
		must.NoError(t, interfaceHook{r.a}.detach(t.Context(), &detachment{endpoint: r.guest}))
		must.NoError(t, r.a.dismantle(r.other.HostIf))
	})
}
