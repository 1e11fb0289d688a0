// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package engine

import (
	"context"
	"errors"
	"regexp"
	"strings"

	"github.com/sif-project/sif/engine/exit"
	"github.com/sif-project/sif/engine/ovs"
	"github.com/sif-project/sif/engine/port"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/leftover"
	"github.com/sif-project/sif/internal/wellknown"
)

var switchInterface = regexp.MustCompile(`^` + wellknown.SwitchPrefix + `[0-9]+$`)

// newSwitch returns the switch that a configuration names.
func newSwitch(c *config.Config) *ovs.Switch {
	return ovs.NewSwitch(ovs.Config{RunDir: c.OVS.RunDir, Database: strings.TrimPrefix(c.OVS.DB, "unix:"), Control: c.OVS.Control, Bridge: c.OVS.Bridge})
}

// Leftovers returns what an engine has made on this machine, in the order in which it is to be
// taken away: what is in the switch, the exit to the outside, the switch's ports, and the
// namespaces of the links with their devices. The engine must have been stopped.
func Leftovers(ctx context.Context, c *config.Config) ([]leftover.Leftover, error) {
	var list []leftover.Leftover
	var errs []error
	if _, has := c.Switch(); has { // otherwise the switch of the machine, if there is one, is somebody else's
		found, err := newSwitch(c).Leftovers(ctx, conntrackZone)
		list, errs = append(list, found...), append(errs, err)
	}
	outside, err := exit.Leftovers()
	list, errs = append(list, outside...), append(errs, err)
	interfaces, err := leftover.Interfaces(switchInterface.MatchString)
	errs = append(errs, err)
	spaces, err := port.Namespaces(wellknown.LinkNamespace(c.Engine.Namespaces, wellknown.LinkPrefix))
	errs = append(errs, err)
	return append(append(list, interfaces...), spaces...), errors.Join(errs...)
}
