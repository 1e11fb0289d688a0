// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ErrIncompatible says that the pinned maps have another layout or size than this version
// wants. DiscardMaps clears the way: what is attached goes on with the old maps until Attach.
var ErrIncompatible = errors.New("pinned maps are of another version or size")

// FullError says that a map has no room for another entry.
type FullError struct {
	Map  string
	Size uint32 // the entries that it can hold
}

func (e *FullError) Error() string {
	return fmt.Sprintf("map %s is full with its %d entries", e.Map, e.Size)
}

// Options is what the programs are told once, when the data path is opened.
type Options struct {
	// Resolver4 and Resolver6 are the addresses at which the node's own resolver listens on
	// UDP and TCP port 53. Every workload may ask it. The zero value: there is none.
	Resolver4, Resolver6 netip.Addr
	// Fabric holds all prefixes out of which endpoints get addresses. An address within
	// them is a peer or unknown, never an external.
	Fabric []netip.Prefix
	// FlowEvents has allowed new flows reported too, not only drops.
	FlowEvents bool
	// PassAll has everything pass that would be dropped; it is counted all the same. It
	// exists to show that another layer holds alone.
	PassAll bool
	// Sizes overrides the number of entries of maps by their name ("sif_rules").
	Sizes map[string]uint32
}

// Datapath is the data path of one node. Its methods may be called concurrently.
type Datapath struct {
	dir      string
	objects  endpointMaps
	programs *endpointPrograms // nil: opened to look at only

	mu     sync.Mutex
	memory []byte          // sif_config, mapped; nil after Close
	config *endpointConfig // in memory
	pairs  map[Pair]map[endpointRuleKey]uint32
}

// Open loads the programs and makes the maps, or takes over the maps that are pinned in
// dir, which must lie on a BPF filesystem. What is in them stays and goes on being enforced;
// the configuration becomes that of opts, and the generation is raised, because the process
// before may have died between a change and raising it. Programs of an earlier process stay
// where they are attached until Attach replaces them.
//
// Returns an error that wraps ErrIncompatible if the pinned maps do not fit.
func Open(dir string, opts Options) (*Datapath, error) {
	spec, err := loadEndpoint()
	if err != nil {
		return nil, fmt.Errorf("read the compiled programs: %w", err)
	}
	for name, size := range opts.Sizes {
		m, ok := spec.Maps[name]
		if !ok {
			return nil, fmt.Errorf("size of map %q: there is no such map", name)
		}
		m.MaxEntries = size
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make pin directory: %w", err)
	}
	var objects endpointObjects
	err = spec.LoadAndAssign(&objects, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return nil, fmt.Errorf("%w: %w", ErrIncompatible, err)
	}
	if err != nil {
		return nil, fmt.Errorf("load programs and maps pinned in %s: %w", dir, err)
	}
	d := &Datapath{dir: dir, objects: objects.endpointMaps, programs: &objects.endpointPrograms}
	if err := d.take(); err != nil {
		d.Close()
		return nil, err
	}
	if err := d.configure(opts); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// OpenPinned opens the maps that another process pinned in dir, to look at them or to set
// PassAll. It loads no programs and changes nothing; Attach fails on what it returns.
func OpenPinned(dir string) (*Datapath, error) {
	d := &Datapath{dir: dir}
	for name, m := range d.maps() {
		var err error
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); err != nil {
			d.Close()
			return nil, fmt.Errorf("open pinned map %s in %s: %w", name, dir, err)
		}
	}
	if err := d.take(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// DiscardMaps removes the pins of the maps in dir, so that the next Open makes new, empty
// ones. Attached programs keep the old ones. To change over without a gap: DiscardMaps,
// Open, fill the maps, Attach every interface.
func DiscardMaps(dir string) error {
	for name := range new(Datapath).maps() {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("discard pinned map: %w", err)
		}
	}
	return nil
}

// Close gives up what the process holds. All that is pinned goes on without it.
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
		"sif_lost": &o.SifLost,
	}
}

// take maps the configuration into memory and reads which rules there are.
func (d *Datapath) take() error {
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
	if err := d.replaceFabric(opts.Fabric); err != nil {
		return err
	}
	for _, a := range []netip.Addr{opts.Resolver4, opts.Resolver6} {
		if !a.IsValid() {
			continue
		}
		if err := plain(a); err != nil {
			return fmt.Errorf("resolver: %w", err)
		}
	}
	d.config.Dns4 = toMap(opts.Resolver4)
	d.config.Dns6 = toMap(opts.Resolver6)
	var flags endpointConfigFlag
	if opts.FlowEvents {
		flags |= endpointConfigFlagCONFIG_FLOW_EVENTS
	}
	if opts.PassAll {
		flags |= endpointConfigFlagCONFIG_PASS_ALL
	}
	atomic.StoreUint32((*uint32)(&d.config.Flags), uint32(flags))
	d.raise()
	return nil
}

func (d *Datapath) replaceFabric(prefixes []netip.Prefix) error {
	wanted := map[endpointFabricKey]bool{}
	for _, p := range prefixes {
		address, length, err := prefixToMap(p)
		if err != nil {
			return fmt.Errorf("fabric: %w", err)
		}
		key := endpointFabricKey{PrefixLength: length, Address: address}
		wanted[key] = true
		if err := put(d.objects.SifFabric, "sif_fabric", key, uint32(1)); err != nil {
			return err
		}
	}
	entries, err := dump[endpointFabricKey, uint32](d.objects.SifFabric, "sif_fabric")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !wanted[e.key] {
			if _, err := remove(d.objects.SifFabric, "sif_fabric", e.key); err != nil {
				return err
			}
		}
	}
	return nil
}

// RaiseGeneration has every connection judged again by its next packet. The methods that
// remove or alter entries do it by themselves. Returns the new generation.
func (d *Datapath) RaiseGeneration() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return 0, os.ErrClosed
	}
	return d.raise(), nil
}

// raise is for callers that hold mu, or own d alone.
func (d *Datapath) raise() uint64 { return atomic.AddUint64(&d.config.Generation, 1) }

// change runs f, and raises the generation if f says that it took something away, also
// when it failed half way.
func (d *Datapath) change(f func() (bool, error)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.config == nil {
		return os.ErrClosed
	}
	taken, err := f()
	if taken {
		d.raise()
	}
	return err
}

// SetPassAll switches Options.PassAll on or off while the programs run.
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

// PassAll tells whether everything passes.
func (d *Datapath) PassAll() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.config != nil && atomic.LoadUint32((*uint32)(&d.config.Flags))&uint32(endpointConfigFlagCONFIG_PASS_ALL) != 0
}
