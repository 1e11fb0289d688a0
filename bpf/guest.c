// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build ignore

// The programs that join a virtual machine's tap interface and the endpoint's interface in the
// workload's namespace, each at the ingress hook of one of them. Policy is decided at the other end
// of the endpoint's interface. Here what the guest sends is checked for being its own, the guest's
// questions for Ethernet addresses are answered, and its questions to the node end: the agent has
// seen them before, by a packet socket. Each guest has its own copies of programs and maps.

#include "headers/kernel.h"

// What becomes of a frame. Pinned counters use the numbers: append, never renumber. guest.go has
// the same list with the names that users see.
enum guest_verdict {
	GUEST_NONE,
	GUEST_SENT,           // from the guest to the endpoint's interface
	GUEST_RECEIVED,       // to the guest
	GUEST_ANSWERED,       // the guest asked for an Ethernet address
	GUEST_CONTROL,        // a question to the node, or an announcement that nobody needs
	GUEST_FORGED_MAC,     // the Ethernet source is not the guest's
	GUEST_FORGED_ADDRESS, // the IP source is not the guest's
	GUEST_FORGED_ARP,     // it says that another's address is the guest's
	GUEST_FORGED_ND,      // likewise, in IPv6; or a redirect
	GUEST_FORGED_DHCP,    // an answer of a DHCP server
	GUEST_FORGED_RA,      // a router advertisement
	GUEST_LINK_LOCAL,     // from a link-local address, which no other endpoint can answer
	GUEST_NOT_IP,         // neither IP nor ARP, or with a VLAN tag
	GUEST_MALFORMED,      // headers are truncated or inconsistent
	GUEST_TOO_LONG,       // longer than the MTU
	GUEST_NOT_FOR_IT,     // at the endpoint's interface, to another Ethernet address
	GUEST_VERDICT_COUNT,
};

// The addresses of a guest and its way out. User space writes it.
struct guest {
	__u8 mac[6];
	__u8 gateway_mac[6]; // of the node's end, for every address that is not the guest's
	__be32 ip4;
	__be32 gateway4;
	__be32 ip6[4];
	__be32 gateway6[4];
	__u32 tap;     // index of the guest's interface
	__u32 peer;    // index of the endpoint's interface
	__u32 longest; // frame from the guest, in bytes
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct guest);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sif_guest SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, GUEST_VERDICT_COUNT);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sif_guest_frames SEC(".maps");

#define ETHERNET sizeof(struct ethhdr)

#define ARP_ETHERNET 1
#define ARP_LENGTHS 0x0604
#define ARP_REQUEST 1
#define ARP_REPLY 2

#define DHCP_SERVER 67
#define DHCP_CLIENT 68
#define DHCP6_CLIENT 546
#define DHCP6_SERVER 547

#define MLD_QUERY 130
#define MLD_REPORT 131
#define MLD_DONE 132
#define ROUTER_SOLICITATION 133
#define ROUTER_ADVERTISEMENT 134
#define NEIGHBOUR_SOLICITATION 135
#define NEIGHBOUR_ADVERTISEMENT 136
#define REDIRECT 137
#define MLD2_REPORT 143

#define OPTION_SOURCE_MAC 1
#define OPTION_TARGET_MAC 2

// Flags of a neighbour advertisement.
#define ND_ROUTER 0x80000000
#define ND_SOLICITED 0x40000000
#define ND_OVERRIDE 0x20000000

#define ND_HOP_LIMIT 255

struct arp {
	__be16 hardware;
	__be16 protocol;
	__be16 lengths;
	__be16 operation;
	__u8 sender_mac[6];
	__be32 sender;
	__u8 target_mac[6];
	__be32 target;
} __attribute__((packed));

struct neighbour {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be32 flags;
	__be32 target[4];
};

struct mac_option {
	__u8 type;
	__u8 length; // in units of 8 bytes
	__u8 mac[6];
};

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4] && a[5] == b[5];
}

static __always_inline bool same_ip6(const __be32 *a, const __be32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

static __always_inline bool is_unspecified(const __be32 *a)
{
	return !(a[0] | a[1] | a[2] | a[3]);
}

static __always_inline bool is_link_local(const __be32 *a)
{
	return (a[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

// own_link_local reports whether a link-local address can be the guest's.
static __always_inline bool own_link_local(const struct guest *g, const __be32 *a)
{
	return is_link_local(a) && !same_ip6(a, g->gateway6);
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline long write_ethernet(struct __sk_buff *skb, const __u8 *to, const __u8 *from, __u16 protocol)
{
	struct ethhdr eth = { .protocol = bpf_htons(protocol) };

	__builtin_memcpy(eth.destination, to, sizeof(eth.destination));
	__builtin_memcpy(eth.source, from, sizeof(eth.source));
	return bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0);
}

// handle_arp makes a request for the address of another the answer to it. So the guest does not
// lose its gateway while the agent is away.
static __noinline enum guest_verdict handle_arp(struct __sk_buff *skb, const struct guest *g)
{
	struct arp a;
	__be32 asked;

	if (bpf_skb_load_bytes(skb, ETHERNET, &a, sizeof(a)))
		return GUEST_MALFORMED;
	if (a.hardware != bpf_htons(ARP_ETHERNET) || a.protocol != bpf_htons(ETH_P_IP) ||
	    a.lengths != bpf_htons(ARP_LENGTHS))
		return GUEST_MALFORMED;
	if (a.operation != bpf_htons(ARP_REQUEST) && a.operation != bpf_htons(ARP_REPLY))
		return GUEST_MALFORMED;
	if (!same_mac(a.sender_mac, g->mac) || (a.sender && a.sender != g->ip4))
		return GUEST_FORGED_ARP;
	if (a.operation == bpf_htons(ARP_REPLY) || a.target == g->ip4)
		return GUEST_CONTROL;
	// A probe asks whether an address is free (RFC 5227). What the guest makes of it, its packets
	// from another address than its own are dropped.
	if (!a.sender && a.target != g->gateway4)
		return GUEST_CONTROL;
	asked = a.target;
	a.operation = bpf_htons(ARP_REPLY);
	a.target = a.sender;
	a.sender = asked;
	__builtin_memcpy(a.target_mac, g->mac, sizeof(a.target_mac));
	__builtin_memcpy(a.sender_mac, g->gateway_mac, sizeof(a.sender_mac));
	if (write_ethernet(skb, g->mac, g->gateway_mac, ETH_P_ARP) ||
	    bpf_skb_store_bytes(skb, ETHERNET, &a, sizeof(a), 0))
		return GUEST_MALFORMED;
	return GUEST_ANSWERED;
}

// advertise makes the packet a neighbour advertisement that gives the node's Ethernet address for
// a target. With for_all, it answers a question whether the address is free.
static __noinline enum guest_verdict advertise(struct __sk_buff *skb, const struct guest *g, const struct ipv6hdr *ip,
					       const struct neighbour *asked)
{
	bool for_all = is_unspecified(ip->source);
	__u8 to[6] = { 0x33, 0x33, 0, 0, 0, 1 };
	struct ipv6hdr answer = {
		.version_class = 0x60,
		.next_header = IPPROTO_ICMPV6,
		.hop_limit = ND_HOP_LIMIT,
	};
	struct {
		__be32 source[4];
		__be32 destination[4];
		__be32 length;
		__be32 protocol;
		struct neighbour n;
		struct mac_option option;
	} summed = {
		.protocol = bpf_htonl(IPPROTO_ICMPV6),
		.n.type = NEIGHBOUR_ADVERTISEMENT,
		.option.type = OPTION_TARGET_MAC,
		.option.length = 1,
	};
	const __u32 size = sizeof(summed.n) + sizeof(summed.option);

	answer.payload_length = bpf_htons(size);
	__builtin_memcpy(answer.source, asked->target, sizeof(answer.source));
	if (for_all) {
		answer.destination[0] = bpf_htonl(0xff020000);
		answer.destination[3] = bpf_htonl(1);
	} else {
		__builtin_memcpy(answer.destination, ip->source, sizeof(answer.destination));
		__builtin_memcpy(to, g->mac, sizeof(to));
	}
	summed.length = bpf_htonl(size);
	__builtin_memcpy(summed.source, answer.source, sizeof(summed.source));
	__builtin_memcpy(summed.destination, answer.destination, sizeof(summed.destination));
	__builtin_memcpy(summed.n.target, asked->target, sizeof(summed.n.target));
	__builtin_memcpy(summed.option.mac, g->gateway_mac, sizeof(summed.option.mac));
	summed.n.flags = bpf_htonl((same_ip6(asked->target, g->gateway6) ? ND_ROUTER : 0) |
				   (for_all ? 0 : ND_SOLICITED) | ND_OVERRIDE);
	summed.n.checksum = ~fold(bpf_csum_diff(NULL, 0, (__be32 *)&summed, sizeof(summed), 0));
	if (bpf_skb_change_tail(skb, ETHERNET + sizeof(answer) + size, 0))
		return GUEST_MALFORMED;
	if (write_ethernet(skb, to, g->gateway_mac, ETH_P_IPV6) ||
	    bpf_skb_store_bytes(skb, ETHERNET, &answer, sizeof(answer), 0) ||
	    bpf_skb_store_bytes(skb, ETHERNET + sizeof(answer), &summed.n, size, 0))
		return GUEST_MALFORMED;
	return GUEST_ANSWERED;
}

// handle_nd handles neighbour and router solicitations and neighbour advertisements, at an offset.
static __noinline enum guest_verdict handle_nd(struct __sk_buff *skb, const struct guest *g, const struct ipv6hdr *ip,
					       __u32 offset)
{
	struct neighbour n;
	struct mac_option option;
	bool asks;

	if (ip->hop_limit != ND_HOP_LIMIT)
		return GUEST_MALFORMED;
	if (!is_unspecified(ip->source) && !same_ip6(ip->source, g->ip6) && !own_link_local(g, ip->source))
		return GUEST_FORGED_ND;
	if (bpf_skb_load_bytes(skb, offset, &n, 8))
		return GUEST_MALFORMED;
	if (n.type == ROUTER_SOLICITATION) {
		if (!bpf_skb_load_bytes(skb, offset + 8, &option, sizeof(option)) && option.type == OPTION_SOURCE_MAC &&
		    !same_mac(option.mac, g->mac))
			return GUEST_FORGED_ND;
		return GUEST_CONTROL;
	}
	if (bpf_skb_load_bytes(skb, offset, &n, sizeof(n)))
		return GUEST_MALFORMED;
	asks = n.type == NEIGHBOUR_SOLICITATION;
	if (!bpf_skb_load_bytes(skb, offset + sizeof(n), &option, sizeof(option)) &&
	    option.type == (asks ? OPTION_SOURCE_MAC : OPTION_TARGET_MAC) && !same_mac(option.mac, g->mac))
		return GUEST_FORGED_ND;
	if (!asks) {
		if (same_ip6(n.target, g->ip6) || own_link_local(g, n.target))
			return GUEST_CONTROL;
		return GUEST_FORGED_ND;
	}
	if (same_ip6(n.target, g->ip6) || own_link_local(g, n.target))
		return GUEST_CONTROL;
	if (is_unspecified(ip->source) && !same_ip6(n.target, g->gateway6))
		return GUEST_CONTROL;
	if ((n.target[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000) || offset != ETHERNET + sizeof(*ip))
		return GUEST_MALFORMED;
	return advertise(skb, g, ip, &n);
}

// ports_at reads the ports of a UDP header. It returns false if they are not there.
static __always_inline bool ports_at(struct __sk_buff *skb, __u32 offset, __u16 *source, __u16 *destination)
{
	__be16 ports[2];

	if (bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)))
		return false;
	*source = bpf_ntohs(ports[0]);
	*destination = bpf_ntohs(ports[1]);
	return true;
}

static __always_inline enum guest_verdict handle_ipv4(struct __sk_buff *skb, const struct guest *g,
						      const struct iphdr *ip)
{
	__u16 source = 0, destination = 0;

	if (ip->version_ihl >> 4 != 4 || (ip->version_ihl & 0xf) < 5)
		return GUEST_MALFORMED;
	if (ip->protocol == IPPROTO_UDP && !(ip->fragment & bpf_htons(0x1fff)) &&
	    ports_at(skb, ETHERNET + (ip->version_ihl & 0xf) * 4, &source, &destination)) {
		if (source == DHCP_SERVER && destination == DHCP_CLIENT)
			return GUEST_FORGED_DHCP;
		if (destination == DHCP_SERVER && (!ip->source || ip->source == g->ip4) &&
		    (ip->destination == 0xffffffff || ip->destination == g->gateway4))
			return GUEST_CONTROL;
	}
	if (ip->protocol == IPPROTO_IGMP && (!ip->source || ip->source == g->ip4))
		return GUEST_CONTROL;
	return ip->source == g->ip4 ? GUEST_SENT : GUEST_FORGED_ADDRESS;
}

// handle_ipv6 looks at what is for the link. Behind other extension headers than that of multicast
// listeners, the policy at the endpoint's interface lets no such message pass.
static __always_inline enum guest_verdict handle_ipv6(struct __sk_buff *skb, const struct guest *g,
						      const struct ipv6hdr *header)
{
	struct ipv6hdr ip = *header;
	__u32 offset = ETHERNET + sizeof(ip);
	__u16 source = 0, destination = 0;
	__u8 next = ip.next_header;
	__u8 b[2];

	if (ip.version_class >> 4 != 6)
		return GUEST_MALFORMED;
	if (next == IPPROTO_HOPOPTS) {
		if (bpf_skb_load_bytes(skb, offset, b, sizeof(b)))
			return GUEST_MALFORMED;
		next = b[0];
		offset += 8 + 8 * b[1];
	}
	if (next == IPPROTO_ICMPV6) {
		if (bpf_skb_load_bytes(skb, offset, b, 1))
			return GUEST_MALFORMED;
		switch (b[0]) {
		case ROUTER_ADVERTISEMENT:
			return GUEST_FORGED_RA;
		case REDIRECT:
			return GUEST_FORGED_ND;
		case ROUTER_SOLICITATION:
		case NEIGHBOUR_SOLICITATION:
		case NEIGHBOUR_ADVERTISEMENT:
			return handle_nd(skb, g, &ip, offset);
		case MLD_QUERY:
		case MLD_REPORT:
		case MLD_DONE:
		case MLD2_REPORT:
			return GUEST_CONTROL;
		}
	} else if (next == IPPROTO_UDP && ports_at(skb, offset, &source, &destination)) {
		if (source == DHCP6_SERVER && destination == DHCP6_CLIENT)
			return GUEST_FORGED_DHCP;
		if (destination == DHCP6_SERVER && own_link_local(g, ip.source))
			return GUEST_CONTROL;
	}
	if (same_ip6(ip.source, g->ip6))
		return GUEST_SENT;
	return own_link_local(g, ip.source) || is_unspecified(ip.source) ? GUEST_LINK_LOCAL : GUEST_FORGED_ADDRESS;
}

static __always_inline enum guest_verdict from_guest(struct __sk_buff *skb, const struct guest *g)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	if (data + ETHERNET + sizeof(struct ipv6hdr) > end && end - data < skb->len) {
		// The headers are not in the linear part.
		bpf_skb_pull_data(skb, skb->len < 128 ? skb->len : 128);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		eth = data;
	}
	if ((void *)(eth + 1) > end)
		return GUEST_MALFORMED;
	if (!same_mac(eth->source, g->mac))
		return GUEST_FORGED_MAC;
	if (skb->vlan_present)
		return GUEST_NOT_IP;
	if (!skb->gso_size && skb->len > g->longest)
		return GUEST_TOO_LONG;
	if (eth->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		return (void *)(ip + 1) > end ? GUEST_MALFORMED : handle_ipv4(skb, g, ip);
	}
	if (eth->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		return (void *)(ip + 1) > end ? GUEST_MALFORMED : handle_ipv6(skb, g, ip);
	}
	return eth->protocol == bpf_htons(ETH_P_ARP) ? handle_arp(skb, g) : GUEST_NOT_IP;
}

static __always_inline void count(enum guest_verdict verdict)
{
	__u32 key = verdict;
	__u64 *n = bpf_map_lookup_elem(&sif_guest_frames, &key);

	if (n)
		(*n)++;
}

// sif_from_guest is at the ingress hook of the tap interface.
SEC("tcx/ingress")
int sif_from_guest(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct guest *g = bpf_map_lookup_elem(&sif_guest, &zero);
	enum guest_verdict verdict;

	if (!g || !g->tap || !g->peer)
		return TCX_DROP;
	verdict = from_guest(skb, g);
	count(verdict);
	if (verdict == GUEST_SENT)
		return bpf_redirect(g->peer, 0);
	return verdict == GUEST_ANSWERED ? bpf_redirect(g->tap, 0) : TCX_DROP;
}

// sif_to_guest is at the ingress hook of the endpoint's interface.
SEC("tcx/ingress")
int sif_to_guest(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	__u32 zero = 0;
	struct guest *g = bpf_map_lookup_elem(&sif_guest, &zero);

	if (!g || !g->tap || !g->peer)
		return TCX_DROP;
	if ((void *)(eth + 1) > end || skb->vlan_present ||
	    (eth->protocol != bpf_htons(ETH_P_IP) && eth->protocol != bpf_htons(ETH_P_IPV6)) ||
	    !same_mac(eth->destination, g->mac)) {
		count(GUEST_NOT_FOR_IT);
		return TCX_DROP;
	}
	count(GUEST_RECEIVED);
	return bpf_redirect(g->tap, 0);
}

char sif_license[] SEC("license") = "MPL-2.0";
