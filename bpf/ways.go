// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
)

// Way is what packets between endpoints of this node and peers with ways have in common when they
// leave alike. Classes and groups are numbers that the caller chooses.
type Way struct {
	Class  uint16 // of the contract; 0 for one that SetClasses does not name
	Group  uint16 // of the peer
	Bucket uint8  // the exclusive or of the numbers of endpoint and peer
}

// SetWays replaces the ways: the marks of packets that leave by them, which are not 0. Routing
// rules lead a mark to a link. Packets for which there is no way are dropped. A way that goes or
// gets another mark raises the generation once, so that flows go on by the new one; a flow without
// a way waits for one.
func (d *Datapath) SetWays(ways map[Way]uint32) error {
	wanted := map[endpointWayKey]uint32{}
	for w, mark := range ways {
		if mark == 0 {
			return fmt.Errorf("way of class %d to group %d, bucket %d: its mark must not be 0", w.Class, w.Group, w.Bucket)
		}
		wanted[endpointWayKey{Class: w.Class, Group: w.Group, Bucket: uint32(w.Bucket)}] = mark
	}
	return d.change(func() (bool, error) { return become(d.objects.SifWays, "sif_ways", wanted) })
}

// Ways returns all ways and their marks.
func (d *Datapath) Ways() (map[Way]uint32, error) {
	entries, err := dump[endpointWayKey, uint32](d.objects.SifWays, "sif_ways")
	all := map[Way]uint32{}
	for _, e := range entries {
		all[Way{Class: e.key.Class, Group: e.key.Group, Bucket: uint8(e.key.Bucket)}] = e.value
	}
	return all, err
}

// SetClasses replaces the classes of contracts, by the contracts' numbers. All others have class 0.
// It raises the generation if a contract gets another class.
func (d *Datapath) SetClasses(classes map[uint32]uint16) error {
	wanted := map[uint32]uint32{}
	for contract, class := range classes {
		if contract == 0 || contract&(AuditContract|nodeExit) != 0 {
			return fmt.Errorf("class %d: contract %d is not a number below 2^30", class, contract)
		}
		wanted[contract] = uint32(class)
	}
	return d.change(func() (bool, error) {
		entries, err := dump[uint32, uint32](d.objects.SifClasses, "sif_classes")
		if err != nil {
			return false, err
		}
		before := map[uint32]uint32{}
		for _, e := range entries {
			before[e.key] = e.value
		}
		_, err = become(d.objects.SifClasses, "sif_classes", wanted)
		return err != nil || !maps.Equal(before, wanted), err
	})
}

// Classes returns the classes of contracts that SetClasses has set.
func (d *Datapath) Classes() (map[uint32]uint16, error) {
	entries, err := dump[uint32, uint32](d.objects.SifClasses, "sif_classes")
	all := map[uint32]uint16{}
	for _, e := range entries {
		all[e.key] = uint16(e.value)
	}
	return all, err
}

// SetLinks replaces the interfaces by which packets from peers with ways may arrive.
func (d *Datapath) SetLinks(interfaces []uint32) error {
	wanted := map[uint32]uint32{}
	for _, index := range interfaces {
		if index == 0 || index >= peerWays {
			return fmt.Errorf("link: %d is not the index of an interface", index)
		}
		wanted[index] = 1
	}
	return d.change(func() (bool, error) { return become(d.objects.SifLinks, "sif_links", wanted) })
}

// Links returns the interfaces by which packets from peers with ways may arrive, sorted.
func (d *Datapath) Links() ([]uint32, error) {
	return keys(d.objects.SifLinks, "sif_links")
}

// keys returns the keys of a map, sorted.
func keys(m *ebpf.Map, name string) ([]uint32, error) {
	entries, err := dump[uint32, uint32](m, name)
	var all []uint32
	for _, e := range entries {
		all = append(all, e.key)
	}
	slices.Sort(all)
	return all, err
}

// become makes the content of a map what is wanted, and reports whether an entry is gone or has
// another value. Entries that are there already get their new values also if the map has no room
// for others.
func become[K comparable](m *ebpf.Map, name string, wanted map[K]uint32) (taken bool, err error) {
	entries, err := dump[K, uint32](m, name)
	if err != nil {
		return false, err
	}
	var errs []error
	there := map[K]bool{}
	for _, e := range entries {
		there[e.key] = true
		value, stays := wanted[e.key]
		switch {
		case !stays:
			_, err = remove(m, name, e.key)
		case value != e.value:
			err = put(m, name, e.key, value)
		default:
			continue
		}
		taken = true
		errs = append(errs, err)
	}
	for key, value := range wanted {
		if there[key] {
			continue
		}
		if err := put(m, name, key, value); err != nil {
			errs = append(errs, err)
			break // the others have no room either
		}
	}
	return taken, errors.Join(errs...)
}
