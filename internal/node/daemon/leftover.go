// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package daemon

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"regexp"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/config"
	"github.com/sif-project/sif/internal/leftover"
	"github.com/sif-project/sif/internal/node/firewall"
	"github.com/sif-project/sif/internal/node/kernel"
	"github.com/sif-project/sif/internal/statefile"
	"github.com/sif-project/sif/internal/wellknown"
)

// linkInterface is the form of wellknown.LinkInterface and wellknown.DetourInterface.
var linkInterface = regexp.MustCompile(`^` + wellknown.LinkPrefix + `[0-9]+d?$`)

// before is the file with the kernel parameters as they were before a daemon changed them.
func before(c *config.Config) statefile.File[map[string]string] {
	return statefile.File[map[string]string]{Path: filepath.Join(c.DataDir, "sysctls.json"), What: "the kernel parameters from before"}
}

// remember stores the kernel parameters of the machine, unless an earlier start did.
func remember(c *config.Config) error {
	if _, found, err := before(c).Read(); found && err == nil {
		return nil
	}
	now, err := kernel.Parameters()
	if err != nil {
		return err
	}
	return before(c).Write(now)
}

// Record returns the record of the node that is stored on the machine, without its signature being
// verified, or a zero one.
func Record(c *config.Config) fabric.Node {
	var self fabric.Node
	n := Node{Config: c}
	if signed, found, err := n.record().Read(); found && err == nil {
		_ = json.Unmarshal(signed.Payload, &self) // zero if it is damaged
	}
	return self
}

// Leftovers returns what agent and engine have made alike on this machine, in the order in which it
// is to be taken away: the links, the routing rules, the routes, the firewall, and what they
// changed of the kernel's parameters. All daemons must have been stopped.
func Leftovers(c *config.Config) ([]leftover.Leftover, error) {
	list, err := leftover.Interfaces(linkInterface.MatchString)
	errs := []error{err}
	for _, find := range []func() ([]leftover.Leftover, error){
		kernel.Rules, kernel.Routes, firewall.Leftovers, func() ([]leftover.Leftover, error) {
			values, _, err := before(c).Read()
			if err != nil {
				return nil, err
			}
			return kernel.Changed(values)
		},
	} {
		more, err := find()
		list, errs = append(list, more...), append(errs, err)
	}
	return list, errors.Join(errs...)
}
