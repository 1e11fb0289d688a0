// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package plugin is what the CNI plugin does: it turns a call of the runtime
// into a call of the node's agent, with the workload's namespace as an open
// descriptor, and the agent's answer into a CNI result. It is bound in time,
// since Nomad serialises all networks of a client behind it, and it keeps no
// state. It decides nothing: who a workload is, the agent finds out.
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
	// defaultTimeout bounds a call when the configuration does not.
	defaultTimeout = 20 * time.Second
	// patience is how long ADD and CHECK wait for an agent that is just being
	// restarted.
	patience = 5 * time.Second
	retry    = 200 * time.Millisecond
)

// Config is the plugin's entry of a network configuration list.
type Config struct {
	types.PluginConf
	Socket        string  `json:"socket"`            // where the agent listens
	Timeout       string  `json:"timeout,omitempty"` // of a call, as time.ParseDuration reads it
	RuntimeConfig Runtime `json:"runtimeConfig,omitzero"`
}

// Runtime is what the runtime adds for the capabilities of the plugin.
type Runtime struct {
	PortMappings []cnicall.PortMapping `json:"portMappings,omitempty"`
}

// Versions are the versions of the CNI specification that the plugin speaks.
func Versions() version.PluginInfo { return version.PluginSupports("1.0.0", "1.1.0") }

// Funcs are the plugin's commands.
func Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: add, Del: del, Check: check, GC: collect, Status: status}
}

func add(args *skel.CmdArgs) error {
	c, err := load(args.StdinData)
	if err != nil {
		return err
	}
	allocation, err := allocationID(args.Args)
	if err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "+err.Error(), args.Args)
	}
	request := cnicall.Request{
		Command: "ADD", ContainerID: args.ContainerID, IfName: args.IfName,
		Allocation: allocation, Ports: c.RuntimeConfig.PortMappings,
	}
	result, err := c.inNamespace(request, args.Netns)
	if err != nil {
		return err
	}
	if result == nil {
		return types.NewError(types.ErrInternal, "the sif agent answered ADD without a result", "")
	}
	// The agent knows the namespace by a descriptor; the path is the runtime's.
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
	_, err = c.inNamespace(cnicall.Request{Command: "CHECK", ContainerID: args.ContainerID, IfName: args.IfName}, args.Netns)
	return err
}

// del succeeds when the agent cannot be reached: Nomad does not repeat a
// failed DEL, the interface goes with its namespace, and the agent finds
// attachments without an interface by itself.
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
	if unavailable(err) {
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "") // what the specification wants of STATUS
	}
	return err
}

// config is a Config that was checked.
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
		return c, types.NewError(types.ErrInvalidNetworkConfig, `the network configuration lacks "socket", where the sif agent listens`,
			"the agent writes the configuration; was it altered?")
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

// inNamespace makes a call that takes the workload's namespace along.
func (c config) inNamespace(r cnicall.Request, path string) (*current.Result, error) {
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

// call asks the agent, and while it is not there again for as long as patience.
func (c config) call(r cnicall.Request, patience time.Duration) (*current.Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	last := time.Now().Add(min(patience, c.timeout) - retry)
	for {
		result, err := cnicall.Call(ctx, c.Socket, r)
		if !unavailable(err) || time.Now().After(last) {
			return result, err
		}
		time.Sleep(retry)
	}
}

func unavailable(err error) bool {
	var e *types.Error
	return errors.As(err, &e) && e.Code == types.ErrTryAgainLater
}
