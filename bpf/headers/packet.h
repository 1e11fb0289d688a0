// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Parses a packet into the key of its connection.
#ifndef SIF_PACKET_H
#define SIF_PACKET_H

#include "maps.h"
#include "fragment.h"

// The IPv6 extension headers that may precede the transport header, their bytes, and the options
// of one of them.
#define MAX_EXTENSION_HEADERS 4
#define MAX_EXTENSION_BYTES 256
#define MAX_OPTIONS 16

#define OPTION_PAD1 0
#define OPTION_JUMBO 0xc2
#define OPTION_HOME_ADDRESS 0xc9

#define IPV4_MORE 0x2000
#define IPV4_OFFSET_MASK 0x1fff

#define ICMP_HEADER 8
#define SCTP_HEADER 12
#define TCP_HEADER 20

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
	__u32 mark; // of the exit or the way, for packets from the workload
	__u16 port; // the port in rules: the destination port or the ICMP type
	__u8 kind;
	__u8 tcp_flags;
	bool opens;   // opens a flow, so it is not an answer
	bool answers; // is an answer, so it does not open a flow
	bool certain; // what it was refused for is known for sure, and the endpoint wants to be told
	bool cut;     // it belongs to a connection that was allowed until now
	bool crosses; // opens a TCP connection that the other end is opening
	struct part part;
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

// header_length returns the length of the shortest header of a protocol that has ports.
static __always_inline __u32 header_length(__u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return TCP_HEADER;
	return protocol == IPPROTO_SCTP ? SCTP_HEADER : 8;
}

// sensible reports whether a TCP segment may have these flags. Others are for scanning, and systems
// differ in what they make of them.
static __always_inline bool sensible(__u8 flags)
{
	switch (flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) {
	case TCP_SYN:
	case TCP_SYN | TCP_ACK:
	case TCP_ACK:
	case TCP_FIN | TCP_ACK:
	case TCP_RST:
	case TCP_RST | TCP_ACK:
		return true;
	}
	return false;
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

// to_group reports whether a packet goes to several receivers, by its address or, from the
// workload, by that of its frame.
static __always_inline bool to_group(const struct __sk_buff *skb, const struct packet *p, bool from_local)
{
	if (from_local && (skb->pkt_type == PACKET_BROADCAST || skb->pkt_type == PACKET_MULTICAST))
		return true;
	return group(from_local ? &p->key.remote : &p->key.local);
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
	return (type >= 130 && type <= 138) || (type >= 141 && type <= 155);
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

// headers is where the headers of a packet are read.
struct headers {
	__u32 offset;  // of the next header in the frame
	__u32 end;     // of the packet in the frame
	__u32 payload; // behind the IPv4 header or the fragment header; 0: none
	__u8 next;     // protocol of the next header
	struct part part;
};

// check_options refuses options of an IPv6 extension header that change what the packet is: a
// source address other than the one that was judged, or a length other than that of the header.
SUBPROGRAM int check_options(struct __sk_buff *skb, __u32 at, __u32 end)
{
	for (int i = 0; i < MAX_OPTIONS; i++) {
		__u8 option[2];

		if (at == end)
			return REASON_NONE;
		if (at > end || bpf_skb_load_bytes(skb, at, option, sizeof(option)))
			return REASON_MALFORMED;
		if (option[0] == OPTION_JUMBO || option[0] == OPTION_HOME_ADDRESS)
			return REASON_EXTENSION_HEADER;
		at += option[0] == OPTION_PAD1 ? 1 : 2 + option[1];
	}
	return at == end ? REASON_NONE : REASON_EXTENSION_HEADER;
}

// skip_extensions moves h to the transport header of an IPv6 packet, or behind the fragment header
// of a later fragment. It refuses a routing header, which would change the destination after the
// decision, a second fragment header, and headers that workloads do not need.
SUBPROGRAM int skip_extensions(struct __sk_buff *skb, struct headers *h)
{
	__u32 limit;

	if (!h)
		return REASON_MALFORMED;
	limit = h->offset + MAX_EXTENSION_BYTES;

	for (int i = 0; i <= MAX_EXTENSION_HEADERS; i++) {
		__u8 b[8];
		__u32 length = 8;
		int why;

		switch (h->next) {
		case IPPROTO_TCP:
		case IPPROTO_UDP:
		case IPPROTO_SCTP:
		case IPPROTO_ICMPV6:
			return REASON_NONE;
		case IPPROTO_HOPOPTS:
		case IPPROTO_DSTOPTS:
		case IPPROTO_FRAGMENT:
			break;
		case IPPROTO_ROUTING:
		case IPPROTO_ESP:
		case IPPROTO_AH:
		case IPPROTO_MOBILITY:
		case IPPROTO_HIP:
		case IPPROTO_SHIM6:
			return REASON_EXTENSION_HEADER;
		default:
			return REASON_PROTOCOL;
		}
		if (bpf_skb_load_bytes(skb, h->offset, b, sizeof(b)))
			return REASON_MALFORMED;
		if (h->next == IPPROTO_FRAGMENT) {
			if (h->payload)
				return REASON_EXTENSION_HEADER;
			h->part.begin = (b[2] << 8 | b[3]) & ~7;
			h->part.more = b[3] & 1;
			h->part.identification = (__u32)b[4] << 24 | b[5] << 16 | b[6] << 8 | b[7];
			h->part.protocol = b[0];
			h->payload = h->offset + length;
		} else {
			if (h->next == IPPROTO_HOPOPTS && i > 0)
				return REASON_EXTENSION_HEADER;
			length += 8 * b[1];
			if (h->offset + length > h->end)
				return REASON_MALFORMED;
			if (h->offset + length > limit)
				return REASON_EXTENSION_HEADER;
			why = check_options(skb, h->offset + 2, h->offset + length);
			if (why != REASON_NONE)
				return why;
		}
		h->offset += length;
		h->next = b[0];
		if (is_later(&h->part))
			return REASON_NONE;
	}
	return REASON_EXTENSION_HEADER;
}

// set_part sets what an IPv4 header says of the packet's place in a datagram.
static __always_inline void set_part(struct part *part, const struct iphdr *ip)
{
	__u16 fragment = bpf_ntohs(ip->fragment);

	part->begin = (fragment & IPV4_OFFSET_MASK) * 8;
	part->more = !!(fragment & IPV4_MORE);
	part->identification = bpf_ntohs(ip->id);
	part->protocol = ip->protocol;
}

// parse_quoted fills the key from the packet that an ICMP error at offset quotes. The receiver of
// the error is the sender of the quoted packet.
static __noinline int parse_quoted(struct __sk_buff *skb, struct packet *p, __u32 offset, bool from_local)
{
	struct conn_key *key = &p->key;
	bool v6 = key->protocol == IPPROTO_ICMPV6;
	bool quoted_from_local = !from_local;
	struct headers h = { .end = skb->len };
	struct transport t = {};

	p->sender = from_local ? key->local : key->remote;
	p->receiver = from_local ? key->remote : key->local;
	key->local_port = 0;
	key->remote_port = 0;
	if (v6) {
		struct ipv6hdr ip;
		int why;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version_class >> 4 != 6)
			return REASON_MALFORMED;
		set_addresses(key, quoted_from_local, NULL, &ip);
		h.next = ip.next_header;
		h.offset = offset + sizeof(ip);
		why = skip_extensions(skb, &h);
		if (why != REASON_NONE)
			return why;
	} else {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version_ihl != 0x45)
			return REASON_MALFORMED;
		set_addresses(key, quoted_from_local, &ip, NULL);
		set_part(&h.part, &ip);
		h.next = ip.protocol;
		h.offset = offset + sizeof(ip);
	}
	if (is_later(&h.part)) {
		// Routers may quote any fragment of what the workload sent; hosts quote the first.
		if (quoted_from_local && first_of(key, &h.part, DIRECTION_FROM_WORKLOAD))
			return REASON_NONE;
		return REASON_NO_FIRST_FRAGMENT;
	}
	if (bpf_skb_load_bytes(skb, h.offset, &t, ICMP_HEADER))
		return REASON_MALFORMED;
	key->protocol = h.next;
	if (has_ports(h.next))
		set_ports(key, quoted_from_local, bpf_ntohs(t.source), bpf_ntohs(t.destination));
	else if (h.next != (v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP) || !set_echo(key, quoted_from_local, &t))
		return REASON_PROTOCOL;
	return REASON_NONE;
}

// cut_short returns why a packet without its whole transport header is dropped. The receiver of a
// fragment would take the rest of the header from the next one.
static __always_inline enum reason cut_short(const struct packet *p)
{
	return is_first(&p->part) ? REASON_FRAGMENT : REASON_MALFORMED;
}

static __noinline int parse_icmp(struct __sk_buff *skb, struct packet *p, __u32 offset, __u32 end, bool from_local)
{
	struct transport t = {};
	__u8 type;

	if (offset + ICMP_HEADER > end)
		return cut_short(p);
	if (bpf_skb_load_bytes(skb, offset, &t, ICMP_HEADER))
		return REASON_MALFORMED;
	type = ICMP_TYPE(&t);
	p->port = type;
	if (is_error(p->key.protocol, type)) {
		bool too_big = p->key.protocol == IPPROTO_ICMP ? type == 3 && ICMP_CODE(&t) == 4 : type == 2;

		if (is_first(&p->part)) // an error is never longer than 1280 bytes
			return REASON_FRAGMENT;
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

// parse fills p, which must be zero. from_local means that the workload sent the packet. Of a later
// fragment, it sets the addresses and the part only.
SUBPROGRAM int parse(struct __sk_buff *skb, struct packet *p, bool from_local)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct transport *t;
	struct transport copy = {};
	__u32 length; // of the packet from the transport header on
	__u8 protocol;
	int why;

	if (!p)
		return REASON_MALFORMED;
	p->key.ifindex = skb->ifindex;
	p->ingress = skb->ingress_ifindex;
	if (data + sizeof(*eth) + sizeof(struct ipv6hdr) + TCP_HEADER > end && end - data < skb->len) {
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
		if (to_group(skb, p, from_local))
			return REASON_MULTICAST;
		// A source route would change the destination after the decision.
		if (ip->version_ihl != 0x45)
			return (ip->version_ihl & 0xf) < 5 ? REASON_MALFORMED : REASON_IP_OPTION;
		protocol = ip->protocol;
		p->key.protocol = protocol;
		length = bpf_ntohs(ip->total_length);
		if (length < sizeof(*ip) || sizeof(*eth) + length > skb->len)
			return REASON_MALFORMED;
		length -= sizeof(*ip);
		if (ip->fragment & bpf_htons(IPV4_MORE | IPV4_OFFSET_MASK)) {
			set_part(&p->part, ip);
			p->part.ingress = from_local ? 0 : p->ingress;
			why = measure(&p->part, length, 0xffff - sizeof(*ip));
			if (why != REASON_NONE || is_later(&p->part))
				return why;
		}
		if (protocol == IPPROTO_ICMP) {
			__u32 offset = sizeof(*eth) + sizeof(*ip);

			return parse_icmp(skb, p, offset, offset + length, from_local);
		}
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
		if (to_group(skb, p, from_local))
			return REASON_MULTICAST;
		protocol = ip->next_header;
		p->key.protocol = protocol;
		length = bpf_ntohs(ip->payload_length);
		if (sizeof(*eth) + sizeof(*ip) + length > skb->len)
			return REASON_MALFORMED;
		t = (void *)(ip + 1);
		if (!has_ports(protocol)) {
			struct headers h = { .offset = sizeof(*eth) + sizeof(*ip), .next = protocol };

			h.end = h.offset + length;
			why = skip_extensions(skb, &h);
			protocol = h.next;
			p->key.protocol = protocol;
			if (why != REASON_NONE)
				return why;
			if (h.offset > h.end)
				return REASON_MALFORMED;
			if (h.payload) {
				p->part = h.part;
				p->part.ingress = from_local ? 0 : p->ingress;
				why = measure(&p->part, h.end - h.payload, 0xffff);
				if (why != REASON_NONE || is_later(&p->part))
					return why;
			}
			if (protocol == IPPROTO_ICMPV6)
				return parse_icmp(skb, p, h.offset, h.end, from_local);
			length = h.end - h.offset;
			if (length < header_length(protocol))
				return cut_short(p);
			if (bpf_skb_load_bytes(skb, h.offset, &copy, protocol == IPPROTO_TCP ? sizeof(copy) : 8))
				return REASON_MALFORMED;
			goto ports;
		}
	} else {
		return REASON_NOT_IP;
	}
	if (length < header_length(protocol))
		return cut_short(p);
	if ((void *)t + 8 > end)
		return REASON_MALFORMED;
	copy.source = t->source;
	copy.destination = t->destination;
	if (protocol == IPPROTO_TCP) {
		if ((void *)(t + 1) > end)
			return REASON_MALFORMED;
		copy.data_offset = t->data_offset;
		copy.tcp_flags = t->tcp_flags;
	}
ports:
	set_ports(&p->key, from_local, bpf_ntohs(copy.source), bpf_ntohs(copy.destination));
	p->port = bpf_ntohs(copy.destination);
	if (protocol == IPPROTO_TCP) {
		__u32 header = (copy.data_offset >> 4) * 4;

		if (length < header)
			return cut_short(p);
		if (header < TCP_HEADER || !sensible(copy.tcp_flags))
			return REASON_MALFORMED;
		p->tcp_flags = copy.tcp_flags;
		p->opens = (copy.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
		p->answers = (copy.tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
	}
	return REASON_NONE;
}

#endif
