// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package desired

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/sif-project/sif/fabric"
)

// Party is who stands at one end of a rule: an identity, or a set of externals. It is a text, so it
// is compared with == and can be a map key. The text of an identity is fabric.Identity.Key; that of
// externals is "external" and their holders, in alphabetical order.
type Party string

// Holder is an external that has an address, as an originator or as a responder. A responder has it
// by itself, or by a name for the service that asked.
type Holder struct {
	External  fabric.Ref
	Responder bool
	Asker     fabric.Ref // zero: the external has the address whoever asks
}

// String returns "domain/external" for an originator, and ">domain/external" or
// ">domain/external@domain/service" for a responder.
func (h Holder) String() string {
	switch {
	case !h.Responder:
		return h.External.String()
	case h.Asker == (fabric.Ref{}):
		return responder + h.External.String()
	}
	return responder + h.External.String() + "@" + h.Asker.String()
}

const (
	externals = "external "
	responder = ">"
)

// Health is the party of nodes' health addresses in a switch. It has no rules: nodes exchange
// probes and nothing else.
const Health Party = "health addresses"

// PartyOf returns the party of endpoints with this identity.
func PartyOf(id fabric.Identity) Party { return Party(id.Key()) }

// PartyOfExternals returns the party of an address that all of these externals have.
func PartyOfExternals(holders []Holder) Party {
	texts := make([]string, 0, len(holders))
	for _, h := range holders {
		texts = append(texts, h.String())
	}
	slices.Sort(texts) // by text, not by domain: numbers on disk are kept under it
	return Party(externals + strings.Join(slices.Compact(texts), " "))
}

// External reports whether the party is a set of externals.
func (p Party) External() bool { return strings.HasPrefix(string(p), externals) }

// Name returns the service of an identity, or the first of the externals.
func (p Party) Name() (fabric.Ref, error) {
	name, _, _ := strings.Cut(strings.TrimPrefix(string(p), externals), " ")
	if p.External() {
		name, _, _ = strings.Cut(strings.TrimPrefix(name, responder), "@")
	}
	return fabric.ParseRef(name)
}

func (p Party) String() string { return string(p) }

// Key is what a node-local number stands for: a PartyKey, a ContractKey or an EntryKey. Its text
// form is kept on disk with the number.
type Key interface {
	fmt.Stringer
	isKey()
}

// PartyKey stands for a party in maps and registers.
type PartyKey struct{ Party Party }

// ContractKey stands for a contract in the maps of a workload node.
type ContractKey struct{ Contract fabric.Ref }

// EntryKey stands for an entry of a switch: what a contract opens between two classes over one
// protocol. The ports are part of it, because connections carry the entry's number and end with the
// entry: a contract whose ports have changed is another entry.
type EntryKey struct {
	Source, Destination uint32 // the numbers of the parties
	Contract            fabric.Ref
	Protocol            fabric.Protocol
	Ports               string // in order, in the form "80,9000-9010"
}

func (PartyKey) isKey()    {}
func (ContractKey) isKey() {}
func (EntryKey) isKey()    {}

const (
	kindIdentity = "identity"
	kindContract = "contract"
	kindEntry    = "entry"
)

func (k PartyKey) String() string {
	if k.Party.External() {
		return string(k.Party)
	}
	return kindIdentity + " " + string(k.Party)
}

func (k ContractKey) String() string { return kindContract + " " + k.Contract.String() }

func (k EntryKey) String() string {
	return fmt.Sprintf("%s %d %d %s %s/%s", kindEntry, k.Source, k.Destination, k.Contract, k.Protocol, k.Ports)
}

// ParseKey parses the text form of a key.
func ParseKey(text string) (Key, error) {
	kind, rest, _ := strings.Cut(text, " ")
	key, err := parseKey(kind, rest)
	if err != nil {
		return nil, fmt.Errorf("parse the key %q: %w", text, err)
	}
	return key, nil
}

func parseKey(kind, rest string) (Key, error) {
	switch kind {
	case kindIdentity:
		return partyKey(Party(rest))
	case strings.TrimSpace(externals):
		return partyKey(Party(externals + rest))
	case kindContract:
		contract, err := fabric.ParseRef(rest)
		return ContractKey{contract}, err
	case kindEntry:
		return entryKey(strings.Split(rest, " "))
	}
	return nil, fmt.Errorf("unknown kind %q", kind)
}

func entryKey(parts []string) (k EntryKey, err error) {
	if len(parts) != 4 {
		return k, fmt.Errorf("an entry has 4 parts, not %d", len(parts))
	}
	for i, class := range []*uint32{&k.Source, &k.Destination} {
		n, err := strconv.ParseUint(parts[i], 10, 32)
		if err != nil {
			return k, err
		}
		*class = uint32(n)
	}
	if k.Contract, err = fabric.ParseRef(parts[2]); err != nil {
		return k, err
	}
	protocol, ports, _ := strings.Cut(parts[3], "/")
	k.Ports = ports
	k.Protocol, err = fabric.ParseProtocol(protocol)
	return k, err
}

func partyKey(p Party) (Key, error) {
	if _, err := p.Name(); err != nil {
		return nil, err
	}
	return PartyKey{p}, nil
}
