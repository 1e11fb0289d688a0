// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package plugin implements the CNI plugin: it turns a call of the runtime into a call of the
// node's agent, with the workload's namespace as an open descriptor, and the agent's answer into a
// CNI result. It limits its own time, because Nomad runs one plugin at a time on a client. It has
// no state and makes no decisions: the agent finds out who a workload is.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/node/cnicall"
)

const (
	// ADD waits for an agent that does not run yet until its timeout: after a power cut, everything
	// starts at once, and Nomad gives a failed ADD up after three tries within some seconds. CHECK
	// waits for one that is restarting, for checkPatience: Nomad makes one for each allocation.
	checkPatience = 5 * time.Second
	// retryInterval is how often they try to reach it.
	retryInterval = 200 * time.Millisecond
)

// request returns the agent's form of the call.
func (c call) request(command string) cnicall.Request {
	return cnicall.Request{Command: command, ContainerID: c.containerID, IfName: c.ifName, Network: c.config.Name, Runtime: runtimeName()}
}

func add(c call) error {
	parsed, err := parseArguments(c.args)
	if err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "+err.Error(), c.args)
	}
	r := c.request("ADD")
	r.Allocation, r.VM, r.Ports = parsed.allocation, parsed.vm, c.config.RuntimeConfig.PortMappings
	if r.Allocation == "" {
		if r.Attach = c.config.attached(c.containerID, c.ifName); r.Attach == nil {
			return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS has no NOMAD_ALLOC_ID, so this is no allocation of Nomad",
				`for a container without Nomad, the network configuration must have "consul_service"`)
		}
		r.Space = cnicall.Space{Path: c.netns}
	}
	result, err := c.inNamespace(r, c.config.timeout)
	if err != nil {
		return err
	}
	if result == nil {
		return types.NewError(types.ErrInternal, "the sif agent answered ADD without a result", "")
	}
	// The agent knows only the namespace's descriptor, not the path by which the runtime knows it.
	for _, i := range result.Interfaces {
		if i.Sandbox != "" {
			i.Sandbox = c.netns
		}
		if c.config.CNIVersion != version.Current() {
			i.Mtu = 0 // which came with 1.1.0
		}
	}
	result.DNS.Domain, result.DNS.Search, result.DNS.Options = c.config.DNS.Domain, c.config.DNS.Search, c.config.DNS.Options
	if c.config.previous != nil {
		result = chain(c.config.previous, result)
	}
	converted, err := result.GetAsVersion(c.config.CNIVersion)
	if err != nil {
		return types.NewError(types.ErrInternal, fmt.Sprintf("convert the result to cniVersion %s: %v", c.config.CNIVersion, err), "")
	}
	if err := converted.PrintTo(c.out); err != nil {
		return types.NewError(types.ErrIOFailure, "write the result: "+err.Error(), "")
	}
	return nil
}

func check(c call) error {
	r := c.request("CHECK")
	r.Expected = c.expected()
	_, err := c.inNamespace(r, checkPatience)
	return err
}

// expected returns what the result of ADD says about the interface of the attachment. What other
// plugins of the list made is their business.
func (c call) expected() *cnicall.Expected {
	if c.config.previous == nil {
		return nil
	}
	e := &cnicall.Expected{}
	for i, itf := range c.config.previous.Interfaces {
		if itf.Name != c.ifName || itf.Sandbox == "" {
			continue
		}
		e.MAC = itf.Mac
		for _, ip := range c.config.previous.IPs {
			if ip.Interface != nil && *ip.Interface == i {
				addr, _ := netip.AddrFromSlice(ip.Address.IP)
				e.Addresses = append(e.Addresses, addr.Unmap())
			}
		}
	}
	return e
}

// del succeeds if the agent cannot be reached: Nomad does not repeat a failed DEL, the kernel
// removes the interface with its namespace, and the agent later removes attachments without an
// interface.
func del(c call) error {
	_, err := c.ask(c.request("DEL"), 0)
	if unavailable(err) {
		fmt.Fprintf(c.log, "sif: container %s is left for the agent to clean up: %s\n", c.containerID, err)
		return nil
	}
	return err
}

// collect detaches nothing if the runtime does not say which attachments it has, as `cnitool gc`.
func collect(c call) error {
	valid, known := c.config.valid()
	if !known {
		fmt.Fprintln(c.log, `sif: nothing is detached: the network configuration has no "cni.dev/valid-attachments"`)
		return nil
	}
	r := c.request("GC")
	r.Valid = valid
	_, err := c.ask(r, 0)
	return err
}

// status says with the codes of the specification that no workload can be attached, and, while the
// agent does not answer, that those that are attached have no names and no new counterparts.
func status(c call) error {
	_, err := c.ask(cnicall.Request{Command: "STATUS"}, 0)
	var e *types.Error
	switch {
	case unavailable(err):
		return types.NewError(types.ErrLimitedConnectivity, err.Error(), "workloads keep their connections, and are not told of new instances")
	case errors.As(err, &e) && e.Code == types.ErrTryAgainLater:
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
	}
	return err
}

// inNamespace makes a call that passes the workload's namespace. It waits for the agent for at most
// patience.
func (c call) inNamespace(r cnicall.Request, patience time.Duration) (*current.Result, error) {
	wrong := func(format string, args ...any) error {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: "+fmt.Sprintf(format, args...), "")
	}
	f, err := os.Open(c.netns)
	if err != nil {
		return nil, wrong("open the workload's network namespace: %v", err)
	}
	defer f.Close()
	if !isNamespace(f) {
		return nil, wrong("%s is not a network namespace", c.netns)
	}
	own, err := netns.GetFromPath("/proc/self/ns/net")
	if err != nil {
		return nil, types.NewError(types.ErrInternal, "open the node's own network namespace: "+err.Error(), "")
	}
	defer own.Close()
	if own.Equal(netns.NsHandle(f.Fd())) {
		return nil, wrong("%s is the node's own network namespace", c.netns)
	}
	r.Namespace = f
	return c.ask(r, patience)
}

// ask calls the agent. While the agent does not run, it retries for the duration of patience.
func (c call) ask(r cnicall.Request, patience time.Duration) (*current.Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.config.timeout)
	defer cancel()
	end := time.Now().Add(c.config.timeout)
	last := time.Now().Add(min(patience, c.config.timeout) - retryInterval)
	for {
		r.Patience = time.Until(end)
		result, err := cnicall.Call(ctx, c.config.Socket, r)
		if !unavailable(err) || time.Now().After(last) {
			return result, err
		}
		time.Sleep(retryInterval)
	}
}

func unavailable(err error) bool { return errors.Is(err, cnicall.ErrNoAgent) }

// isNamespace reports whether a file is a network namespace.
func isNamespace(f *os.File) bool {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	return err == nil && kind == unix.CLONE_NEWNET
}
