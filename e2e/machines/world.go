// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package machines boots virtual machines with stock kernels and systemd, in networks of their own
// on this machine. It knows images, QEMU, bridges and SSH. It must not know what the machines are
// used for: neither the fabric nor its servers.
//
// A world is a network namespace with a bridge for each zone, which routes between them and gives
// the machines their addresses by DHCP, and the machines in it. Everything of a world is below its
// directory, in its namespace, or a process that carries its name in the environment. It stays
// until Down removes it, also after the program that made it has ended.
package machines

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sif-project/sif/internal/atomicfile"
)

// root contains the directory of each world.
const root = "/var/lib/sif-machines"

// Zone is a network of a world: a bridge whose first address routes, serves DHCP and resolves
// names.
type Zone struct {
	Name   string
	Subnet netip.Prefix // a /24
}

// Gateway is the zone's address of the world's namespace.
func (z Zone) Gateway() netip.Addr { return z.Subnet.Masked().Addr().Next() }

// DefaultZones are the networks of a world for which Options names none.
func DefaultZones() []Zone {
	return []Zone{
		{Name: "a", Subnet: netip.MustParsePrefix("10.20.1.0/24")},
		{Name: "b", Subnet: netip.MustParsePrefix("10.20.2.0/24")},
	}
}

// Options says what world to make.
type Options struct {
	Name   string
	Zones  []Zone // none: DefaultZones
	Domain string // of the machines' names; "": machines.internal
	Out    io.Writer
	// Owner is the process whose end makes the world a remnant, which the next program that makes
	// any world removes. 0 means that the world stays until Down.
	Owner int
}

// World is a set of machines and their networks.
type World struct {
	Name      string
	Zones     []Zone
	Domain    string
	Owner     int
	OwnerBorn uint64
	Machines  []*Machine

	out io.Writer
}

var names = regexp.MustCompile(`^[a-z][a-z0-9-]{0,11}$`)

// ErrNone means that there is no such world.
var ErrNone = errors.New("no such world of machines; `sif-machine up` makes it")

// Up makes the networks of a new world, without machines. A world of that name that is there
// already is removed first, and so are the worlds whose owners have ended.
func Up(ctx context.Context, o Options) (*World, error) {
	if !names.MatchString(o.Name) {
		return nil, fmt.Errorf("the name of a world must match %s, %q does not", names, o.Name)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("machines need root: they have a network of their own")
	}
	for _, program := range []string{"qemu-system-x86_64", "qemu-img", "dnsmasq", "ssh", "ssh-keygen", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%s is not installed: run make setup", program)
		}
	}
	w := &World{Name: o.Name, Zones: o.Zones, Domain: o.Domain, Owner: o.Owner, out: o.Out}
	if w.Zones == nil {
		w.Zones = DefaultZones()
	}
	if w.Domain == "" {
		w.Domain = "machines.internal"
	}
	if w.out == nil {
		w.out = io.Discard
	}
	if o.Owner != 0 {
		var err error
		if w.OwnerBorn, err = bornAt(o.Owner); err != nil {
			return nil, err
		}
	}
	if err := sweep(ctx); err != nil {
		return nil, err
	}
	if err := Down(ctx, o.Name); err != nil {
		return nil, err
	}
	if err := w.build(ctx); err != nil {
		return nil, errors.Join(err, Down(context.WithoutCancel(ctx), o.Name))
	}
	return w, nil
}

func (w *World) build(ctx context.Context) error {
	if err := os.MkdirAll(w.path("dnsmasq.hosts.d"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(w.path("dnsmasq.names"), nil, 0o644); err != nil {
		return err
	}
	if err := w.save(); err != nil {
		return err
	}
	for _, name := range []string{"id", "host"} {
		if _, err := output(exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", w.Name, "-f", w.path(name))); err != nil {
			return err
		}
	}
	key, err := os.ReadFile(w.path("host.pub"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(w.path("known_hosts"), append([]byte("* "), key...), 0o600); err != nil {
		return err
	}
	return w.buildNetwork(ctx)
}

// Open finds a world that another program made.
func Open(name string, out io.Writer) (*World, error) {
	w := &World{out: out}
	data, err := os.ReadFile(filepath.Join(root, filepath.Base(name), "world.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, ErrNone)
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, w); err != nil {
		return nil, fmt.Errorf("decode the world %s: %w", name, err)
	}
	for _, m := range w.Machines {
		m.world = w
	}
	return w, nil
}

// Machine finds a machine by its name.
func (w *World) Machine(name string) (*Machine, error) {
	for _, m := range w.Machines {
		if m.Name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("the world %s has no machine %q", w.Name, name)
}

func (w *World) zone(name string) (Zone, error) {
	i := slices.IndexFunc(w.Zones, func(z Zone) bool { return z.Name == name })
	if i < 0 {
		return Zone{}, fmt.Errorf("the world %s has no zone %q", w.Name, name)
	}
	return w.Zones[i], nil
}

func (w *World) path(elements ...string) string {
	return filepath.Join(append([]string{root, w.Name}, elements...)...)
}

// Path returns the path of a file in the world's directory, which goes with the world.
func (w *World) Path(name string) string { return w.path(name) }

func (w *World) save() error {
	data, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteLazily(w.path("world.json"), data, 0o600)
}

// lock keeps other programs from adding machines to the world until the returned function is
// called.
func (w *World) lock() (func(), error) {
	f, err := os.OpenFile(w.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the world: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// progress prints a line for the user.
func (w *World) progress(format string, args ...any) {
	fmt.Fprintf(w.out, "machines: "+format+"\n", args...)
}

// Image returns the directory of a base image. It builds the image if it is not in the cache, which
// takes some minutes.
func Image(ctx context.Context, name string, out io.Writer) (string, error) {
	script, err := imageScript()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, script, name)
	cmd.Stderr = out
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	path, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build the image %s: %w", name, err)
	}
	return strings.TrimSpace(string(path)), nil
}

// imageScript finds the program that builds images: in the repository that contains the working
// directory, or else the one that contains this program.
func imageScript() (string, error) {
	var tried []string
	for _, find := range []func() (string, error){os.Getwd, os.Executable} {
		dir, err := find()
		if err != nil {
			return "", err
		}
		for ; dir != "/"; dir = filepath.Dir(dir) {
			script := filepath.Join(dir, "e2e/machines/image/build.sh")
			if _, err := os.Stat(script); err == nil {
				return script, nil
			}
		}
		tried = append(tried, dir)
	}
	return "", fmt.Errorf("e2e/machines/image/build.sh is not above %s: run this in a clone of the repository", strings.Join(tried, " or "))
}

// output runs a command and returns its output. An error contains what the command said.
func output(cmd *exec.Cmd) (string, error) {
	var stderr strings.Builder
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s%s", strings.Join(cmd.Args, " "), err, stderr.String(), out)
	}
	return string(out), nil
}

// hardwareAddress derives a machine's address from its name, so that it keeps its lease.
func hardwareAddress(world, machine string) string {
	sum := sha256.Sum256([]byte(world + "/" + machine))
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", sum[0], sum[1], sum[2])
}
