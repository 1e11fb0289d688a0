// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package plugin implements the CNI plugin: it turns a call of the runtime into a call of the
// node's agent, with the workload's namespace as an open descriptor, and the agent's answer into a
// CNI result. It limits its own time, because Nomad runs one plugin at a time on a client. It has
// no state and makes no decisions: the agent finds out who a workload is.
package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/ns"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/sif-project/sif/internal/node/cnicall"
)

const (
	// defaultTimeout limits a call if the configuration has no timeout.
	defaultTimeout = 30 * time.Second
	// ADD waits for an agent that does not run yet until its timeout: after a power cut, everything
	// starts at once, and Nomad gives a failed ADD up after three tries within some seconds. CHECK
	// waits for one that is restarting, for checkPatience: Nomad makes one for each allocation.
	checkPatience = 5 * time.Second
	// retryInterval is how often they try to reach it.
	retryInterval = 200 * time.Millisecond
)

// Config is the plugin's entry of a network configuration list.
type Config struct {
	types.PluginConf
	Socket        string  `json:"socket"`            // where the agent listens
	Timeout       string  `json:"timeout,omitempty"` // of a call, in the format of time.ParseDuration
	RuntimeConfig Runtime `json:"runtimeConfig,omitzero"`
}

// Runtime is what the runtime passes for the plugin's capabilities.
type Runtime struct {
	PortMappings []cnicall.PortMapping `json:"portMappings,omitempty"`
}

// Versions returns the supported versions of the CNI specification.
func Versions() version.PluginInfo { return version.PluginSupports("1.0.0", "1.1.0") }

// Funcs returns the plugin's commands.
func Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: add, Del: del, Check: check, GC: collect, Status: status}
}

func add(args *skel.CmdArgs) error {
	c, err := load(args.StdinData)
	if err != nil {
		return err
	}
	parsed, err := parseArguments(args.Args)
	if err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "+err.Error(), args.Args)
	}
	request := cnicall.Request{
		Command: "ADD", ContainerID: args.ContainerID, IfName: args.IfName,
		Allocation: parsed.allocation, VM: parsed.vm, Ports: c.RuntimeConfig.PortMappings,
	}
	result, err := c.inNamespace(request, args.Netns, c.timeout)
	if err != nil {
		return err
	}
	if result == nil {
		return types.NewError(types.ErrInternal, "the sif agent answered ADD without a result", "")
	}
	// The agent knows only the namespace's descriptor, not the path by which the runtime knows it.
	for _, i := range result.Interfaces {
		if i.Sandbox != "" {
			i.Sandbox = args.Netns
		}
	}
	if c.PrevResult != nil {
		previous, err := current.GetResult(c.PrevResult)
		if err != nil {
			return types.NewError(types.ErrDecodingFailure, "read prevResult: "+err.Error(), "")
		}
		result = chain(previous, result)
	}
	return types.PrintResult(result, c.CNIVersion)
}

func check(args *skel.CmdArgs) error {
	c, err := load(args.StdinData)
	if err != nil {
		return err
	}
	_, err = c.inNamespace(cnicall.Request{Command: "CHECK", ContainerID: args.ContainerID, IfName: args.IfName}, args.Netns, checkPatience)
	return err
}

// del succeeds if the agent cannot be reached: Nomad does not repeat a failed DEL, the kernel
// removes the interface with its namespace, and the agent later removes attachments without an
// interface.
func del(args *skel.CmdArgs) error {
	c, err := load(args.StdinData)
	if err != nil {
		return err
	}
	_, err = c.call(cnicall.Request{Command: "DEL", ContainerID: args.ContainerID, IfName: args.IfName}, 0)
	if unavailable(err) {
		fmt.Fprintf(os.Stderr, "sif: container %s is left for the agent to clean up: %s\n", args.ContainerID, err)
		return nil
	}
	return err
}

func collect(args *skel.CmdArgs) error {
	c, err := load(args.StdinData)
	if err != nil {
		return err
	}
	valid := []cnicall.Attachment{}
	for _, a := range c.ValidAttachments {
		valid = append(valid, cnicall.Attachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	_, err = c.call(cnicall.Request{Command: "GC", Valid: valid}, 0)
	return err
}

func status(args *skel.CmdArgs) error {
	c, err := load(args.StdinData)
	if err != nil {
		return err
	}
	_, err = c.call(cnicall.Request{Command: "STATUS"}, 0)
	var e *types.Error
	if errors.As(err, &e) && e.Code == types.ErrTryAgainLater {
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "") // the code that the specification requires
	}
	return err
}

// config is a validated Config.
type config struct {
	Config
	timeout time.Duration
}

func load(stdin []byte) (config, error) {
	c := config{timeout: defaultTimeout}
	if err := json.Unmarshal(stdin, &c.Config); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read the network configuration: "+err.Error(), "")
	}
	if c.Socket == "" {
		return c, types.NewError(types.ErrInvalidNetworkConfig, `the network configuration has no "socket", the path of the sif agent's socket`,
			"the sif agent writes this configuration when it starts: restart it")
	}
	if c.Timeout != "" {
		d, err := time.ParseDuration(c.Timeout)
		if err != nil || d <= 0 {
			return c, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("timeout %q is not a duration such as 20s", c.Timeout), "")
		}
		c.timeout = d
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read prevResult: "+err.Error(), "")
	}
	return c, nil
}

// inNamespace makes a call that passes the workload's namespace. It waits for the agent for at most
// patience.
func (c config) inNamespace(r cnicall.Request, path string, patience time.Duration) (*current.Result, error) {
	own, nsErr := ns.CheckNetNS(path)
	if nsErr != nil {
		return nil, nsErr
	}
	if own {
		return nil, types.NewError(types.ErrInvalidNetNS, "CNI_NETNS "+path+" is the node's own network namespace", "")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetNS, "open the workload's network namespace: "+err.Error(), "")
	}
	defer f.Close()
	r.Namespace = f
	return c.call(r, patience)
}

// call calls the agent. While the agent does not run, it retries for the duration of patience.
func (c config) call(r cnicall.Request, patience time.Duration) (*current.Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	end := time.Now().Add(c.timeout)
	last := time.Now().Add(min(patience, c.timeout) - retryInterval)
	for {
		r.Patience = time.Until(end)
		result, err := cnicall.Call(ctx, c.Socket, r)
		if !unavailable(err) || time.Now().After(last) {
			return result, err
		}
		time.Sleep(retryInterval)
	}
}

func unavailable(err error) bool { return errors.Is(err, cnicall.ErrNoAgent) }
