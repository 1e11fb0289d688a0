// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/leftover"
	"github.com/sif-project/sif/internal/node/hostport"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/node/netspace"
	"github.com/sif-project/sif/internal/wellknown"
)

// endpointInterface is the form of hostIfName.
var endpointInterface = regexp.MustCompile(`^` + wellknown.InterfacePrefix + `[0-9a-f]{11}$`)

// Running is a workload that has an interface of the fabric on this machine.
type Running struct {
	Interface string `json:"interface"`
	Endpoint  string `json:"endpoint,omitempty"` // empty: the agent has lost it
	Service   string `json:"service,omitempty"`
	Attached  string `json:"attached,omitempty"` // the name of what Nomad does not run
}

func (r Running) String() string {
	if r.Endpoint == "" {
		return "interface " + r.Interface
	}
	if r.Attached != "" {
		return fmt.Sprintf("%q, attached as endpoint %s of service %s", r.Attached, r.Endpoint, r.Service)
	}
	return fmt.Sprintf("endpoint %s of service %s", r.Endpoint, r.Service)
}

// Workloads returns the workloads in the fabric that run on this machine, whether the agent runs or
// not.
func Workloads(c *config.Config) ([]Running, error) {
	there, err := leftover.Interfaces(endpointInterface.MatchString)
	if err != nil {
		return nil, err
	}
	known := map[string]endpoint{}
	// Without its file the agent has lost its endpoints; their interfaces still tell.
	if es, err := openEndpoints(endpointsFile(c)); err == nil {
		for _, ep := range es.all() {
			known[ep.HostIf] = ep
		}
	}
	var list []Running
	for _, l := range there {
		r := Running{Interface: l.Name}
		if ep, ok := known[l.Name]; ok {
			r.Endpoint, r.Service = ep.ID, ep.Admission.Service.String()
			if ep.Attached != nil {
				r.Attached = ep.Attached.Name
			}
		}
		list = append(list, r)
	}
	return list, nil
}

func endpointsFile(c *config.Config) string { return filepath.Join(c.DataDir, "endpoints.json") }

// pinDir is the directory of the data path's pins.
func pinDir(c *config.Config) string { return filepath.Join(c.BPFDir, "sif") }

// Leftovers returns what an agent has made on this machine, in the order in which it is to be taken
// away. The agent must have been stopped. self is the node's record, or zero if it is lost.
func Leftovers(c *config.Config, self fabric.Node) ([]leftover.Leftover, error) {
	list := leftover.Files(filepath.Join(c.CNI.ConfigDir, cniConfigFile), filepath.Join(c.CNI.PluginDir, cniPlugin),
		filepath.Join(c.WorkloadAPI.Directory, wellknown.WorkloadAPISocket))
	interfaces, err := leftover.Interfaces(endpointInterface.MatchString)
	errs := []error{err}
	list = append(list, interfaces...)
	processes, err := hostport.Leftovers()
	errs = append(errs, err)
	list = append(list, processes...)
	list = append(list, netspace.Default(c.RunDir).Leftovers()...)
	list = append(list, bpf.Leftovers(pinDir(c))...)
	if _, err := os.Stat(mountMark(c)); err == nil {
		list = append(list, bpf.Mounted(c.BPFDir)...)
	}
	var own []netip.Prefix
	for _, a := range router(self).Interfaces[0].Addresses {
		own = append(own, a.Prefix)
	}
	addresses, err := kernel.Addresses("lo", own...)
	errs = append(errs, err)
	return append(list, addresses...), errors.Join(errs...)
}

// mountMark is a file that says that the agent mounted the BPF filesystem.
func mountMark(c *config.Config) string { return filepath.Join(c.DataDir, "bpf-mounted") }

// mountBPF mounts the BPF filesystem if there is none, and remembers that.
func mountBPF(c *config.Config) (mounted bool, err error) {
	if mounted, err = bpf.MountBPFFS(c.BPFDir); err != nil || !mounted {
		return mounted, err
	}
	if err := os.WriteFile(mountMark(c), nil, 0o600); err != nil {
		return mounted, fmt.Errorf("remember that the BPF filesystem was mounted: %w", err)
	}
	return mounted, nil
}
