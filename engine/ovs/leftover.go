// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package ovs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/sif-project/sif/internal/leftover"
)

// Leftovers returns what Create and LimitConnections made in the switch: the limits of the zone,
// and the bridge. There is nothing if Open vSwitch is not installed or does not run.
func (s *Switch) Leftovers(ctx context.Context, zone uint16) ([]leftover.Leftover, error) {
	if _, err := exec.LookPath("ovs-vsctl"); err != nil {
		return nil, nil
	}
	if _, err := os.Stat(s.config.Database); err != nil {
		return nil, nil
	}
	datapath, err := s.get(ctx, "bridge", s.config.Bridge, "datapath_type")
	if err != nil {
		return nil, fmt.Errorf("look for bridge %s: %w", s.config.Bridge, err)
	}
	if datapath == "" {
		// The bridge has gone, perhaps in a removal that was interrupted: its limits may be left.
		return s.limitsLeft(ctx, zone, "system", "netdev")
	}
	list, err := s.limitsLeft(ctx, zone, datapath)
	return append(list, leftover.Leftover{Kind: "bridge", Name: s.config.Bridge, Remove: func(ctx context.Context) error {
		if _, err := s.run(ctx, "ovs-vsctl", "--if-exists", "del-br", s.config.Bridge); err != nil {
			return fmt.Errorf("delete bridge %s: %w", s.config.Bridge, err)
		}
		return nil
	}}), err
}

// limitsLeft returns the limits of a zone in those of the datapaths that have them.
func (s *Switch) limitsLeft(ctx context.Context, zone uint16, datapaths ...string) (list []leftover.Leftover, err error) {
	for _, datapath := range datapaths {
		row, err := s.get(ctx, "Open_vSwitch", ".", "datapaths:"+datapath)
		if err != nil || row == "" {
			continue
		}
		known, err := s.get(ctx, "Datapath", row, fmt.Sprintf("ct_zones:%d", zone))
		if err != nil || known == "" {
			continue
		}
		list = append(list, leftover.Leftover{Kind: "connection limits", Name: fmt.Sprintf("zone %d of datapath %s", zone, datapath), Remove: func(ctx context.Context) error {
			// The datapath has gone if its last bridge has, and its limits with it.
			limits := s.control(ctx, "dpctl/ct-del-limits", datapath+"@ovs-"+datapath, fmt.Sprintf("zone=%d", zone))
			if limits != nil && strings.Contains(limits.Error(), "No such") {
				limits = nil
			}
			_, times := s.run(ctx, "ovs-vsctl", "--if-exists", "del-zone-tp", datapath, fmt.Sprintf("zone=%d", zone))
			if err := errors.Join(limits, times, s.forget(ctx, datapath, row)); err != nil {
				return fmt.Errorf("remove the limits of zone %d: %w", zone, err)
			}
			return nil
		}})
	}
	return list, nil
}

// forget deletes the row of a datapath, which LimitConnections makes, if nothing is left in it.
func (s *Switch) forget(ctx context.Context, datapath, row string) error {
	zones, err := s.get(ctx, "Datapath", row, "ct_zones")
	if err != nil || zones != "{}" {
		return err
	}
	_, err = s.run(ctx, "ovs-vsctl", "remove", "Open_vSwitch", ".", "datapaths", datapath)
	return err
}
