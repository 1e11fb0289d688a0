// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Looks up the identity of an address, and the contract between two identities.
#ifndef SIF_POLICY_H
#define SIF_POLICY_H

#include "maps.h"

#define DNS_PORT 53

struct remote {
	__u32 identity;
	__u32 ingress; // interface where its packets arrive
	__u32 ways;    // of a peer that is reached by ways: the number and group of it; 0: it is not
	__u16 port;    // that a published port leads to; 0: it is none
	bool host;     // it is a socket of this node
	bool outside;  // it is an external other than this node
};

static __always_inline bool in_fabric(const struct addr *a)
{
	struct fabric_key key = { .prefix_length = 128, .address = *a };

	return bpf_map_lookup_elem(&sif_fabric, &key) != NULL;
}

static __always_inline __u32 *external(const struct addr *a, __u32 ifindex)
{
	struct external_key key = { .prefix_length = 160, .ifindex = ifindex, .address = *a };

	if (is_ipv4(a))
		key.ifindex ^= EXTERNAL_IPV4;
	return bpf_map_lookup_elem(&sif_externals, &key);
}

static __always_inline struct published *published(const struct addr *a, __u8 protocol, __u16 port)
{
	struct published_key key = { .address = *a, .port = port, .protocol = protocol };

	return bpf_map_lookup_elem(&sif_published, &key);
}

// exit_lives reports whether flows may go on by the exit of a mark.
static __always_inline bool exit_lives(__u32 mark)
{
	return bpf_map_lookup_elem(&sif_exits, &mark) != NULL;
}

static __always_inline bool is_node(const struct config *cfg, const struct addr *a)
{
	const struct addr *node = is_ipv4(a) ? &cfg->node4 : &cfg->node6;

	return a->word[3] && same_addr(a, node);
}

// is_link reports whether packets from peers that are reached by ways may arrive at an interface.
static __always_inline bool is_link(__u32 ifindex)
{
	return bpf_map_lookup_elem(&sif_links, &ifindex) != NULL;
}

// way returns the mark of packets between an endpoint with a number and a peer with ways, because
// of a contract, or 0 if there is no way.
SUBPROGRAM __u32 way(__u32 contract, __u32 number, __u32 ways)
{
	struct way_key key = { .group = WAYS_GROUP(ways), .bucket = (number ^ ways) & 0xff };
	__u32 *found;

	contract &= ~(CONTRACT_AUDIT | CONTRACT_NODE_EXIT);
	found = bpf_map_lookup_elem(&sif_classes, &contract);
	if (found)
		key.class = *found;
	found = bpf_map_lookup_elem(&sif_ways, &key);
	return found ? *found : 0;
}

static __always_inline bool has_ways(const struct peer *peer)
{
	return peer->ifindex != PEER_GONE && (peer->ifindex & PEER_WAYS);
}

// source looks up the remote by its address and the interface where its packet arrived:
// INGRESS_UNSEEN if that is to be seen.
static __always_inline enum reason source(const struct addr *a, __u32 ingress, struct remote *r)
{
	struct peer *peer = bpf_map_lookup_elem(&sif_peers, a);
	__u32 *identity;

	r->ingress = ingress;
	if (peer) {
		r->identity = peer->identity;
		if (peer->ifindex == PEER_GONE)
			return REASON_PEER_GONE;
		if (!has_ways(peer))
			return peer->ifindex == ingress ? REASON_NONE : REASON_WRONG_INTERFACE;
		r->ways = peer->ifindex;
		return ingress == INGRESS_UNSEEN || is_link(ingress) ? REASON_NONE : REASON_WRONG_INTERFACE;
	}
	r->host = ingress == 0;
	identity = in_fabric(a) ? NULL : external(a, r->host ? FROM_NODE : ingress);
	if (identity)
		r->identity = *identity;
	if (r->host)
		return REASON_NONE;
	r->outside = true;
	return r->identity ? REASON_NONE : REASON_UNKNOWN_SOURCE;
}

static __always_inline enum reason owner(const struct peer *peer, struct remote *r)
{
	r->identity = peer->identity;
	r->ingress = peer->ifindex;
	if (has_ways(peer)) {
		r->ways = peer->ifindex;
		r->ingress = INGRESS_UNSEEN;
	}
	return peer->ifindex == PEER_GONE ? REASON_PEER_GONE : REASON_NONE;
}

// destination looks up the remote by its address and port, and the interface where its answers must
// arrive.
static __always_inline enum reason destination(const struct config *cfg, const struct conn_key *key, struct remote *r)
{
	struct peer *peer = bpf_map_lookup_elem(&sif_peers, &key->remote);
	struct published *behind;
	__u32 *identity;

	if (peer)
		return owner(peer, r);
	if (in_fabric(&key->remote))
		return REASON_UNKNOWN_DESTINATION;
	behind = published(&key->remote, key->protocol, key->remote_port);
	if (behind) {
		r->port = behind->port;
		peer = bpf_map_lookup_elem(&sif_peers, &behind->address);
		return peer ? owner(peer, r) : REASON_UNKNOWN_DESTINATION;
	}
	identity = external(&key->remote, 0);
	if (!identity || !*identity)
		return REASON_OUTSIDE;
	r->identity = *identity;
	r->host = is_node(cfg, &key->remote);
	r->outside = !r->host;
	r->ingress = r->host ? 0 : INGRESS_UNSEEN;
	return REASON_NONE;
}

// contract_of returns the contract that allows source to call destination, or 0.
SUBPROGRAM __u32 contract_of(__u32 source, __u32 destination, __u8 protocol, __u16 port)
{
	struct pair_key pair = { .source = source, .destination = destination, .protocol = protocol };
	struct rule_key key = { .source = source, .destination = destination, .protocol = protocol };
	__u32 *lengths = bpf_map_lookup_elem(&sif_pairs, &pair);
	__u32 used;

	if (!lengths)
		return 0;
	used = *lengths;
	for (int length = 16; length >= 0; length--) {
		struct rule *rule;

		if (!(used & (1u << length)))
			continue;
		key.length = length;
		key.port = port & (0xffff << (16 - length));
		rule = bpf_map_lookup_elem(&sif_rules, &key);
		if (rule)
			return rule->contract;
	}
	return 0;
}

static __always_inline bool is_dns(const struct config *cfg, const struct conn_key *key)
{
	const struct addr *a = is_ipv4(&key->remote) ? &cfg->dns4 : &cfg->dns6;

	return key->remote_port == DNS_PORT && a->word[3] && same_addr(&key->remote, a) &&
	       (key->protocol == IPPROTO_UDP || key->protocol == IPPROTO_TCP);
}

static __always_inline bool checked(__u32 ifindex, __u8 protocol, __u16 port)
{
	struct check_key key = { .ifindex = ifindex, .protocol = protocol, .port = port };

	return bpf_map_lookup_elem(&sif_checks, &key) != NULL;
}

#endif
