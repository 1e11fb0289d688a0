// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"flag"
	"os"
	"strconv"
	"strings"

	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/hostport"
)

// hostOptions say that a process of the machine's own network namespace gets the endpoint.
type hostOptions struct {
	host         bool
	ports        stringList
	cgroup, unit string
}

func (h *hostOptions) options() *flag.FlagSet {
	o := newOptions("Host Options")
	host, _ := strconv.ParseBool(os.Getenv("SIF_HOST"))
	o.BoolVar(&h.host, "host", host, "Give the endpoint to a process that stays in the machine's own network namespace. Overrides the SIF_HOST environment variable.")
	o.Var(&h.ports, "port", "A `port` at the endpoint's addresses that is led to the process, such as 5432 or udp/53. May be given several times. Overrides SIF_PORT, which separates them by commas.")
	o.StringVar(&h.cgroup, "cgroup", os.Getenv("SIF_CGROUP"),
		"The `path` of the cgroup (version 2) whose processes send by the endpoint. It need not exist yet. Overrides SIF_CGROUP.")
	o.StringVar(&h.unit, "unit", os.Getenv("SIF_UNIT"), "The same, by the `name` of the systemd unit that has the cgroup. Overrides SIF_UNIT.")
	return o
}

// process returns the process that the options name; nil if none gets the endpoint.
func (h *hostOptions) process() (*cnicall.Process, error) {
	given := []string(h.ports)
	if len(given) == 0 && h.host {
		given = separated(os.Getenv("SIF_PORT"))
	}
	switch {
	case !h.host && (len(given) > 0 || h.cgroup+h.unit != ""):
		return nil, usagef("-port, -cgroup and -unit are of use only with -host: in a namespace of its own a process has all ports.")
	case !h.host:
		return nil, nil
	case h.cgroup != "" && h.unit != "":
		return nil, usagef("-cgroup and -unit exclude each other.")
	case len(given) == 0 && h.cgroup+h.unit == "":
		return nil, usagef("-host needs -port, by which the process is reached, or -cgroup or -unit, which say whose packets leave by the endpoint.")
	case len(given) > hostport.MaxPorts:
		return nil, usagef("%d ports are given, %d is the most.", len(given), hostport.MaxPorts)
	}
	p := &cnicall.Process{}
	seen := map[hostport.Port]bool{}
	for _, text := range given {
		port, err := hostport.ParsePort(text)
		if err != nil {
			return nil, usagef("-%v", err)
		}
		if seen[port] {
			return nil, usagef("-port %s is given twice.", port)
		}
		seen[port] = true
		p.Ports = append(p.Ports, port.String())
	}
	var group hostport.Group
	var err error
	switch {
	case h.cgroup != "":
		group, err = hostport.ParseGroup(h.cgroup)
	case h.unit != "":
		group, err = hostport.FindUnit(h.unit)
	}
	p.Cgroup = string(group)
	return p, err
}

// processText returns the options that name a process; "" for none.
func processText(p *cnicall.Process) string {
	if p == nil {
		return ""
	}
	text := []string{"-host"}
	for _, port := range p.Ports {
		text = append(text, "-port="+port)
	}
	if p.Cgroup != "" {
		text = append(text, "-cgroup="+p.Cgroup)
	}
	return strings.Join(text, " ")
}
