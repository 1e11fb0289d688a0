// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/sif-project/sif/internal/node/host"
)

// hostInterval is how often a daemon looks at its host.
const hostInterval = 5 * time.Second

// conflicts returns what of the node's surroundings lies in the fabric's ranges.
func (n *Node) conflicts() ([]string, error) {
	var dns []string
	if n.Config.DNS != nil {
		dns = n.Config.DNS.Upstream
	}
	s, err := host.LookAround(dns)
	return host.Wrongs(s.Within(n.Self.Ranges)), err
}

// refuse returns an error if something that a new node uses lies in the fabric's ranges: joining
// would cut the node off from it. Nothing stays of the registration here.
func (n *Node) refuse() error {
	found, err := n.conflicts()
	if err != nil || len(found) == 0 {
		return err
	}
	return errors.Join(fmt.Errorf("node %s does not join: %s", n.Config.NodeID(), strings.Join(found, "; ")), os.Remove(n.record().Path))
}

// lookAtHost returns what of the host does not let the node go on. What the daemons repair or
// measure themselves is not in it, nor what only a start needs: `sif doctor` has all of it.
func (n *Node) lookAtHost() []string {
	findings := []host.Finding{host.Room(n.Config.DataDir)}
	if n.Config.Underlay != nil && n.Config.Underlay.Addr().IsValid() {
		findings = append(findings, host.Underlay(n.Config.Underlay.Addr(), n.Config.Underlay.Interface))
	}
	return host.Wrongs(findings)
}

// keepLooking reports what of the host stands against the fabric.
func (n *Node) keepLooking(ctx context.Context) error {
	if !n.host {
		return nil
	}
	tick := time.NewTicker(hostInterval)
	defer tick.Stop()
	for {
		found, err := n.conflicts()
		n.Report("pools", found)
		n.Degrade("surroundings", err)
		n.Report("host", n.lookAtHost())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
