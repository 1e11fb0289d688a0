// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Tells a workload that its packet was refused: the packet becomes the answer, at the workload's
// own veth. A connection that policy cuts is reset at both ends. It judges no packet.
#ifndef SIF_REJECT_H
#define SIF_REJECT_H

#include "maps.h"
#include "packet.h"
#include "usage.h"

// Refusals that an endpoint is told of: one each 10 ms, 50 at once.
#define REFUSAL_INTERVAL 10000000ULL
#define REFUSAL_BURST 490000000ULL

#define ETHERNET sizeof(struct ethhdr)
#define DONT_FRAGMENT 0x4000
#define MAX_HOPS 64

// How much of the packet an ICMP error quotes, and how much of that is summed up at once.
#define QUOTE 256
#define CHUNK 64

struct tcphdr {
	__be16 source;
	__be16 destination;
	__be32 sequence;
	__be32 acknowledged;
	__u8 data_offset;
	__u8 flags;
	__be16 window;
	__u16 checksum;
	__be16 urgent;
};

struct icmphdr {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be32 unused;
};

// What the checksums of TCP and ICMPv6 cover besides the packet. IPv4 addresses are in the last
// word.
struct pseudo {
	__be32 source[4];
	__be32 destination[4];
	__be32 length;
	__be32 protocol;
};

// What an IPv4 or IPv6 header is made from.
struct outer {
	const struct addr *source;
	const struct addr *destination;
	__u32 size; // of the payload
	__u8 protocol;
};

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline __u64 sum_pseudo(const struct outer *o)
{
	struct pseudo p = { .length = bpf_htonl(o->size), .protocol = bpf_htonl(o->protocol) };

	if (is_ipv4(o->source)) {
		p.source[3] = o->source->word[3];
		p.destination[3] = o->destination->word[3];
	} else {
		__builtin_memcpy(p.source, o->source, sizeof(p.source));
		__builtin_memcpy(p.destination, o->destination, sizeof(p.destination));
	}
	return bpf_csum_diff(NULL, 0, (__be32 *)&p, sizeof(p), 0);
}

static __always_inline long store(struct __sk_buff *skb, __u32 offset, const void *from, __u32 size)
{
	return bpf_skb_store_bytes(skb, offset, from, size, BPF_F_RECOMPUTE_CSUM);
}

// write_ip writes the IP header of a packet of ours.
static __noinline long write_ip(struct __sk_buff *skb, const struct outer *o)
{
	if (is_ipv4(o->source)) {
		struct iphdr ip = {
			.version_ihl = 0x45,
			.total_length = bpf_htons(sizeof(ip) + o->size),
			.fragment = bpf_htons(DONT_FRAGMENT),
			.ttl = MAX_HOPS,
			.protocol = o->protocol,
			.source = o->source->word[3],
			.destination = o->destination->word[3],
		};

		ip.checksum = ~fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
		return store(skb, ETHERNET, &ip, sizeof(ip));
	} else {
		struct ipv6hdr ip = {
			.version_class = 0x60,
			.payload_length = bpf_htons(o->size),
			.next_header = o->protocol,
			.hop_limit = MAX_HOPS,
		};

		__builtin_memcpy(ip.source, o->source, sizeof(ip.source));
		__builtin_memcpy(ip.destination, o->destination, sizeof(ip.destination));
		return store(skb, ETHERNET, &ip, sizeof(ip));
	}
}

// write_tcp writes a TCP header without options or data.
static __noinline long write_tcp(struct __sk_buff *skb, const struct outer *o, struct tcphdr *t, bool partial)
{
	__u64 sum = sum_pseudo(o);
	__u32 at = ETHERNET + (is_ipv4(o->source) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));

	t->data_offset = sizeof(*t) / 4 << 4;
	t->window = 0;
	t->checksum = 0;
	t->urgent = 0;
	// Of a packet whose checksum is still to be completed, the field has the first part of the sum.
	t->checksum = partial ? fold(sum) : ~fold(bpf_csum_diff(NULL, 0, (__be32 *)t, sizeof(*t), sum));
	return store(skb, at, t, sizeof(*t));
}

// is_partial reports whether the checksum of the transport header is still to be completed, by the
// device or the receiver: only then does a change that is not one of the pseudo header leave it as
// it is. It may change the checksum.
static __always_inline bool is_partial(struct __sk_buff *skb, __u32 at)
{
	__u16 before = 0, after = 0;

	if (bpf_skb_load_bytes(skb, at, &before, sizeof(before)) ||
	    bpf_l4_csum_replace(skb, at, 0, 1, sizeof(before)) || bpf_skb_load_bytes(skb, at, &after, sizeof(after)))
		return false;
	return before == after;
}

static __always_inline long turn_frame(struct __sk_buff *skb)
{
	struct ethhdr eth;
	__u8 source[6];

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return -1;
	__builtin_memcpy(source, eth.source, sizeof(source));
	__builtin_memcpy(eth.source, eth.destination, sizeof(source));
	__builtin_memcpy(eth.destination, source, sizeof(source));
	return bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0);
}

// length_of returns the length of an IP packet as its header says it.
static __always_inline __u32 length_of(struct __sk_buff *skb, bool v4)
{
	__be16 length = 0;

	if (bpf_skb_load_bytes(skb, ETHERNET + (v4 ? 2 : 4), &length, sizeof(length)))
		return 0;
	if (!length) // a segment that is longer than the field can say
		return skb->len - ETHERNET;
	return bpf_ntohs(length) + (v4 ? 0 : sizeof(struct ipv6hdr));
}

// reset makes a TCP segment from the workload or to it a reset that goes on to the receiver. With
// answer, it also sends the workload a reset as the receiver would (RFC 9293, 3.10.7.1): as the
// verdict if goes_on is false.
SUBPROGRAM int reset(struct __sk_buff *skb, const struct packet *p, enum direction dir, bool goes_on)
{
	bool from_local = dir == DIRECTION_FROM_WORKLOAD;
	struct outer o = { .size = sizeof(struct tcphdr), .protocol = IPPROTO_TCP };
	struct tcphdr old, t;
	__u32 at, length;
	__u8 next = 0;
	bool partial, v4;

	if (!p)
		return TCX_DROP;
	v4 = is_ipv4(&p->key.local);
	at = ETHERNET + (v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	if (!v4 && (bpf_skb_load_bytes(skb, ETHERNET + 6, &next, sizeof(next)) || next != IPPROTO_TCP))
		return TCX_DROP; // extension headers, which the answer would have to lose
	if (bpf_skb_load_bytes(skb, at, &old, sizeof(old)))
		return TCX_DROP;
	partial = is_partial(skb, at + __builtin_offsetof(struct tcphdr, checksum));
	length = length_of(skb, v4) - (at - ETHERNET) - (old.data_offset >> 4) * 4;
	if (bpf_skb_change_tail(skb, at + sizeof(struct tcphdr), 0))
		return TCX_DROP;
	if (from_local && !(old.flags & TCP_RST)) {
		t = old;
		t.source = old.destination;
		t.destination = old.source;
		if (old.flags & TCP_ACK) {
			t.sequence = old.acknowledged;
			t.acknowledged = 0;
			t.flags = TCP_RST;
		} else {
			length += !!(old.flags & TCP_SYN) + !!(old.flags & TCP_FIN);
			t.sequence = 0;
			t.acknowledged = bpf_htonl(bpf_ntohl(old.sequence) + length);
			t.flags = TCP_RST | TCP_ACK;
		}
		o.source = &p->key.remote;
		o.destination = &p->key.local;
		if (turn_frame(skb) || write_ip(skb, &o) || write_tcp(skb, &o, &t, partial))
			return TCX_DROP;
		skb->mark = 0;
		if (!goes_on)
			return bpf_redirect_peer(skb->ifindex, 0);
		bpf_clone_redirect(skb, skb->ifindex, 0); // the other end is told all the same
		if (turn_frame(skb))
			return TCX_DROP;
		skb->mark = p->mark;
	}
	if (!goes_on)
		return TCX_DROP;
	t = old;
	t.flags = TCP_RST | (old.flags & TCP_ACK);
	o.source = from_local ? &p->key.local : &p->key.remote;
	o.destination = from_local ? &p->key.remote : &p->key.local;
	if (write_ip(skb, &o) || write_tcp(skb, &o, &t, partial))
		return TCX_DROP;
	return TCX_NEXT;
}

// prohibit answers a packet from the workload by an ICMP error that quotes it. The answer is from
// the node, which is the workload's gateway.
SUBPROGRAM int prohibit(struct __sk_buff *skb, const struct packet *p, const struct config *cfg)
{
	struct icmphdr icmp = {};
	struct outer o = {};
	__u32 header, size;
	__u64 sum;
	bool v4;

	if (!p || !cfg)
		return TCX_DROP;
	v4 = is_ipv4(&p->key.local);
	header = v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	size = length_of(skb, v4);
	if (size > QUOTE)
		size = QUOTE;
	o.protocol = v4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	o.size = sizeof(icmp) + size;
	o.source = v4 ? &cfg->node4 : &cfg->node6;
	if (!o.source->word[3])
		o.source = &p->key.remote;
	o.destination = &p->key.local;
	icmp.type = v4 ? 3 : 1; // destination unreachable: communication administratively prohibited
	icmp.code = v4 ? 13 : 1;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&icmp, sizeof(icmp), v4 ? 0 : sum_pseudo(&o));
	for (__u32 begin = 0; begin < QUOTE; begin += CHUNK) {
		__u8 chunk[CHUNK] = {};
		__u32 n = size - begin;

		if (begin >= size)
			break;
		if (n > CHUNK)
			n = CHUNK;
		// The verifier of Linux 6.1 does not see that n is not zero; the compiler removes a
		// test of it.
		asm volatile("" : "+r"(n));
		n = ((n - 1) & (CHUNK - 1)) + 1;
		if (bpf_skb_load_bytes(skb, ETHERNET + begin, chunk, n))
			return TCX_DROP;
		sum = bpf_csum_diff(NULL, 0, (__be32 *)chunk, sizeof(chunk), sum);
	}
	icmp.checksum = ~fold(sum);
	if (bpf_skb_change_tail(skb, ETHERNET + size, 0) ||
	    bpf_skb_adjust_room(skb, header + sizeof(icmp), BPF_ADJ_ROOM_MAC, 0) || turn_frame(skb) ||
	    write_ip(skb, &o) || store(skb, ETHERNET + header, &icmp, sizeof(icmp)))
		return TCX_DROP;
	skb->mark = 0;
	return bpf_redirect_peer(skb->ifindex, 0);
}

// is_ours reports whether a packet to the workload is a reset of ours, or a segment that makes a
// connection speak (RouseCut): it comes from the workload's own interface, where nothing arrives
// with another's address, and has neither options nor data.
static __always_inline bool is_ours(const struct __sk_buff *skb, const struct packet *p)
{
	__u32 header = is_ipv4(&p->key.local) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	return p->ingress == p->key.ifindex && p->key.protocol == IPPROTO_TCP && p->kind == PACKET_FLOW &&
	       ((p->tcp_flags & TCP_RST) || p->tcp_flags == TCP_ACK) &&
	       skb->len == ETHERNET + header + sizeof(struct tcphdr) && !same_addr(&p->key.local, &p->key.remote);
}

// count_refusal must not be inlined, so that enum refusal is in the BTF of the object.
static __noinline void count_refusal(enum refusal kind)
{
	__u32 slot = kind;
	__u64 *n = bpf_map_lookup_elem(&sif_refusals, &slot);

	if (n)
		(*n)++;
}

// may_tell reports whether an endpoint may be told of another refusal.
static __noinline bool may_tell(__u32 ifindex)
{
	struct usage *u = usage_of(ifindex);
	__u64 now = bpf_ktime_get_ns();
	__u64 next;

	if (!u)
		return false;
	next = u->next_refusal;
	if ((__s64)(next - now) < 0)
		next = now;
	if (next - now > REFUSAL_BURST)
		return false;
	u->next_refusal = next + REFUSAL_INTERVAL; // of two CPUs at once, one may be free
	return true;
}

// refuse tells the workload of a certain refusal, in answer to a packet from it. Of a TCP packet of
// a connection that policy has just cut, a reset goes on, in both directions. It returns the
// verdict.
static __always_inline int refuse(struct __sk_buff *skb, const struct packet *p, const struct config *cfg,
				  enum direction dir)
{
	bool from_local = dir == DIRECTION_FROM_WORKLOAD;
	bool tcp = p->key.protocol == IPPROTO_TCP;
	int verdict;

	if (is_later(&p->part) || !(tcp || from_local) || (tcp && !p->cut && (!from_local || (p->tcp_flags & TCP_RST))))
		return TCX_DROP;
	if (!may_tell(p->key.ifindex)) {
		count_refusal(REFUSAL_LIMITED);
		return TCX_DROP;
	}
	verdict = tcp ? reset(skb, p, dir, p->cut) : prohibit(skb, p, cfg);
	if (verdict != TCX_DROP)
		count_refusal(tcp ? REFUSAL_RESET : REFUSAL_PROHIBITED);
	return verdict;
}

#endif
