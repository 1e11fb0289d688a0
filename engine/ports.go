// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/sif-project/sif/engine/exit"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/port"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/daemon"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/node/link"
	"github.com/sif-project/sif/internal/wellknown"
)

// namespaceDir is the directory of named network namespaces.
const namespaceDir = "/var/run/netns"

// ports places each link of the processor in a network namespace of its own, whose only other
// interface leads to the switch.
type ports struct {
	self   fabric.Node
	prefix string // of the names of namespaces
	sw     *ovs.Switch
	bridge *bridge

	repaired func([]kernel.Change) // is told what others had changed

	linkMTU func() int // the smallest one of the links

	exit    *exit.Exit
	exitMTU int  // of its port
	leads   bool // the exit was complete

	mu       sync.Mutex             // one plug at a time
	complete map[string]port.Config // ports that were complete, by outer device
}

// config returns the port of a link device. Device "sif-l0" is in namespace "<prefix>-l0"; the
// switch side of its veth pair is "sif-o0".
func (p *ports) config(d link.Device) port.Config {
	c := port.Config{
		Namespace: wellknown.LinkNamespace(p.prefix, d.Name),
		Outer:     wellknown.SwitchInterface(d.Name),
		Device:    d.Name,
		MTU:       daemon.SwitchMTU(p.linkMTU()),
		Addrs:     []netip.Addr{p.self.Health4(), p.self.Health6()},
	}
	for _, peer := range d.Peers {
		c.Prefixes = append(c.Prefixes, peer.AllowedIPs...)
	}
	if p.exitMTU < c.MTU {
		c.Ranges, c.OutsideMTU = p.self.Ranges, p.exitMTU
	}
	return c
}

// Prepare creates the namespace.
func (p *ports) Prepare(_ desired.Hop, d link.Device) (string, error) {
	c := p.config(d)
	if err := p.ensure(c); err != nil && !errors.Is(err, port.ErrNoDevice) {
		return "", err
	}
	return filepath.Join(namespaceDir, c.Namespace), nil
}

// Complete finishes the port and adds it to the switch.
func (p *ports) Complete(tunnel desired.Hop, d link.Device) error {
	c := p.config(d)
	if err := p.ensure(c); err != nil {
		return err
	}
	p.mu.Lock()
	p.complete[c.Outer] = c
	p.mu.Unlock()
	no, err := p.plug(c.Outer)
	if err != nil {
		return err
	}
	own, far := port.MACs(c.Outer)
	return p.bridge.setPort(tunnel, ovs.Port{No: no, MAC: own, Peer: far, Routers: true})
}

// Retain takes the ports of other links from the switch, and removes their namespaces.
func (p *ports) Retain(devices []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), switchTimeout)
	defer cancel()
	in, err := p.sw.Ports(ctx)
	if err != nil {
		return fmt.Errorf("list the ports of the switch: %w", err)
	}
	wanted := map[string]bool{}
	for _, d := range devices {
		wanted[wellknown.SwitchInterface(d)] = true
	}
	var errs []error
	for outer, no := range in {
		if wanted[outer] || !switchInterface.MatchString(outer) {
			continue
		}
		device := wellknown.LinkPrefix + strings.TrimPrefix(outer, wellknown.SwitchPrefix)
		errs = append(errs, p.bridge.removePort(no), p.sw.DeletePort(ctx, outer),
			port.Remove(port.Config{Namespace: wellknown.LinkNamespace(p.prefix, device), Outer: outer, Device: device}))
		delete(p.complete, outer)
	}
	return errors.Join(errs...)
}

// ensure creates or repairs a port. If the veth pair was created again, the switch still has the
// old device open under the same name, so ensure removes that port.
func (p *ports) ensure(c port.Config) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	changes, fresh, err := port.Ensure(c)
	p.changed(c, changes)
	if !fresh {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), switchTimeout)
	defer cancel()
	return errors.Join(err, p.sw.DeletePort(ctx, c.Outer))
}

// leadOutside makes or repairs the exit, and adds its port to the switch.
func (p *ports) leadOutside() error {
	p.mu.Lock()
	changes, fresh, err := p.exit.Ensure()
	if p.leads {
		p.repaired(changes)
	}
	p.leads = p.leads || err == nil
	if fresh {
		ctx, cancel := context.WithTimeout(context.Background(), switchTimeout)
		err = errors.Join(err, p.sw.DeletePort(ctx, wellknown.ExitSwitchInterface))
		cancel()
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	no, err := p.plug(wellknown.ExitSwitchInterface)
	if err != nil {
		return err
	}
	own, far := exit.Port()
	return p.bridge.setExit(ovs.Port{No: no, MAC: own, Peer: far, Outside: true})
}

// changed counts what a repair changed of a port that was as it was to be before.
func (p *ports) changed(c port.Config, changes []kernel.Change) {
	was, known := p.complete[c.Outer]
	if known && reflect.DeepEqual(was, c) {
		p.repaired(changes)
	}
}

// plug adds the outer device to the switch, if it is missing.
func (p *ports) plug(outer string) (uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), switchTimeout)
	defer cancel()
	in, err := p.sw.Ports(ctx)
	if err != nil {
		return 0, fmt.Errorf("list the ports of the switch: %w", err)
	}
	if no, ok := in[outer]; ok {
		return no, nil
	}
	return p.sw.AddPort(ctx, outer)
}

// repairSwitch corrects the settings of the switch and of its ports, and returns what differed.
func (p *ports) repairSwitch(ctx context.Context) ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, switchTimeout)
	defer cancel()
	return p.sw.Repair(ctx, append(slices.Collect(maps.Keys(p.complete)), wellknown.ExitSwitchInterface))
}

// findings returns what of the host stands against the switch, one sentence each with the remedy.
func (p *ports) findings() (list []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.sw.Confined(); f != "" {
		list = append(list, f)
	}
	return list
}

// namespace returns the path of the network namespace of a link device.
func (p *ports) namespace(device string) string {
	return filepath.Join(namespaceDir, p.config(link.Device{Name: device}).Namespace)
}
