// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Command sif-guest is the first process of the tests' virtual machines: it loads the kernel's
// modules, configures the one interface as any system does, by DHCP and DHCPv6, and runs sif-demo
// with the arguments and the environment that the kernel's command line gives it.
//
// It knows nothing of the fabric, so that what works with it works with other guests.
package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	program = "/sif-demo"
	modules = "/modules"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "sif-guest: it is the first process of a virtual machine, and runs nowhere else")
		os.Exit(2)
	}
	if err := start(); err != nil {
		say("%v", err)
	}
	for { // the first process must not end
		cmd := exec.Command(program, os.Args[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		say("%s %v: %v", program, os.Args[1:], cmd.Run())
		time.Sleep(time.Second)
	}
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "sif-guest: "+format+"\n", args...) }

func start() error {
	for _, m := range []struct{ what, where string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(m.what, m.where, m.what, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.where, err)
		}
	}
	files, err := filepath.Glob(modules + "/*.ko")
	if err != nil {
		return err
	}
	slices.Sort(files) // by the numbers with which their names begin
	for _, f := range files {
		if err := load(f); err != nil {
			return err
		}
	}
	card, err := bringUp()
	if err != nil {
		return err
	}
	say("interface %s is up, hardware address %s", card.Attrs().Name, card.Attrs().HardwareAddr)
	go keep("DHCPv6", func() (time.Duration, error) { return configure6(card) })
	first := make(chan struct{})
	go keep("DHCP", func() (time.Duration, error) {
		renew, err := configure4(card)
		if err == nil && first != nil {
			close(first)
			first = nil
		}
		return renew, err
	})
	<-first
	return nil
}

// keep configures the interface and renews its lease, again and again.
func keep(what string, configure func() (renew time.Duration, err error)) {
	for {
		renew, err := configure()
		if err != nil {
			say("%s: %v", what, err)
			renew = time.Second
		}
		time.Sleep(renew)
	}
}

func load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("load %s: %w", filepath.Base(file), err)
	}
	return nil
}

// bringUp waits for the interface of the machine and switches it on.
func bringUp() (netlink.Link, error) {
	for range 100 {
		links, err := netlink.LinkList()
		if err != nil {
			return nil, err
		}
		var card netlink.Link
		for _, l := range links {
			if l.Attrs().Flags&net.FlagLoopback == 0 && len(l.Attrs().HardwareAddr) == 6 {
				card = l
			}
			if card == nil && l.Attrs().Flags&net.FlagLoopback != 0 {
				if err := netlink.LinkSetUp(l); err != nil {
					return nil, err
				}
			}
		}
		if card != nil {
			return card, netlink.LinkSetUp(card)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, fmt.Errorf("the machine has no network interface")
}
