// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
	"pgregory.net/rapid"

	"github.com/sif-project/sif/bpf"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/coalesce"
)

// memory is a Datapath in memory. As the real one, it forgets the checks of an endpoint with the
// endpoint.
type memory struct {
	image
	broken      bool
	refuse      netip.Addr   // it does not take a peer with this address
	closed      netip.Prefix // it does not take a new external of this prefix
	log         []string     // what was taken away (-) and given (+), in order
	connections []bpf.Connection

	changed func() // called after each change, unless it is nil
}

func newMemory() *memory { return &memory{image: newImage()} }

var errKernel = errors.New("kernel is broken")

func (k *memory) do(what string, f func()) error {
	if k.broken {
		return errKernel
	}
	k.log = append(k.log, what)
	f()
	if k.changed != nil {
		k.changed()
	}
	return nil
}

func (k *memory) Attach(string) ([]string, error) { return nil, nil }
func (k *memory) Detach(string) error             { return nil }
func (k *memory) Guarded(string) error            { return nil }
func (k *memory) Repair() ([]string, error)       { return nil, nil }
func (k *memory) AttachGuest(_, _, _ string, _ bpf.Guest) ([]string, error) {
	return nil, nil
}
func (k *memory) DetachGuest(string) error                         { return nil }
func (k *memory) Guests() ([]string, error)                        { return nil, nil }
func (k *memory) GuestFrames(string) (map[bpf.Frame]uint64, error) { return nil, nil }
func (k *memory) Attached() ([]string, error)                      { return nil, nil }
func (k *memory) PutEndpoint(e bpf.Endpoint) error {
	return k.do("+", func() { k.endpoints[e.Interface] = e })
}
func (k *memory) DeleteEndpoint(i uint32) error {
	return k.do("-", func() {
		delete(k.endpoints, i)
		maps.DeleteFunc(k.checks, func(c bpf.Check, _ bool) bool { return c.Interface == i })
	})
}
func (k *memory) Endpoints() ([]bpf.Endpoint, error) {
	return slices.Collect(maps.Values(k.endpoints)), nil
}
func (k *memory) PutPeer(p bpf.Peer) error {
	if p.Address == k.refuse {
		return errKernel
	}
	return k.do("+", func() { k.peers[p.Address] = p })
}
func (k *memory) DeletePeer(a netip.Addr) error {
	return k.do("-", func() { delete(k.peers, a) })
}
func (k *memory) Peers() ([]bpf.Peer, error) { return slices.Collect(maps.Values(k.peers)), nil }
func (k *memory) PutExternal(x bpf.External) error {
	if _, is := k.externals[externalKey{x.Interface, x.Prefix}]; !is && x.Prefix == k.closed {
		return errKernel
	}
	return k.do("+", func() { k.externals[externalKey{x.Interface, x.Prefix}] = x })
}
func (k *memory) DeleteExternal(x bpf.External) error {
	return k.do("-", func() { delete(k.externals, externalKey{x.Interface, x.Prefix}) })
}
func (k *memory) Externals() ([]bpf.External, error) {
	return slices.Collect(maps.Values(k.externals)), nil
}
func (k *memory) PutCheck(c bpf.Check) error { return k.do("+", func() { k.checks[c] = true }) }
func (k *memory) DeleteCheck(c bpf.Check) error {
	return k.do("-", func() { delete(k.checks, c) })
}
func (k *memory) Checks() ([]bpf.Check, error) { return slices.Collect(maps.Keys(k.checks)), nil }
func (k *memory) PutPublished(p bpf.Published) error {
	return k.do("+", func() { k.published[publishedKey{p.Protocol, p.From}] = p })
}
func (k *memory) DeletePublished(p bpf.Published) error {
	return k.do("-", func() { delete(k.published, publishedKey{p.Protocol, p.From}) })
}
func (k *memory) Published() ([]bpf.Published, error) {
	return slices.Collect(maps.Values(k.published)), nil
}
func (k *memory) SetExits(marks []uint32) error {
	return k.do("-", func() { k.exits = slices.Clone(marks) })
}
func (k *memory) Exits() ([]uint32, error) { return slices.Clone(k.exits), nil }
func (k *memory) SetWays(ways map[bpf.Way]uint32) error {
	return k.do("ways", func() { k.image.ways = relationsOf(ways) })
}
func (k *memory) Ways() (map[bpf.Way]uint32, error) { return k.image.ways.ways(), nil }
func (k *memory) SetClasses(classes map[uint32]uint16) error {
	return k.do("ways", func() { k.classes = maps.Clone(classes) })
}
func (k *memory) Classes() (map[uint32]uint16, error) { return maps.Clone(k.classes), nil }
func (k *memory) SetLinks(links []uint32) error {
	return k.do("ways", func() { k.links = slices.Clone(links) })
}
func (k *memory) Links() ([]uint32, error) { return slices.Clone(k.links), nil }
func (k *memory) ReplacePair(p bpf.Pair, rules []bpf.Rule) error {
	if len(rules) == 0 {
		return k.do("-", func() { delete(k.pairs, p) })
	}
	return k.do("+", func() { k.pairs[p] = rules })
}
func (k *memory) Pairs() (map[bpf.Pair][]bpf.Rule, error) { return maps.Clone(k.pairs), nil }

// draw makes an image out of few values, so that two of them overlap.
func draw(t *rapid.T, name string) image {
	im := newImage()
	small := func(what string) uint32 { return rapid.Uint32Range(1, 4).Draw(t, name+" "+what) }
	for range small("endpoints") {
		i := small("index")
		im.endpoints[i] = bpf.Endpoint{Interface: i, Identity: small("identity")}
		if rapid.Bool().Draw(t, name+" check") {
			im.checks[bpf.Check{Interface: i, Protocol: 6, Port: uint16(small("port"))}] = true
		}
	}
	for range small("peers") {
		addr := netip.AddrFrom4([4]byte{100, 64, 0, byte(small("address"))})
		im.peers[addr] = bpf.Peer{Address: addr, Identity: small("identity"), Interface: small("index")}
	}
	for range small("externals") {
		x := bpf.External{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(small("prefix"))}), 16), Interface: 9, Identity: small("identity")}
		im.externals[externalKey{9, x.Prefix}] = x
	}
	for range rapid.IntRange(0, 3).Draw(t, name+" ways") {
		im.ways[relation{uint16(small("class")), uint16(small("group"))}] = [desired.Buckets]uint32{0: small("mark"), 255: small("mark")}
	}
	for range rapid.IntRange(0, 2).Draw(t, name+" classes") {
		im.classes[small("contract")] = uint16(small("class"))
	}
	im.links = []uint32{small("link")}
	for range small("pairs") {
		im.pairs[bpf.Pair{Source: small("src"), Destination: small("dst")}] = []bpf.Rule{{Protocol: 6, From: uint16(small("from")), To: 9, Contract: 16}}
	}
	return im
}

// From any state of the maps, orphans included, writing leads to the wanted one, takes away before
// it gives, and finds nothing to do the second time.
func TestWrite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := &memory{image: draw(t, "have")}
		k.checks[bpf.Check{Interface: rapid.Uint32Range(1, 4).Draw(t, "orphan"), Protocol: 17, Port: 53}] = true
		want := draw(t, "want")
		have, err := readImage(k)
		must.NoError(t, err)
		have.checks = maps.Clone(have.checks)
		_, err = write(k, have, want)
		must.NoError(t, err)
		must.Eq(t, want.endpoints, k.endpoints)
		must.Eq(t, want.peers, k.peers)
		must.Eq(t, want.checks, k.checks)
		must.Eq(t, want.pairs, k.pairs)
		must.Eq(t, want.ways, k.image.ways)
		must.Eq(t, want.classes, k.classes)
		must.Eq(t, want.links, k.links)
		must.Eq(t, len(want.externals), len(k.externals))
		// Identities that nobody has yet get their rules, and externals these identities, before
		// anything is taken away.
		log := k.log
		log = slices.DeleteFunc(log, func(what string) bool { return what == "ways" })
		for len(log) > 0 && log[0] == "+" && early(have, want) {
			log = log[1:]
		}
		if first := slices.Index(log, "+"); first >= 0 {
			must.SliceNotContains(t, log[first:], "-")
		}
		k.log = nil
		have, err = readImage(k)
		must.NoError(t, err)
		changes, err := write(k, have, want)
		must.NoError(t, err)
		must.SliceEmpty(t, changes)
		must.SliceEmpty(t, k.log)
	})
}

// early reports whether an external gets an identity that nobody has yet.
func early(have, want image) bool {
	for key, x := range want.externals {
		if was, is := have.externals[key]; is && was != x && have.fresh(x.Identity) {
			return true
		}
	}
	return false
}

// An address whose party changes is never without rules: flows to it go on.
func TestPartyOfAnAddressChanges(t *testing.T) {
	k := newMemory()
	a := netip.MustParsePrefix("203.0.113.7/32")
	rules := []bpf.Rule{{Protocol: 6, From: 443, To: 443, Contract: 20}}
	with := func(party uint32) image {
		im := newImage()
		for _, index := range []uint32{0, 9} {
			im.externals[externalKey{index, a}] = bpf.External{Prefix: a, Identity: party, Interface: index}
		}
		im.pairs[bpf.Pair{Source: 16, Destination: party}] = rules
		return im
	}
	_, err := write(k, newImage(), with(17))
	must.NoError(t, err)
	k.log = nil
	k.changed = func() {
		at := k.externals[externalKey{0, a}].Identity
		must.Eq(t, rules, k.pairs[bpf.Pair{Source: 16, Destination: at}])
	}
	_, err = write(k, with(17), with(18))
	must.NoError(t, err)
	must.Eq(t, with(18).externals, k.externals)
	must.Eq(t, with(18).pairs, k.pairs)
}

// identityOf returns whose an address is that may be called.
func (im image) identityOf(a netip.Addr) (identity uint32) {
	longest := -1
	for key, x := range im.externals {
		if key.Interface == 0 && key.Prefix.Contains(a) && key.Prefix.Bits() > longest {
			identity, longest = x.Identity, key.Prefix.Bits()
		}
	}
	return identity
}

// An address that is to be nobody's is never somebody else's meanwhile, nor if the kernel does not
// take what keeps it from the prefixes around it.
func TestNobodysAddressesStaySo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := func(name string) netip.Prefix {
			bits := rapid.IntRange(24, 32).Draw(t, name+" bits")
			last := byte(rapid.IntRange(0, 3).Draw(t, name)) << 6
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, last}), bits).Masked()
		}
		draw := func(name string) image {
			im := newImage()
			for range rapid.IntRange(0, 5).Draw(t, name) {
				x := bpf.External{Prefix: prefix(name), Identity: rapid.Uint32Range(0, 3).Draw(t, name+" identity")}
				im.externals[externalKey{0, x.Prefix}] = x
			}
			return im
		}
		k, want := &memory{image: draw("have")}, draw("want")
		have, err := readImage(k)
		must.NoError(t, err)
		if rapid.Bool().Draw(t, "refuses") {
			k.closed = prefix("closed")
			if want.externals[externalKey{0, k.closed}].Identity != 0 {
				k.closed = netip.Prefix{}
			}
		}
		check := func() {
			for last := range 256 {
				a := netip.AddrFrom4([4]byte{203, 0, 113, byte(last)})
				if now := k.identityOf(a); want.identityOf(a) == 0 && now != 0 && now != have.identityOf(a) {
					t.Fatalf("%s is %d's, which it neither was nor is to be", a, now)
				}
			}
		}
		k.changed = check
		_, err = write(k, have, want)
		if err == nil {
			must.Eq(t, want.externals, k.externals)
		}
		for last := range 256 {
			a := netip.AddrFrom4([4]byte{203, 0, 113, byte(last)})
			if now := k.identityOf(a); want.identityOf(a) == 0 && now != 0 {
				t.Fatalf("%s is still %d's", a, now)
			}
		}
		k.closed, k.changed = netip.Prefix{}, nil
		have, err = readImage(k)
		must.NoError(t, err)
		_, err = write(k, have, want)
		must.NoError(t, err)
		must.Eq(t, want.externals, k.externals)
	})
}

// Writing goes on after an error and reports each.
func TestWriteReportsErrors(t *testing.T) {
	k := newMemory()
	k.broken = true
	want := newImage()
	want.endpoints[1] = bpf.Endpoint{Interface: 1, Identity: 16}
	want.pairs[bpf.Pair{Source: 16, Destination: 17}] = []bpf.Rule{{Protocol: 6, From: 1, To: 2, Contract: 18}}
	changes, err := write(k, newImage(), want)
	must.ErrorIs(t, err, errKernel)
	must.Len(t, 2, changes)
}

// An entry that the kernel does not take is the trouble of those whom it concerns: the others are
// programmed, and an ADD of another endpoint succeeds.
func TestOneRefusedEntry(t *testing.T) {
	a, _, _ := hookedAgent(t)
	k := newMemory()
	a.data = k
	addr := netip.MustParseAddr
	admission := func(v4, v6 string) fabric.Admission { return fabric.Admission{IPv4: addr(v4), IPv6: addr(v6)} }
	peer := func(address string, identity, index uint32) bpf.Peer {
		return bpf.Peer{Address: addr(address), Identity: identity, Interface: index}
	}
	rules := []bpf.Rule{{Protocol: 6, From: 1, To: 2, Contract: 20}}
	want := newImage()
	for _, p := range []bpf.Peer{
		peer("100.64.0.2", 16, 5), peer("fd5f::2", 16, 5), peer("100.64.0.3", 17, 6), peer("fd5f::3", 17, 6), peer("100.64.9.2", 18, 9), peer("fd5f:9::2", 18, 9),
	} {
		want.peers[p.Address] = p
	}
	want.endpoints[5] = bpf.Endpoint{Interface: 5, Identity: 16, IPv4: addr("100.64.0.2"), IPv6: addr("fd5f::2")}
	want.endpoints[6] = bpf.Endpoint{Interface: 6, Identity: 17, IPv4: addr("100.64.0.3"), IPv6: addr("fd5f::3")}
	want.pairs[bpf.Pair{Source: 16, Destination: 18}] = rules
	a.reprogram = coalesce.New(func() error {
		a.programming.Lock()
		defer a.programming.Unlock()
		return a.apply(want)
	})
	k.refuse = addr("fd5f::3")
	must.NoError(t, a.programFor(admission("100.64.0.2", "fd5f::2")))
	must.NoError(t, a.programFor(admission("100.64.9.2", "fd5f:9::2")))
	must.ErrorIs(t, a.programFor(admission("100.64.0.3", "fd5f::3")), errKernel)
	must.MapLen(t, 5, k.peers)
	must.MapLen(t, 2, k.endpoints)
	must.MapLen(t, 1, k.pairs)

	// Rules that are not as they must be concern both sides. The next call removes them.
	k.pairs[bpf.Pair{Source: 18, Destination: 16}] = rules
	must.ErrorIs(t, a.programFor(admission("100.64.0.2", "fd5f::2")), errKernel)
	must.NoError(t, a.programFor(admission("100.64.9.2", "fd5f:9::2")))

	k.refuse = netip.Addr{}
	must.NoError(t, a.programFor(admission("100.64.0.3", "fd5f::3")))
}

func (m *memory) Connections() ([]bpf.Connection, error) { return m.connections, nil }
