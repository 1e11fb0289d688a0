// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Lets the later fragments of a datagram, which have no ports, follow the first one. It judges no
// packet: what it knows of a datagram is what was decided about its first fragment.
#ifndef SIF_FRAGMENT_H
#define SIF_FRAGMENT_H

#include "maps.h"

#define SECOND 1000000000ULL

// How long a fragment may come after the first one: the time for which Linux keeps the fragments of
// an incomplete IPv4 datagram (net.ipv4.ipfrag_time).
#define FRAGMENT_LIFE (30 * SECOND)

// part is what the headers of a packet say of its place in a datagram.
struct part {
	__u32 ingress; // interface where it arrived; 0: from the workload, or from this node
	__u32 identification;
	__u32 begin; // of the packet's payload in the datagram, in bytes
	__u32 end;
	__u8 protocol; // what follows the IPv4 header or the IPv6 fragment header
	bool more;     // there are parts behind it
};

static __always_inline bool is_first(const struct part *part)
{
	return part->more && !part->begin;
}

static __always_inline bool is_later(const struct part *part)
{
	return part->begin;
}

// measure sets where a part of size bytes ends. most is the longest payload of a datagram.
static __always_inline enum reason measure(struct part *part, __u32 size, __u32 most)
{
	part->end = part->begin + size;
	if (!part->more && !part->begin)
		return REASON_NONE;
	if (!size || part->end > most || (part->more && size % 8))
		return REASON_FRAGMENT;
	return REASON_NONE;
}

static __always_inline void set_fragment_key(struct fragment_key *k, const struct conn_key *key,
					     const struct part *part, enum direction dir)
{
	k->ifindex = key->ifindex;
	k->ingress = part->ingress;
	k->local = key->local;
	k->remote = key->remote;
	k->identification = part->identification;
	k->protocol = part->protocol;
	k->direction = dir;
}

// first_of returns what the first fragment of a part's datagram decided, and sets the protocol and
// the ports of key to those of the datagram. It returns NULL if no such fragment has passed lately.
static __always_inline struct fragment *first_of(struct conn_key *key, const struct part *part, enum direction dir)
{
	struct fragment_key k = {};
	struct fragment *first;

	set_fragment_key(&k, key, part, dir);
	first = bpf_map_lookup_elem(&sif_fragments, &k);
	if (!first || (__s64)(bpf_ktime_get_coarse_ns() - first->seen) > (__s64)FRAGMENT_LIFE)
		return NULL;
	key->protocol = first->protocol;
	key->local_port = first->local_port;
	key->remote_port = first->remote_port;
	return first;
}

// follow decides about a later fragment. One that overlaps the first is refused, because systems
// differ in which of two contents they take: it could replace the ports that were judged (RFC 1858,
// RFC 3128, RFC 5722).
static __noinline int follow(struct __sk_buff *skb, struct conn_key *key, const struct part *part, enum direction dir,
			     __u64 generation)
{
	struct fragment *first = first_of(key, part, dir);

	if (!first)
		return REASON_NO_FIRST_FRAGMENT;
	if (first->generation != generation)
		return REASON_STALE_FRAGMENT;
	if (part->begin < first->end)
		return REASON_FRAGMENT;
	if (dir == DIRECTION_FROM_WORKLOAD && first->mark)
		skb->mark = first->mark;
	return REASON_ALLOWED_CONNECTION;
}

// lead stores for the later fragments that the first one has passed in a generation. The mark of
// its exit or way is that of the packet. If there is no memory, the others are dropped.
static __noinline int lead(struct __sk_buff *skb, const struct conn_key *key, const struct part *part,
			   enum direction dir, __u64 generation)
{
	struct fragment_key k = {};
	struct fragment first = {};

	set_fragment_key(&k, key, part, dir);
	first.generation = generation;
	first.seen = bpf_ktime_get_coarse_ns();
	first.end = part->end;
	first.mark = skb->mark;
	first.local_port = key->local_port;
	first.remote_port = key->remote_port;
	first.protocol = key->protocol;
	return bpf_map_update_elem(&sif_fragments, &k, &first, BPF_ANY);
}

#endif
