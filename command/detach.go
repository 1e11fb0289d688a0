// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/netspace"
)

// DetachCommand is sif detach.
type DetachCommand struct {
	Meta
	nodeAgent
	force bool
}

// detached is what sif detach did, for -json.
type detached struct {
	Name     string `json:"name"`
	Detached bool   `json:"detached"` // false: nothing was attached under the name
	Endpoint string `json:"endpoint,omitempty"`
	// Processes are still in the namespace, and have no network of the fabric any more.
	Processes []netspace.Process `json:"processes,omitempty"`
}

// Synopsis implements cli.Command.
func (c *DetachCommand) Synopsis() string { return "Detach a workload that sif attach attached" }

func (c *DetachCommand) usage() string {
	return `
Usage: sif detach [options] <name>

  Ends the endpoint of what was attached on this machine under a name, cuts its
  connections, and takes away the network namespace if sif attach made it. It is
  no error if nothing is attached under the name.

  A namespace that sif attach made and in which processes run is refused, and
  the processes are named: stop them first. With -force, or in a namespace that
  is somebody else's, they go on without the fabric. No process is ended.

  This needs root. The exit code is 0 if nothing is attached under the name any
  more, and 1 otherwise.
`
}

func (c *DetachCommand) options() []*flag.FlagSet {
	o := newOptions("Detach Options")
	o.BoolVar(&c.force, "force", false, "Detach even if processes run in the namespace, or if the agent does not: it ends the endpoint when it starts.")
	c.jsonOption(o, "Print the result in JSON.")
	c.add(o)
	return []*flag.FlagSet{o}
}

func (c *DetachCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: <name>", predict: complete.PredictAnything}
}

func (c *DetachCommand) run(ctx context.Context, args []string) error {
	name := args[0]
	if err := netspace.CheckName(name); err != nil {
		return usageError{err}
	}
	if err := requireRoot(); err != nil {
		return fmt.Errorf("detaching %q: %w", name, err)
	}
	result, err := c.detach(ctx, name)
	if err != nil {
		return fmt.Errorf("detaching %q: %w", name, err)
	}
	return c.output(result, func() string { return detachedText(result) })
}

func (c *DetachCommand) detach(ctx context.Context, name string) (result detached, err error) {
	result.Name = name
	lock, err := c.lock(name)
	if err != nil {
		return result, err
	}
	defer lock.Close()
	list, err := c.list(ctx, time.Now())
	away := errors.Is(err, cnicall.ErrNoAgent)
	if err != nil && !(away && c.force) {
		return result, err
	}
	spaces := c.spaces()
	is := attachedAs(list, name)
	switch {
	case is == nil && !spaces.Made(name):
		return result, errors.Join(spaces.Remove(name), os.Remove(lock.Name())) // what an interrupted call may have left
	case is != nil && !is.Attachment.ByHand():
		return result, fmt.Errorf("its container engine attached it, as container %s: stop the container", is.Attachment.ContainerID)
	case is != nil && is.Space.Owner != 0 && !c.force:
		return result, fmt.Errorf("sif run attached it, and detaches it when its program ends: end process %d, or use -force", is.Space.Owner)
	}
	inode, made := uint64(0), spaces.Made(name)
	if is != nil {
		inode = is.Inode
	} else if f, err := netspace.Open(spaces.Path(name)); err == nil {
		inode, _ = netspace.Inode(f)
		f.Close()
	}
	if result.Processes, err = netspace.Processes(inode); err != nil {
		return result, err
	}
	if made && len(result.Processes) > 0 && !c.force {
		return result, fmt.Errorf("%s in the namespace: %s; stop them first, or use -force, and they lose their network",
			count(len(result.Processes), "process")+map[bool]string{true: " runs", false: " run"}[len(result.Processes) == 1], processesText(result.Processes))
	}
	result.Detached = true
	if is != nil {
		result.Endpoint = is.Endpoint
		if err := c.drop(name); err != nil {
			return result, err
		}
		if err := spaces.RemoveResolver(resolverOf(spaces, name, is.Space)); err != nil {
			return result, err
		}
	}
	return result, errors.Join(spaces.Remove(name), os.Remove(lock.Name()))
}

func processesText(list []netspace.Process) string {
	const most = 5
	var names []string
	for _, p := range list[:min(most, len(list))] {
		names = append(names, p.String())
	}
	text := strings.Join(names, ", ")
	if more := len(list) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func detachedText(d detached) string {
	switch {
	case !d.Detached:
		return fmt.Sprintf("Nothing is attached as %q.", d.Name)
	case len(d.Processes) > 0:
		return fmt.Sprintf("%q is detached. Still in its namespace, without the fabric: %s.", d.Name, processesText(d.Processes))
	}
	return fmt.Sprintf("%q is detached.", d.Name)
}
