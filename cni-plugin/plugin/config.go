// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package plugin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/cnicall"
)

// defaultTimeout limits a call if the configuration has no timeout.
const defaultTimeout = 30 * time.Second

// file is the plugin's entry of a network configuration list, with what the runtime adds. Keys that
// are not here are the business of others.
type file struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`              // of the network
	Socket     string `json:"socket"`            // where the agent listens
	Timeout    string `json:"timeout,omitempty"` // of a call, in the format of time.ParseDuration

	// What a container is that has no allocation of Nomad: an instance of a service that is
	// registered with the node's Consul agent, and what it requests, as in a connectivity stanza.
	ConsulService string   `json:"consul_service,omitempty"`
	Service       string   `json:"service,omitempty"`
	Originate     []string `json:"originate,omitempty"`
	Respond       []string `json:"respond,omitempty"`

	RuntimeConfig struct {
		PortMappings []cnicall.PortMapping `json:"portMappings,omitempty"`
	} `json:"runtimeConfig"`
	PrevResult json.RawMessage `json:"prevResult,omitempty"`

	// The attachments that the runtime still has. The first version of the specification that had
	// them gave them the second name.
	Valid       *[]types.GCAttachment `json:"cni.dev/valid-attachments"`
	Attachments *[]types.GCAttachment `json:"cni.dev/attachments"`

	// Keys with a standing meaning that the fabric does not follow.
	IPAM   json.RawMessage `json:"ipam,omitempty"`
	IPMasq bool            `json:"ipMasq,omitempty"`
	DNS    types.DNS       `json:"dns"`
}

// config is a network configuration that was checked.
type config struct {
	file
	timeout  time.Duration
	previous *current.Result // of the plugins before, or of ADD; nil if there is none
}

func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}

// load reads a network configuration. An error leaves nothing behind.
func load(data []byte) (config, error) {
	c := config{timeout: defaultTimeout}
	if err := json.Unmarshal(data, &c.file); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read the network configuration: "+err.Error(), "")
	}
	if c.Name == "" {
		return c, invalid(`the network configuration has no "name"`)
	}
	if err := utils.ValidateNetworkName(c.Name); err != nil {
		return c, invalid("the name of the network %q has characters other than letters, digits, dots, underscores and hyphens, or begins with one of the last three", c.Name)
	}
	if c.Socket == "" {
		return c, types.NewError(types.ErrInvalidNetworkConfig, `the network configuration has no "socket", the path of the sif agent's socket`,
			"the sif agent writes this configuration when it starts: restart it")
	}
	if c.Timeout != "" {
		d, err := time.ParseDuration(c.Timeout)
		if err != nil || d <= 0 {
			return c, invalid("timeout %q is not a duration such as 20s", c.Timeout)
		}
		c.timeout = d
	}
	if err := c.checkUnsupported(); err != nil {
		return c, err
	}
	if c.ConsulService == "" {
		for key, value := range map[string]string{
			"service": c.Service, "originate": strings.Join(c.Originate, ", "), "respond": strings.Join(c.Respond, ", "),
		} {
			if value != "" {
				return c, invalid(`%q is %q, but there is no "consul_service", which says what a container without an allocation of Nomad is`, key, value)
			}
		}
	}
	var err error
	c.previous, err = readResult(c.CNIVersion, c.PrevResult)
	return c, err
}

// checkUnsupported refuses keys that have a meaning for other plugins, and none here.
func (c config) checkUnsupported() error {
	unsupported := func(key string, value any, why string) error {
		text, _ := json.Marshal(value)
		return types.NewError(types.ErrUnsupportedField, fmt.Sprintf("%s: %s is not supported: %s", key, text, why), "")
	}
	ipam := string(bytes.TrimSpace(c.IPAM))
	switch {
	case ipam != "" && ipam != "null" && ipam != "{}":
		return unsupported("ipam", c.IPAM, "the fabric gives addresses itself")
	case c.IPMasq:
		return unsupported("ipMasq", true, "what a workload may reach outside the fabric is said by contracts")
	case len(c.DNS.Nameservers) > 0:
		return unsupported("dns", c.DNS, "workloads ask the node's resolver; leave out nameservers")
	}
	return nil
}

// valid returns the attachments that the runtime still has. Both keys count, so that none is taken
// for stale that one of them names. known is false if the runtime did not say.
func (c config) valid() (list []cnicall.Attachment, known bool) {
	list = []cnicall.Attachment{}
	seen := map[cnicall.Attachment]bool{}
	for _, of := range []*[]types.GCAttachment{c.Valid, c.Attachments} {
		if of == nil {
			continue
		}
		known = true
		for _, a := range *of {
			if at := (cnicall.Attachment{ContainerID: a.ContainerID, IfName: a.IfName}); !seen[at] {
				seen[at] = true
				list = append(list, at)
			}
		}
	}
	return list, known
}

// attached returns what a container without an allocation of Nomad is, or nil if the configuration
// does not say.
func (c config) attached(containerID, ifName string) *fabric.Attached {
	if c.ConsulService == "" {
		return nil
	}
	return &fabric.Attached{Name: nameOf(containerID, ifName), ConsulService: c.ConsulService, Service: c.Service, Originate: c.Originate, Respond: c.Respond}
}

// readResult reads the result of a plugin, and refuses one that no plugin may give: others take its
// parts apart without looking.
func readResult(cniVersion string, data json.RawMessage) (*current.Result, error) {
	if text := string(bytes.TrimSpace(data)); text == "" || text == "null" {
		return nil, nil
	}
	wrong := func(err error) error {
		return types.NewError(types.ErrDecodingFailure, "read prevResult: "+err.Error(), "")
	}
	var shape struct {
		Interfaces []*json.RawMessage `json:"interfaces"`
		IPs        []*json.RawMessage `json:"ips"`
		Routes     []*json.RawMessage `json:"routes"`
	}
	if err := json.Unmarshal(data, &shape); err != nil {
		return nil, wrong(err)
	}
	for what, list := range map[string][]*json.RawMessage{"interface": shape.Interfaces, "address": shape.IPs, "route": shape.Routes} {
		for i, entry := range list {
			if entry == nil {
				return nil, wrong(fmt.Errorf("%s %d is null", what, i))
			}
		}
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, wrong(err)
	}
	// Before 1.0.0 a result need not say its version; it is always that of the configuration.
	said, err := json.Marshal(cniVersion)
	if err != nil {
		return nil, wrong(err)
	}
	fields["cniVersion"] = said
	whole, err := json.Marshal(fields)
	if err != nil {
		return nil, wrong(err)
	}
	result, err := create.Create(cniVersion, whole)
	if err != nil {
		return nil, wrong(err)
	}
	converted, err := current.GetResult(result)
	if err != nil {
		return nil, wrong(err)
	}
	for i, ip := range converted.IPs {
		if _, ok := netip.AddrFromSlice(ip.Address.IP); !ok {
			return nil, wrong(fmt.Errorf("address %d is none", i))
		}
		if at := ip.Interface; at != nil && (*at < 0 || *at >= len(converted.Interfaces)) {
			return nil, wrong(fmt.Errorf("address %s is of interface %d, of which there are %d", ip.Address.IP, *at, len(converted.Interfaces)))
		}
	}
	return converted, nil
}
