// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sif-project/sif/internal/connlimit"
)

// ErrIncompatible means that the layout or size of the pinned maps is not the one that this version
// needs. Call DiscardMaps, then Open again: attached programs use the old maps until Attach
// replaces them.
var ErrIncompatible = errors.New("the pinned maps are of another version or size")

// FullError means that a map has no room for another entry.
type FullError struct {
	Map  string
	Size uint32 // its number of entries
}

func (e *FullError) Error() string {
	return fmt.Sprintf("map %s is full: it has %d entries", e.Map, e.Size)
}

// Options configures the programs when the data path is opened.
type Options struct {
	// Resolver4 and Resolver6 are the addresses of the node's own resolver, on UDP and TCP port 53.
	// Every workload may query it. The zero value means that there is none.
	Resolver4, Resolver6 netip.Addr
	// Node4 and Node6 are the link-local addresses by which workloads reach sockets of this node
	// that an External with Interface 0 and a contract let them reach. The zero value means that
	// there are none. Port 53 of a resolver's address is always the resolver.
	Node4, Node6 netip.Addr
	// NodeExit is the mark of packets to externals that leave by this node, because of
	// Rule.ExitNode. 0 means that none may.
	NodeExit uint32
	// Fabric contains all prefixes from which endpoints get addresses. An address in one of them is
	// a peer or unknown, never an external.
	Fabric []netip.Prefix
	// PassAll lets packets pass that would be dropped; they are still counted. Tests use it to show
	// that another layer enforces the policy by itself.
	PassAll bool
	// Limits are those of connections; those of connlimit.Default if they are zero.
	Limits connlimit.Limits
	// Mechanism is how programs are attached; if it is empty, TCX where the kernel has it,
	// otherwise Clsact.
	Mechanism Mechanism
	// Sizes overrides the number of entries of maps by their name ("sif_rules").
	Sizes map[string]uint32
}

// Datapath is the data path of one node. Its methods may be called concurrently.
type Datapath struct {
	dir      string
	objects  endpointMaps
	programs *endpointPrograms // nil after OpenPinned
	options  Options

	hooks     []hook
	mechanism Mechanism // "" after OpenPinned
	attaching mechanism
	leaving   mechanism // what a previous process may have used
	guests    guests

	mu        sync.Mutex
	memory    []byte          // sif_config, mapped; nil after Close
	config    *endpointConfig // points into memory
	pairs     map[Pair]map[endpointRuleKey]uint32
	roused    uint64 // the generation of which RouseCut has nothing left to do
	nextRouse time.Time
	attached  map[string]int // the indexes of the interfaces to which this process attached
}

// Open loads the programs and creates the maps, or opens those that are pinned in dir, which must
// be on a BPF filesystem. Entries of pinned maps stay and are enforced without interruption. Open
// replaces the configuration by opts and raises the generation, because the previous process may
// have ended between a change and raising the generation. Programs of a previous process stay
// attached until Attach replaces them.
//
// The error wraps ErrIncompatible if the pinned maps do not fit.
func Open(dir string, opts Options) (*Datapath, error) {
	spec, err := loadEndpoint()
	if err != nil {
		return nil, fmt.Errorf("read the compiled eBPF programs: %w", err)
	}
	for name, size := range opts.Sizes {
		m, ok := spec.Maps[name]
		if !ok {
			return nil, fmt.Errorf("set the size of map %q: there is no such map", name)
		}
		m.MaxEntries = size
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the pin directory: %w", err)
	}
	var objects endpointObjects
	err = spec.LoadAndAssign(&objects, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return nil, fmt.Errorf("%w: %w", ErrIncompatible, err)
	}
	if err != nil {
		return nil, fmt.Errorf("load the programs and the maps pinned in %s: %w", dir, lacking(err))
	}
	d := &Datapath{dir: dir, objects: objects.endpointMaps, programs: &objects.endpointPrograms, options: opts, attached: map[string]int{}}
	if err := d.choose(opts.Mechanism); err != nil {
		d.Close()
		return nil, err
	}
	if err := d.load(); err != nil {
		d.Close()
		return nil, err
	}
	if err := d.configure(opts); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// OpenPinned opens the maps that another process pinned in dir, to read them or to call SetPassAll.
// It loads no programs, so Attach fails.
func OpenPinned(dir string) (*Datapath, error) {
	d := &Datapath{dir: dir}
	for name, m := range d.maps() {
		var err error
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); err != nil {
			d.Close()
			return nil, fmt.Errorf("open pinned map %s in %s: %w", name, dir, err)
		}
	}
	if err := d.load(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// DiscardMaps removes the pins of the maps in dir, so that the next Open creates new, empty maps.
// Attached programs keep the old maps. To migrate without a gap: DiscardMaps, Open, fill the maps,
// Attach to each interface.
func DiscardMaps(dir string) error {
	for name := range new(Datapath).maps() {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("discard pinned map: %w", err)
		}
	}
	return nil
}

// Close releases the resources of the process. Pinned programs and maps stay in force.
func (d *Datapath) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	if d.memory != nil {
		errs = append(errs, unix.Munmap(d.memory))
		d.memory, d.config = nil, nil
	}
	if d.programs != nil {
		errs = append(errs, d.programs.Close())
	}
	if d.attaching != nil {
		errs = append(errs, d.attaching.close(), d.guests.close())
	}
	for _, m := range d.maps() {
		errs = append(errs, (*m).Close())
	}
	return errors.Join(errs...)
}

func (d *Datapath) maps() map[string]**ebpf.Map {
	o := &d.objects
	return map[string]**ebpf.Map{
		"sif_config": &o.SifConfig, "sif_endpoints": &o.SifEndpoints, "sif_peers": &o.SifPeers,
		"sif_externals": &o.SifExternals, "sif_fabric": &o.SifFabric, "sif_pairs": &o.SifPairs,
		"sif_rules": &o.SifRules, "sif_checks": &o.SifChecks, "sif_conns": &o.SifConns,
		"sif_verdicts": &o.SifVerdicts, "sif_drops": &o.SifDrops, "sif_events": &o.SifEvents,
		"sif_usage": &o.SifUsage, "sif_lost": &o.SifLost, "sif_published": &o.SifPublished,
		"sif_exits": &o.SifExits, "sif_refusals": &o.SifRefusals, "sif_fragments": &o.SifFragments,
		"sif_ways": &o.SifWays, "sif_classes": &o.SifClasses, "sif_links": &o.SifLinks,
		"sif_flows": &o.SifFlows, "sif_flow_ids": &o.SifFlowIds, "sif_refused": &o.SifRefused, "sif_meters": &o.SifMeters,
		"sif_unrecorded": &o.SifUnrecorded, "sif_scratch": &o.SifScratch,
	}
}

// load maps the configuration into memory and reads the rules.
func (d *Datapath) load() error {
	memory, err := unix.Mmap(d.objects.SifConfig.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map sif_config into memory: %w", err)
	}
	d.memory = memory
	d.config = (*endpointConfig)(unsafe.Pointer(unsafe.SliceData(memory)))
	d.pairs, err = d.readPairs()
	return err
}

func (d *Datapath) configure(opts Options) error {
	for _, o := range []struct {
		name      string
		addresses [2]netip.Addr
	}{{"resolver", [2]netip.Addr{opts.Resolver4, opts.Resolver6}}, {"node", [2]netip.Addr{opts.Node4, opts.Node6}}} {
		for _, a := range o.addresses {
			if !a.IsValid() {
				continue
			}
			if err := plain(a); err != nil {
				return fmt.Errorf("%s: %w", o.name, err)
			}
		}
	}
	var flags endpointConfigFlag
	if opts.PassAll {
		flags |= endpointConfigFlagCONFIG_PASS_ALL
	}
	atomic.StoreUint32((*uint32)(&d.config.Flags), uint32(flags))
	if _, err := d.restore(); err != nil {
		return err
	}
	d.raise()
	return nil
}

// limit writes the limits of connections.
func (d *Datapath) limit(l connlimit.Limits) {
	// In the order of enum lifetime in headers/maps.h.
	for kind, t := range [len(d.config.Lifetime)]time.Duration{
		l.Idle.TCPOpening, l.Idle.TCPEstablished, l.Idle.TCPClosing, l.Idle.TCPClosed, l.Idle.UDP, l.Idle.SCTP, l.Idle.ICMP,
	} {
		atomic.StoreUint64(&d.config.Lifetime[kind], uint64(t))
	}
	atomic.StoreUint32(&d.config.MaxConnections, uint32(l.PerEndpoint))
	atomic.StoreUint64(&d.config.FlowInterval, uint64(time.Second)/uint64(l.NewPerSecond))
	atomic.StoreUint64(&d.config.FlowBurst, uint64(time.Second))
}

// Repair makes what Open set up as it was, apart from Options.PassAll and the programs, and returns
// what differed: pins of maps, the configuration, the prefixes of the fabric.
func (d *Datapath) Repair() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return nil, os.ErrClosed
	}
	pins, err := d.pinMaps()
	if err != nil {
		return pins, err
	}
	changes, err := d.restore()
	if len(changes) > 0 {
		d.raise()
	}
	return append(pins, changes...), err
}

// pinMaps pins the maps whose pins are gone.
func (d *Datapath) pinMaps() ([]string, error) {
	var missing []string
	for name, m := range d.maps() {
		pin := filepath.Join(d.dir, name)
		if _, err := os.Stat(pin); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := os.MkdirAll(d.dir, 0o700); err != nil {
			return missing, fmt.Errorf("create the pin directory: %w", err)
		}
		// The library believes that the pin is there, and does nothing unless told otherwise.
		if err := errors.Join((*m).Unpin(), (*m).Pin(pin)); err != nil {
			return missing, fmt.Errorf("pin map %s again: %w", name, err)
		}
		missing = append(missing, "the pin of map "+name)
	}
	slices.Sort(missing)
	return missing, nil
}

// restore makes the configuration and the prefixes of the fabric those of the options, and returns
// what differed.
func (d *Datapath) restore() ([]string, error) {
	changes, err := d.restoreFabric()
	if err != nil {
		return changes, err
	}
	for _, r := range []struct {
		have *endpointAddr
		want netip.Addr
		what string
	}{
		{&d.config.Dns4, d.options.Resolver4, "the resolver's address"}, {&d.config.Dns6, d.options.Resolver6, "the resolver's address"},
		{&d.config.Node4, d.options.Node4, "the node's address"}, {&d.config.Node6, d.options.Node6, "the node's address"},
	} {
		if want := toMap(r.want); *r.have != want {
			*r.have = want
			changes = append(changes, r.what)
		}
	}
	if atomic.LoadUint32(&d.config.NodeExit) != d.options.NodeExit {
		atomic.StoreUint32(&d.config.NodeExit, d.options.NodeExit)
		changes = append(changes, "the mark of the node's exit")
	}
	before := *d.config
	d.limit(cmp.Or(d.options.Limits, connlimit.Default()))
	if now := *d.config; now.Lifetime != before.Lifetime || now.MaxConnections != before.MaxConnections ||
		now.FlowInterval != before.FlowInterval || now.FlowBurst != before.FlowBurst {
		changes = append(changes, "the limits of connections")
	}
	return changes, nil
}

func (d *Datapath) restoreFabric() (changes []string, err error) {
	wanted := map[endpointFabricKey]netip.Prefix{}
	for _, p := range d.options.Fabric {
		address, length, err := prefixToMap(p)
		if err != nil {
			return nil, fmt.Errorf("fabric: %w", err)
		}
		wanted[endpointFabricKey{PrefixLength: length, Address: address}] = p
	}
	entries, err := dump[endpointFabricKey, uint32](d.objects.SifFabric, "sif_fabric")
	if err != nil {
		return nil, err
	}
	there := map[endpointFabricKey]bool{}
	for _, e := range entries {
		there[e.key] = true
		if _, stays := wanted[e.key]; stays {
			continue
		}
		if _, err := remove(d.objects.SifFabric, "sif_fabric", e.key); err != nil {
			return changes, err
		}
		changes = append(changes, fmt.Sprintf("prefix %s of the fabric, removed", prefixFromMap(e.key.Address, e.key.PrefixLength)))
	}
	for key, p := range wanted {
		if there[key] {
			continue
		}
		if err := put(d.objects.SifFabric, "sif_fabric", key, uint32(1)); err != nil {
			return changes, err
		}
		changes = append(changes, fmt.Sprintf("prefix %s of the fabric, added", p))
	}
	slices.Sort(changes)
	return changes, nil
}

// RaiseGeneration makes the programs evaluate each connection again at its next packet, and returns
// the new generation. Methods that remove or change entries call it themselves.
func (d *Datapath) RaiseGeneration() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return 0, os.ErrClosed
	}
	return d.raise(), nil
}

// raise requires that the caller holds mu or is the only user of d.
func (d *Datapath) raise() uint64 { return atomic.AddUint64(&d.config.Generation, 1) }

// change runs f. It raises the generation if f reports that it removed or changed an entry, even if
// f also returns an error.
func (d *Datapath) change(f func() (bool, error)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return os.ErrClosed
	}
	removed, err := f()
	if removed {
		d.raise()
	}
	return err
}

// SetPassAll changes Options.PassAll of running programs.
func (d *Datapath) SetPassAll(on bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return os.ErrClosed
	}
	flags := (*uint32)(&d.config.Flags)
	if on {
		atomic.OrUint32(flags, uint32(endpointConfigFlagCONFIG_PASS_ALL))
	} else {
		atomic.AndUint32(flags, ^uint32(endpointConfigFlagCONFIG_PASS_ALL))
	}
	return nil
}

// PassAll returns the value of Options.PassAll in force.
func (d *Datapath) PassAll() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.config != nil && atomic.LoadUint32((*uint32)(&d.config.Flags))&uint32(endpointConfigFlagCONFIG_PASS_ALL) != 0
}
