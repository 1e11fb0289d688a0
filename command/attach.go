// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/netspace"
	"github.com/sif-project/sif/internal/wellknown"
)

// AttachCommand is sif attach.
type AttachCommand struct {
	Meta
	attachOptions
	hostOptions
	pid   int
	netns string
}

// Synopsis implements cli.Command.
func (c *AttachCommand) Synopsis() string {
	return "Attach a workload that Nomad does not run to the fabric"
}

func (c *AttachCommand) usage() string {
	return `
Usage: sif attach [options] -consul-service=<service> <name>

  Makes the network namespace /run/netns/<name> with an endpoint of the fabric
  in it, on this machine, for what systemd, a container engine or a person
  starts there:

      $ sif attach -consul-service=postgres db
      $ ip netns exec db postgres ...

  The workload must be registered with this machine's Consul agent under that
  service, a selector of kind "consul" must match it, and a binding of the
  domain must have an attach block that names the service and this node or its
  class. The endpoint ends while the registration is gone, and comes back with
  it. Its health is that of the registration. Of several registrations of the
  service here, the one whose ID is <name> counts, else all of them do.

  With -pid or -netns, a namespace that exists gets the endpoint: that of a
  container that was started without a network, for instance. A unit attaches
  with sif-attach@<name>.service, and a single program with sif run.

  With -host, the endpoint is that of a process that stays in the machine's own
  namespace. What comes to it on the ports of -port is led to the process, which
  sees an internal address instead of its peer's. What processes of a cgroup
  send to the fabric, or to what their contracts name outside, leaves by it:

      $ sif attach -host -consul-service=postgres -port=5432 \
          -unit=postgresql.service db

  All else of the process goes the machine's way: the fabric does not confine a
  process of the host. docs/attach.md has what is guaranteed, and what is not.

  A call with the arguments of an earlier one changes nothing; other arguments
  for a name that is attached are refused. What cannot be attached leaves
  nothing behind. /etc/netns/<name>/resolv.conf names the fabric's resolver,
  unless somebody else wrote that file.

  This needs root. The exit code is 0 if the workload is attached, and 1
  otherwise.
`
}

func (c *AttachCommand) options() []*flag.FlagSet {
	o := newOptions("Namespace Options")
	o.IntVar(&c.pid, "pid", 0, "Attach the network namespace of the process with this `PID`, such as that of a container.")
	o.StringVar(&c.netns, "netns", "", "Attach the network namespace at this `path`.")
	c.jsonOption(o, "Print the attachment in JSON.")
	return []*flag.FlagSet{c.attachOptions.options(), c.hostOptions.options(), o}
}

func (c *AttachCommand) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: <name>", predict: complete.PredictAnything}
}

// attachment is what sif attach shows.
type attachment struct {
	cnicall.Attached
	Resolver string `json:"resolver,omitempty"` // the resolv.conf that was written
}

func (c *AttachCommand) run(ctx context.Context, args []string) error {
	w, err := c.check(args[0])
	if err != nil {
		return err
	}
	if c.pid != 0 && c.netns != "" {
		return usagef("-pid and -netns exclude each other.")
	}
	if c.pid < 0 {
		return usagef("-pid=%d is no process.", c.pid)
	}
	if c.host && (c.pid != 0 || c.netns != "") {
		return usagef("-host makes the endpoint's namespace, and goes without -pid and -netns.")
	}
	if c.attachOptions.process, err = c.hostOptions.process(); err != nil {
		var usage usageError
		if errors.As(err, &usage) {
			return err
		}
		return fmt.Errorf("attaching %q: %w", w.Name, err)
	}
	if err := requireRoot(); err != nil {
		return fmt.Errorf("attaching %q: %w", w.Name, err)
	}
	got, err := c.attach(ctx, w)
	if err != nil {
		return fmt.Errorf("attaching %q: %w", w.Name, err)
	}
	return c.output(got, func() string { return attachmentText(got) })
}

// attach attaches the workload. Nothing stays of an attempt that fails, but for what was there
// before.
func (c *AttachCommand) attach(ctx context.Context, w fabric.Attached) (got attachment, err error) {
	until := time.Now().Add(c.wait)
	lock, err := c.lock(w.Name)
	if err != nil {
		return got, err
	}
	defer lock.Close()
	list, err := c.list(ctx, until)
	if err != nil {
		return got, err
	}
	before := attachedAs(list, w.Name)
	if before != nil {
		if err := c.mayAttachAgain(*before, w); err != nil {
			return got, err
		}
	}
	f, space, made, err := c.space(w.Name)
	if err != nil {
		return got, err
	}
	defer f.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, c.undo(w.Name, space, made, before == nil))
		}
	}()
	if err := c.sameSpace(before, f); err != nil {
		return got, err
	}
	if name := resolverOf(c.spaces(), w.Name, space); name != "" {
		ours, err := c.spaces().WriteResolver(name)
		if err != nil {
			return got, err
		}
		if got.Resolver = c.spaces().ResolverPath(name); !ours {
			c.UI.Warn(fmt.Sprintf("%s is not sif's, and stays as it is. The fabric's resolver is %s.", got.Resolver, wellknown.LinkLocal4))
			got.Resolver = ""
		}
	}
	if err := c.hand(ctx, w, f, space, until); err != nil {
		return got, err
	}
	if list, err = c.list(ctx, until); err != nil {
		return got, err
	}
	if now := attachedAs(list, w.Name); now != nil {
		got.Attached = *now
	}
	return got, nil
}

// undo takes back what a call did that failed: it made the namespace, or the name is new.
func (c *AttachCommand) undo(name string, space cnicall.Space, made, fresh bool) error {
	var errs []error
	if fresh {
		if err := c.drop(name); !errors.Is(err, cnicall.ErrNoAgent) {
			errs = append(errs, err)
		}
		errs = append(errs, c.spaces().RemoveResolver(resolverOf(c.spaces(), name, space)))
	}
	if made {
		errs = append(errs, c.spaces().Remove(name))
	}
	return errors.Join(errs...)
}

// mayAttachAgain refuses a name that is attached as something else.
func (c *AttachCommand) mayAttachAgain(before cnicall.Attached, w fabric.Attached) error {
	w.ConsulNode = before.ConsulNode
	switch {
	case !before.Attachment.ByHand():
		return fmt.Errorf("the name is taken, by container %s: choose another one", before.Attachment.ContainerID)
	case before.ConsulService != w.ConsulService || before.Service != w.Service ||
		!slices.Equal(before.Originate, w.Originate) || !slices.Equal(before.Respond, w.Respond) || processText(before.Process) != processText(c.attachOptions.process):
		return fmt.Errorf("the name is taken: it is attached with %s; detach it first, with: sif detach %s", flagsOf(before), w.Name)
	case before.Space.Owner != 0:
		return fmt.Errorf("the name is taken, by sif run (process %d): choose another one", before.Space.Owner)
	}
	return nil
}

// flagsOf returns the options by which something was attached.
func flagsOf(a cnicall.Attached) string {
	text := []string{"-consul-service=" + a.ConsulService}
	for _, o := range [][2]string{{"service", a.Service}, {"originate", strings.Join(a.Originate, ",")}, {"respond", strings.Join(a.Respond, ",")}} {
		if o[1] != "" {
			text = append(text, "-"+o[0]+"="+o[1])
		}
	}
	if a.Process != nil {
		text = append(text, processText(a.Process))
	}
	return strings.Join(text, " ")
}

// sameSpace refuses another namespace for a name than the one that is attached, while that exists.
func (c *AttachCommand) sameSpace(before *cnicall.Attached, f *os.File) error {
	if before == nil || !netspace.Is(before.Space.Path, before.Inode) {
		return nil
	}
	inode, err := netspace.Inode(f)
	if err != nil || inode == before.Inode {
		return err
	}
	return fmt.Errorf("the name is taken: the namespace %s is attached; detach it first, with: sif detach %s", before.Space.Path, before.Name)
}

// space opens the namespace that the options name, or makes one.
func (c *AttachCommand) space(name string) (f *os.File, space cnicall.Space, made bool, err error) {
	switch {
	case c.pid != 0:
		space.Path = fmt.Sprintf("/proc/%d/ns/net", c.pid)
	case c.netns != "":
		if space.Path, err = filepath.Abs(c.netns); err != nil {
			return nil, space, false, err
		}
	default:
		space = cnicall.Space{Path: c.spaces().Path(name), Made: true}
		f, made, err = c.spaces().Make(name)
		if errors.Is(err, netspace.ErrOthers) {
			err = fmt.Errorf("the name is taken: %w; attach that namespace with -netns=%s, choose another name, or delete it with: ip netns delete %s", err, space.Path, name)
		}
		return f, space, made, err
	}
	if f, err = netspace.Open(space.Path); err != nil {
		return nil, space, false, err
	}
	host, err := netspace.IsHost(f)
	if host {
		err = fmt.Errorf("%s is the machine's own network namespace, where an endpoint cannot be told from anything else that runs here; start the workload in a namespace of its own, or forward ports to it with -host", space.Path)
	}
	if err != nil {
		f.Close()
		return nil, space, false, err
	}
	return f, space, false, nil
}

// resolverOf returns the name under which ip-netns(8) looks for the resolver of a namespace, or ""
// if it has none.
func resolverOf(l netspace.Layout, name string, space cnicall.Space) string {
	switch {
	case space.Made:
		return name
	case filepath.Dir(space.Path) == l.Namespaces && netspace.CheckName(filepath.Base(space.Path)) == nil:
		return filepath.Base(space.Path)
	}
	return ""
}

func attachmentText(a attachment) string {
	var b strings.Builder
	rows := [][]string{
		{"Name", a.Name}, {"Endpoint", a.Endpoint}, {"Service", serviceText(a.FabricService)},
		{"IPv4", addressText(a.IPv4)}, {"IPv6", addressText(a.IPv6)}, {"Namespace", a.Space.Path},
	}
	if a.Process != nil {
		rows = append(rows, []string{"Process", processText(a.Process)})
	}
	if a.Resolver != "" {
		rows = append(rows, []string{"Resolver", a.Resolver})
	}
	if a.Waits != "" {
		rows = append(rows, []string{"Waits", a.Waits})
	}
	table(&b, rows)
	return b.String()
}
