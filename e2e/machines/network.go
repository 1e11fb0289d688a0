// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package machines

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
)

const (
	netnsDir = "/var/run/netns"
	// worldVariable is the environment variable that identifies a world's process even if its
	// directory is lost.
	worldVariable = "SIF_MACHINES"
)

// Namespace returns the name of the world's network namespace.
func (w *World) Namespace() string { return "sif-vm-" + w.Name }

// Command returns a command that runs in the world's network namespace, where the servers of the
// machines run and from where one reaches the machines.
func (w *World) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + filepath.Join(netnsDir, w.Namespace()), "--"}, args...)...)
	cmd.Env = append(os.Environ(), worldVariable+"="+w.Name)
	return cmd
}

// Start runs a program in the world's network namespace until the world is removed. Its output goes
// to the file NAME.log of the world's directory. It returns the program's process ID.
func (w *World) Start(name string, args ...string) (int, error) {
	log, err := os.OpenFile(w.path(name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd := w.Command(context.Background(), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start %s: %w", name, err)
	}
	go func() { _ = cmd.Wait() }() // reaps it; bornAt reads its state from /proc
	return cmd.Process.Pid, nil
}

// ip runs a command of iproute2 in the world's network namespace.
func (w *World) ip(ctx context.Context, command string) error {
	_, err := output(w.Command(ctx, append([]string{"ip"}, strings.Fields(command)...)...))
	return err
}

func (z Zone) bridge() string { return "zone-" + z.Name }

func (w *World) buildNetwork(ctx context.Context) error {
	if _, err := output(exec.CommandContext(ctx, "ip", "netns", "add", w.Namespace())); err != nil {
		return err
	}
	commands := []string{"link set lo up"}
	for _, z := range w.Zones {
		commands = append(commands,
			"link add "+z.bridge()+" type bridge forward_delay 0",
			"address add "+netip.PrefixFrom(z.Gateway(), z.Subnet.Bits()).String()+" dev "+z.bridge(),
			"link set "+z.bridge()+" up")
	}
	for _, c := range commands {
		if err := w.ip(ctx, c); err != nil {
			return err
		}
	}
	if _, err := output(w.Command(ctx, "sysctl", "-q", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.disable_ipv6=1")); err != nil {
		return err
	}
	args := []string{
		"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces",
		"--pid-file=", "--user=root", "--log-facility=-", "--log-dhcp", "--dhcp-authoritative", "--domain=" + w.Domain,
		"--local=/" + w.Domain + "/", "--dhcp-leasefile=" + w.path("dnsmasq.leases"),
		"--dhcp-hostsdir=" + w.path("dnsmasq.hosts.d"), "--addn-hosts=" + w.path("dnsmasq.names"),
	}
	for _, z := range w.Zones {
		// Only machines that Boot has announced get an address: theirs.
		args = append(args, "--interface="+z.bridge(), fmt.Sprintf("--dhcp-range=%s,static,10m", z.Subnet.Masked().Addr()))
	}
	pid, err := w.Start("dnsmasq", args...)
	if err != nil {
		return err
	}
	return w.await(ctx, 10*time.Second, "dnsmasq", func() error {
		if _, err := bornAt(pid); err != nil {
			log, _ := os.ReadFile(w.path("dnsmasq.log"))
			return permanent{fmt.Errorf("dnsmasq ended: %s", log)}
		}
		return w.dial(ctx, netip.AddrPortFrom(w.Zones[0].Gateway(), 53))
	})
}

// SetName makes the machines resolve a name.
func (w *World) SetName(name string, address netip.Addr) error {
	f, err := os.OpenFile(w.path("dnsmasq.names"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s %s\n", address, name)
	return errors.Join(err, f.Close(), w.signalDNS())
}

// signalDNS makes dnsmasq read its files again.
func (w *World) signalDNS() error {
	for _, pid := range processes(w.Name) {
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(name)) == "dnsmasq" {
			return syscall.Kill(pid, syscall.SIGHUP)
		}
	}
	return errors.New("the world's dnsmasq does not run")
}

// dial opens and closes a TCP connection from the world's namespace.
func (w *World) dial(ctx context.Context, to netip.AddrPort) error {
	namespace, err := ns.GetNS(filepath.Join(netnsDir, w.Namespace()))
	if err != nil {
		return permanent{err}
	}
	defer namespace.Close()
	return namespace.Do(func(ns.NetNS) error {
		// For a single literal address, the dialer opens its socket on the calling goroutine.
		conn, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "tcp", to.String())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// permanent is an error after which await does not try again.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// await calls probe until it succeeds.
func (w *World) await(ctx context.Context, within time.Duration, what string, probe func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := probe()
		var final permanent
		switch {
		case err == nil:
			return nil
		case errors.As(err, &final):
			return final.error
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %s: %w", what, within, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
