// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Parses a packet into the key of its connection.
#ifndef SIF_PACKET_H
#define SIF_PACKET_H

#include "maps.h"

#define MAX_EXTENSION_HEADERS 4
#define IPV4_OFFSET_MASK 0x1fff
#define ICMP_HEADER 8

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum packet_kind {
	PACKET_FLOW,    // part of a connection, or may open one
	PACKET_SINGLE,  // ICMP other than echo and errors: evaluated alone, has no answer
	PACKET_ERROR,   // an ICMP error; the key is that of the quoted packet
	PACKET_TOO_BIG, // an ICMP error that any router may send
};

struct packet {
	struct conn_key key;
	__u32 ingress;      // interface where it arrived; 0: sent by a socket of this node
	struct addr sender; // for an ICMP error: outer source and destination
	struct addr receiver;
	__u32 local_identity; // set by the decision, for the event
	__u32 remote_identity;
	__u32 contract;
	__u16 port; // the port in rules: the destination port or the ICMP type
	__u8 kind;
	__u8 tcp_flags;
	bool opens;   // opens a flow, so it is not an answer
	bool answers; // is an answer, so it does not open a flow
};

// The first bytes of TCP, UDP, SCTP and ICMP.
struct transport {
	__be16 source;
	__be16 destination;
	__be16 word[2];
	__be16 acknowledged[2];
	__u8 data_offset;
	__u8 tcp_flags;
};

#define ICMP_TYPE(t) (bpf_ntohs((t)->source) >> 8)
#define ICMP_CODE(t) (bpf_ntohs((t)->source) & 0xff)
#define ICMP_IDENTIFIER(t) bpf_ntohs((t)->word[0])

// has_ports reports whether the header of a protocol begins with both ports.
static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

static __always_inline __u32 transport_length(__u8 protocol)
{
	return protocol == IPPROTO_TCP ? sizeof(struct transport) : ICMP_HEADER;
}

static __always_inline void map_ipv4(struct addr *a, __be32 ip)
{
	a->word[0] = 0;
	a->word[1] = 0;
	a->word[2] = bpf_htonl(0xffff);
	a->word[3] = ip;
}

static __always_inline void copy_ipv6(struct addr *a, const __be32 *ip)
{
	a->word[0] = ip[0];
	a->word[1] = ip[1];
	a->word[2] = ip[2];
	a->word[3] = ip[3];
}

static __always_inline bool same_addr(const struct addr *a, const struct addr *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

static __always_inline bool is_ipv4(const struct addr *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == bpf_htonl(0xffff);
}

// group reports whether an address is a multicast or the limited broadcast address.
static __always_inline bool group(const struct addr *a)
{
	if (is_ipv4(a))
		return (bpf_ntohl(a->word[3]) >> 28) >= 0xe;
	return (bpf_ntohl(a->word[0]) >> 24) == 0xff;
}

static __always_inline void set_ports(struct conn_key *key, bool from_local, __u16 source, __u16 destination)
{
	key->local_port = from_local ? source : destination;
	key->remote_port = from_local ? destination : source;
}

static __always_inline bool is_error(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMP)
		return type == 3 || type == 11 || type == 12;
	return type >= 1 && type <= 4;
}

// forbidden reports whether an ICMP message is for routers and neighbours. No workload needs those.
static __always_inline bool forbidden(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMP)
		return type == 5 || type == 9 || type == 10;
	return type >= 130 && type <= 137;
}

// set_echo sets the port of the requesting side to the identifier. It returns false if the packet
// is not an echo.
static __always_inline bool set_echo(struct conn_key *key, bool from_local, const struct transport *t)
{
	__u8 type = ICMP_TYPE(t);
	bool request = key->protocol == IPPROTO_ICMP ? type == 8 : type == 128;
	bool reply = key->protocol == IPPROTO_ICMP ? type == 0 : type == 129;

	if (!request && !reply)
		return false;
	if (from_local == request)
		key->local_port = ICMP_IDENTIFIER(t);
	else
		key->remote_port = ICMP_IDENTIFIER(t);
	return true;
}

static __always_inline void set_addresses(struct conn_key *key, bool from_local, const struct iphdr *ip4,
					  const struct ipv6hdr *ip6)
{
	struct addr *source = from_local ? &key->local : &key->remote;
	struct addr *destination = from_local ? &key->remote : &key->local;

	if (ip4) {
		map_ipv4(source, ip4->source);
		map_ipv4(destination, ip4->destination);
	} else {
		copy_ipv6(source, ip6->source);
		copy_ipv6(destination, ip6->destination);
	}
}

// skip_extensions moves offset to the transport header. It refuses a routing header, which would
// change the destination after the decision, and headers that workloads do not need.
static __always_inline enum reason skip_extensions(struct __sk_buff *skb, __u32 *offset, __u8 *next)
{
#pragma unroll
	for (int i = 0; i <= MAX_EXTENSION_HEADERS; i++) {
		__u8 h[4];

		switch (*next) {
		case IPPROTO_TCP:
		case IPPROTO_UDP:
		case IPPROTO_SCTP:
		case IPPROTO_ICMPV6:
			return REASON_NONE;
		case IPPROTO_HOPOPTS:
		case IPPROTO_DSTOPTS:
			if (bpf_skb_load_bytes(skb, *offset, h, sizeof(h)))
				return REASON_MALFORMED;
			*offset += 8 + 8 * h[1];
			break;
		case IPPROTO_FRAGMENT:
			if (bpf_skb_load_bytes(skb, *offset, h, sizeof(h)))
				return REASON_MALFORMED;
			if (((h[2] << 8) | h[3]) & 0xfff8)
				return REASON_FRAGMENT;
			*offset += 8;
			break;
		case 43:
		case 51:
		case 135:
		case 139:
		case 140:
			return REASON_EXTENSION_HEADER;
		default:
			return REASON_PROTOCOL;
		}
		*next = h[0];
	}
	return REASON_EXTENSION_HEADER;
}

// parse_quoted fills the key from the packet that an ICMP error at offset quotes. The receiver of
// the error is the sender of the quoted packet.
static __noinline int parse_quoted(struct __sk_buff *skb, struct packet *p, __u32 offset, bool from_local)
{
	struct conn_key *key = &p->key;
	bool v6 = key->protocol == IPPROTO_ICMPV6;
	bool quoted_from_local = !from_local;
	struct transport t = {};
	__u8 protocol;

	p->sender = from_local ? key->local : key->remote;
	p->receiver = from_local ? key->remote : key->local;
	key->local_port = 0;
	key->remote_port = 0;
	if (v6) {
		struct ipv6hdr ip;
		enum reason why;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version_class >> 4 != 6)
			return REASON_MALFORMED;
		protocol = ip.next_header;
		offset += sizeof(ip);
		why = skip_extensions(skb, &offset, &protocol);
		if (why != REASON_NONE)
			return why;
		set_addresses(key, quoted_from_local, NULL, &ip);
	} else {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version_ihl != 0x45)
			return REASON_MALFORMED;
		if (bpf_ntohs(ip.fragment) & IPV4_OFFSET_MASK)
			return REASON_FRAGMENT;
		protocol = ip.protocol;
		offset += sizeof(ip);
		set_addresses(key, quoted_from_local, &ip, NULL);
	}
	if (bpf_skb_load_bytes(skb, offset, &t, ICMP_HEADER))
		return REASON_MALFORMED;
	key->protocol = protocol;
	if (has_ports(protocol))
		set_ports(key, quoted_from_local, bpf_ntohs(t.source), bpf_ntohs(t.destination));
	else if (protocol != (v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP) || !set_echo(key, quoted_from_local, &t))
		return REASON_PROTOCOL;
	return REASON_NONE;
}

static __noinline int parse_icmp(struct __sk_buff *skb, struct packet *p, __u32 offset, bool from_local)
{
	struct transport t = {};
	__u8 type;

	if (bpf_skb_load_bytes(skb, offset, &t, ICMP_HEADER))
		return REASON_MALFORMED;
	type = ICMP_TYPE(&t);
	p->port = type;
	if (is_error(p->key.protocol, type)) {
		bool too_big = p->key.protocol == IPPROTO_ICMP ? type == 3 && ICMP_CODE(&t) == 4 : type == 2;

		p->kind = too_big ? PACKET_TOO_BIG : PACKET_ERROR;
		return parse_quoted(skb, p, offset + ICMP_HEADER, from_local);
	}
	if (forbidden(p->key.protocol, type))
		return REASON_PROTOCOL;
	if (set_echo(&p->key, from_local, &t)) {
		p->opens = type == 8 || type == 128;
		p->answers = !p->opens;
	} else {
		p->kind = PACKET_SINGLE;
	}
	return REASON_NONE;
}

// parse fills p, which must be zero. from_local means that the workload sent the packet.
static __always_inline int parse(struct __sk_buff *skb, struct packet *p, bool from_local)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct transport *t;
	struct transport copy = {};
	__u8 protocol;

	p->key.ifindex = skb->ifindex;
	p->ingress = skb->ingress_ifindex;
	if (data + sizeof(*eth) + sizeof(struct ipv6hdr) + sizeof(struct transport) > end && end - data < skb->len) {
		// The headers are not in the linear part.
		bpf_skb_pull_data(skb, skb->len < 128 ? skb->len : 128);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		eth = data;
	}
	if ((void *)(eth + 1) > end)
		return REASON_NOT_IP;
	if (skb->vlan_present)
		return REASON_NOT_IP;
	if (eth->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->version_ihl >> 4 != 4)
			return REASON_MALFORMED;
		set_addresses(&p->key, from_local, ip, NULL);
		// A source route would change the destination after the decision.
		if (ip->version_ihl != 0x45)
			return (ip->version_ihl & 0xf) < 5 ? REASON_MALFORMED : REASON_IP_OPTION;
		protocol = ip->protocol;
		p->key.protocol = protocol;
		if (bpf_ntohs(ip->fragment) & IPV4_OFFSET_MASK)
			return REASON_FRAGMENT;
		if (protocol == IPPROTO_ICMP)
			return parse_icmp(skb, p, sizeof(*eth) + sizeof(*ip), from_local);
		if (!has_ports(protocol))
			return REASON_PROTOCOL;
		t = (void *)(ip + 1);
	} else if (eth->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->version_class >> 4 != 6)
			return REASON_MALFORMED;
		set_addresses(&p->key, from_local, NULL, ip);
		// Maps have IPv4 addresses in this form; an IPv6 packet must not imitate it.
		if (is_ipv4(&p->key.local) || is_ipv4(&p->key.remote))
			return REASON_MALFORMED;
		protocol = ip->next_header;
		p->key.protocol = protocol;
		t = (void *)(ip + 1);
		if (!has_ports(protocol)) {
			__u32 offset = sizeof(*eth) + sizeof(*ip);
			enum reason why = skip_extensions(skb, &offset, &protocol);

			p->key.protocol = protocol;
			if (why != REASON_NONE)
				return why;
			if (protocol == IPPROTO_ICMPV6)
				return parse_icmp(skb, p, offset, from_local);
			if (bpf_skb_load_bytes(skb, offset, &copy, transport_length(protocol)))
				return REASON_MALFORMED;
			goto ports;
		}
	} else {
		return REASON_NOT_IP;
	}
	if ((void *)t + ICMP_HEADER > end)
		return REASON_MALFORMED;
	copy.source = t->source;
	copy.destination = t->destination;
	if (protocol == IPPROTO_TCP) {
		if ((void *)(t + 1) > end)
			return REASON_MALFORMED;
		copy.tcp_flags = t->tcp_flags;
	}
ports:
	set_ports(&p->key, from_local, bpf_ntohs(copy.source), bpf_ntohs(copy.destination));
	p->port = bpf_ntohs(copy.destination);
	if (protocol == IPPROTO_TCP) {
		p->tcp_flags = copy.tcp_flags;
		p->opens = (copy.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
		p->answers = (copy.tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
	}
	return REASON_NONE;
}

#endif
