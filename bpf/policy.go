// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/sif-project/sif/internal/portrange"
)

// Pair is an ordered pair of identities: who calls whom.
type Pair struct{ Source, Destination uint32 }

// Rule allows one identity to call another on a range of ports, because of a contract.
type Rule struct {
	Protocol uint8  // 1, 6, 17, 58 or 132
	From, To uint16 // ports, inclusive; for ICMP: types, 0 to 65535 for all
	Contract uint32 // not 0
	// ExitNode makes packets to an external leave by this node, not by the exit of the endpoint.
	ExitNode bool
}

// nodeExit is CONTRACT_NODE_EXIT in headers/maps.h: the bit in the number of a contract that is
// Rule.ExitNode.
const nodeExit = 1 << 30

// number returns the contract's number in the maps.
func (r Rule) number() uint32 {
	if r.ExitNode {
		return r.Contract | nodeExit
	}
	return r.Contract
}

// AuditContract is a bit in the number of a contract that allows flows only because of audit mode:
// each such flow creates an Event when it opens. If a contract without the bit allows the same
// flow, that contract applies.
const AuditContract = 1 << 31

// protocols are the IP protocols that rules may have.
var protocols = []uint8{1, 6, 17, 58, 132}

// Canonical returns the canonical form of rules: sorted, without overlaps, as few as possible.
// Where rules overlap, the contract with the smaller number applies, and of one contract the rule
// without ExitNode.
func Canonical(rules []Rule) []Rule {
	byContract := slices.Clone(rules)
	slices.SortFunc(byContract, func(a, b Rule) int {
		return cmp.Or(cmp.Compare(a.Contract, b.Contract), cmp.Compare(a.number(), b.number()), cmp.Compare(a.From, b.From))
	})
	var apart []Rule
	for _, r := range byContract {
		apart = append(apart, without(r, apart)...)
	}
	slices.SortFunc(apart, func(a, b Rule) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.From, b.From))
	})
	var joined []Rule
	for _, r := range apart {
		if n := len(joined) - 1; n >= 0 && joined[n].Protocol == r.Protocol && joined[n].number() == r.number() &&
			int(joined[n].To)+1 == int(r.From) {
			joined[n].To = r.To
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

// without returns the parts of r whose ports are not in taken.
func without(r Rule, taken []Rule) []Rule {
	left := []Rule{r}
	for _, t := range taken {
		if t.Protocol != r.Protocol {
			continue
		}
		var next []Rule
		for _, l := range left {
			if t.To < l.From || t.From > l.To {
				next = append(next, l)
				continue
			}
			if l.From < t.From {
				before := l
				before.To = t.From - 1
				next = append(next, before)
			}
			if l.To > t.To {
				l.From = t.To + 1
				next = append(next, l)
			}
		}
		left = next
	}
	return left
}

// ruleKeys returns the entries of sif_rules for rules, which need not be canonical.
func ruleKeys(p Pair, rules []Rule) (map[endpointRuleKey]uint32, error) {
	keys := map[endpointRuleKey]uint32{}
	for _, r := range rules {
		switch {
		case r.From > r.To:
			return nil, fmt.Errorf("rule of contract %d: port range %d-%d must not be reversed", r.Contract, r.From, r.To)
		case r.Contract == 0 || r.Contract&nodeExit != 0:
			return nil, fmt.Errorf("rule for ports %d-%d: contract %d is not a number below 2^30", r.From, r.To, r.Contract)
		case !slices.Contains(protocols, r.Protocol):
			return nil, fmt.Errorf("rule of contract %d: IP protocol %d is not supported", r.Contract, r.Protocol)
		}
	}
	for _, r := range Canonical(rules) {
		for _, b := range portrange.Split(r.From, r.To) {
			key := endpointRuleKey{Source: p.Source, Destination: p.Destination, Port: b.First, Length: b.Length, Protocol: r.Protocol}
			keys[key] = r.number()
		}
	}
	return keys, nil
}

// lengths returns the value in sif_pairs for each protocol.
func lengths(keys map[endpointRuleKey]uint32) map[uint8]uint32 {
	masks := map[uint8]uint32{}
	for k := range keys {
		masks[k.Protocol] |= 1 << k.Length
	}
	return masks
}

// ReplacePair replaces the rules by which Source may call Destination; without rules it may not.
// Flows that both the old and the new rules allow are not interrupted. After a FullError, of the
// old rules those are in force that are among the new ones; after another error some of the others
// too. Calling it again repairs that.
func (d *Datapath) ReplacePair(p Pair, rules []Rule) error {
	wanted, err := ruleKeys(p, rules)
	if err != nil {
		return fmt.Errorf("rules from identity %d to %d: %w", p.Source, p.Destination, err)
	}
	return d.change(func() (bool, error) { return d.replacePair(p, wanted) })
}

func (d *Datapath) replacePair(p Pair, wanted map[endpointRuleKey]uint32) (taken bool, err error) {
	present := d.pairs[p]
	if present == nil {
		present = map[endpointRuleKey]uint32{}
		d.pairs[p] = present
	}
	// What is no longer allowed goes first, because a full map may refuse the rest.
	var stale, added []endpointRuleKey
	for key := range present {
		if _, ok := wanted[key]; !ok {
			stale = append(stale, key)
		}
	}
	taken = len(stale) > 0
	if err := d.dropRules(present, stale); err != nil {
		return taken, err
	}
	masks := lengths(wanted)
	for _, protocol := range protocols {
		if masks[protocol] != 0 {
			continue
		}
		key := endpointPairKey{Source: p.Source, Destination: p.Destination, Protocol: protocol}
		gone, err := remove(d.objects.SifPairs, "sif_pairs", key)
		taken = taken || gone
		if err != nil {
			return taken, err
		}
	}
	for key, contract := range wanted {
		old, ok := present[key]
		taken = taken || ok && old != contract
		if err := put(d.objects.SifRules, "sif_rules", key, endpointRule{Contract: contract}); err != nil {
			// Do not leave part of a pair in a full map.
			return true, errors.Join(err, d.dropRules(present, added))
		}
		if !ok {
			added = append(added, key)
		}
		present[key] = contract
	}
	for protocol, mask := range masks {
		key := endpointPairKey{Source: p.Source, Destination: p.Destination, Protocol: protocol}
		if err := put(d.objects.SifPairs, "sif_pairs", key, mask); err != nil {
			return taken, err
		}
	}
	if len(present) == 0 {
		delete(d.pairs, p)
	}
	return taken, nil
}

func (d *Datapath) dropRules(present map[endpointRuleKey]uint32, keys []endpointRuleKey) error {
	for _, key := range keys {
		if _, err := remove(d.objects.SifRules, "sif_rules", key); err != nil {
			return err
		}
		delete(present, key)
	}
	return nil
}

// Pairs reads the rules of all pairs from the kernel, in canonical form. A pair for which sif_pairs
// and sif_rules disagree is returned without rules: ReplacePair repairs it.
func (d *Datapath) Pairs() (map[Pair][]Rule, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	pairs, err := d.readPairs()
	if err != nil {
		return nil, err
	}
	d.pairs = pairs
	masks, err := dump[endpointPairKey, uint32](d.objects.SifPairs, "sif_pairs")
	if err != nil {
		return nil, err
	}
	found := map[Pair]map[uint8]uint32{}
	for _, m := range masks {
		p := Pair{m.key.Source, m.key.Destination}
		if found[p] == nil {
			found[p] = map[uint8]uint32{}
		}
		found[p][m.key.Protocol] = m.value
	}
	all := map[Pair][]Rule{}
	for p := range found {
		all[p] = nil
	}
	for p, keys := range pairs {
		all[p] = nil
		if !equalMasks(found[p], lengths(keys)) {
			continue
		}
		var rules []Rule
		for k, contract := range keys {
			rules = append(rules, Rule{Protocol: k.Protocol, From: k.Port, To: portrange.Block{First: k.Port, Length: k.Length}.Last(),
				Contract: contract &^ nodeExit, ExitNode: contract&nodeExit != 0})
		}
		all[p] = Canonical(rules)
	}
	return all, nil
}

func equalMasks(a, b map[uint8]uint32) bool {
	for protocol, mask := range a {
		if b[protocol] != mask {
			return false
		}
	}
	return len(a) == len(b)
}

func (d *Datapath) readPairs() (map[Pair]map[endpointRuleKey]uint32, error) {
	entries, err := dump[endpointRuleKey, endpointRule](d.objects.SifRules, "sif_rules")
	if err != nil {
		return nil, err
	}
	pairs := map[Pair]map[endpointRuleKey]uint32{}
	for _, e := range entries {
		p := Pair{e.key.Source, e.key.Destination}
		if pairs[p] == nil {
			pairs[p] = map[endpointRuleKey]uint32{}
		}
		pairs[p][e.key] = e.value.Contract
	}
	return pairs, nil
}
