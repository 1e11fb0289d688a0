// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// The maps. User space writes endpoints, peers, ways, externals, policy, checks and config; the
// programs write connections, flows, counters and events. Ports are in host byte order, addresses
// in network byte order, IPv4 as ::ffff:a.b.c.d.
#ifndef SIF_MAPS_H
#define SIF_MAPS_H

#include "kernel.h"

struct addr {
	__be32 word[4];
};

enum direction {
	DIRECTION_FROM_WORKLOAD,
	DIRECTION_TO_WORKLOAD,
	DIRECTION_COUNT,
};

// Why a packet passed or was dropped. Pinned counters use the numbers: append, never renumber.
// reason.go has the same list with the names that users see.
enum reason {
	REASON_NONE,
	REASON_ALLOWED_CONTRACT,
	REASON_ALLOWED_CONNECTION,
	REASON_ALLOWED_CHECK,
	REASON_ALLOWED_DNS,
	REASON_ALLOWED_ERROR,
	REASON_NO_ENDPOINT,
	REASON_NOT_IP,
	REASON_MALFORMED,
	REASON_IP_OPTION,
	REASON_EXTENSION_HEADER,
	REASON_FRAGMENT,
	REASON_PROTOCOL,
	REASON_MULTICAST,
	REASON_SPOOFED_SOURCE,
	REASON_UNKNOWN_SOURCE,
	REASON_UNKNOWN_DESTINATION,
	REASON_WRONG_INTERFACE,
	REASON_NO_CONTRACT,
	REASON_NO_CHECK,
	REASON_NO_CONNECTION,
	REASON_STALE_CONNECTION,
	REASON_TABLE_FULL,
	REASON_ENDPOINT_FULL,
	REASON_TOO_FAST,
	REASON_OUTSIDE,
	REASON_PEER_GONE,
	REASON_NO_EXIT,
	REASON_NO_FIRST_FRAGMENT,
	REASON_STALE_FRAGMENT,
	REASON_NO_WAY,
	REASON_COUNT,
};

enum config_flag {
	CONFIG_PASS_ALL = 1, // packets that would be dropped pass, and are counted
};

// How long a connection may be idle, by its protocol and state. Datapath.limit has the same order.
enum lifetime {
	LIFETIME_TCP_OPENING,
	LIFETIME_TCP_ESTABLISHED,
	LIFETIME_TCP_CLOSING,
	LIFETIME_TCP_CLOSED,
	LIFETIME_UDP,
	LIFETIME_SCTP,
	LIFETIME_ICMP,
	LIFETIME_COUNT,
};

struct config {
	__u64 generation;
	struct addr dns4; // address of the node's resolver; zero: none
	struct addr dns6;
	struct addr node4; // addresses by which workloads reach sockets of this node; zero: none
	struct addr node6;
	enum config_flag flags;
	__u32 max_connections; // of an endpoint
	__u32 node_exit;       // mark of packets that leave by this node; 0: none may
	__u32 pad;
	__u64 flow_interval;            // ns between new flows of an endpoint, on average
	__u64 flow_burst;               // ns by which new flows may be ahead of that
	__u64 lifetime[LIFETIME_COUNT]; // ns
};

enum endpoint_flag {
	ENDPOINT_REJECT = 1, // the workload is told of certain refusals
};

struct endpoint {
	struct addr ip4; // zero: none
	struct addr ip6;
	__u32 identity;
	__u32 exit; // mark of packets that leave by the zone; 0: none may
	enum endpoint_flag flags;
	__u32 number; // of the pairs that it is part of, below 256
};

// The interface of an address that has no endpoint any more, by the word of its owner.
#define PEER_GONE 0xffffffff

// A bit in the interface of a peer that is reached by ways: it is not an interface, but the peer's
// number, and its group above that. Packets from it may arrive by any link of sif_links.
#define PEER_WAYS (1u << 31)

#define WAYS_GROUP(ways) (((ways) >> 8) & 0x7fff)

struct peer {
	__u32 identity;
	__u32 ifindex; // the only interface where packets from it may arrive; PEER_GONE; PEER_WAYS
};

// The packets of all pairs of endpoints that leave alike.
struct way_key {
	__u16 class;  // of the contract
	__u16 group;  // of the peer
	__u32 bucket; // the numbers of both endpoints, combined so that it is the same in both directions
};

// In sif_externals, the interface of the sockets of this node as sources.
#define FROM_NODE 0xfffffffe

// In sif_externals, a bit of the interface that IPv4 prefixes have changed, so that no IPv6 prefix,
// such as ::/0, is around an IPv4 address. No interface has such a number.
#define EXTERNAL_IPV4 (1u << 31)

struct external_key {
	__u32 prefix_length; // 32 for ifindex, plus that of the address
	__u32 ifindex;       // where packets from it arrive; 0: destination; FROM_NODE; EXTERNAL_IPV4
	struct addr address;
};

struct fabric_key {
	__u32 prefix_length;
	struct addr address;
};

struct pair_key {
	__u32 source;
	__u32 destination;
	__u8 protocol;
	__u8 pad[3];
};

// A prefix of the 16-bit port. A port range is a union of prefixes.
struct rule_key {
	__u32 source;
	__u32 destination;
	__u16 port; // bits after length are zero
	__u8 length;
	__u8 protocol;
};

// A bit in the number of a contract: without audit mode the flow would be dropped. It is reported
// when it opens.
#define CONTRACT_AUDIT (1u << 31)

// A bit in the number of a contract: packets to an external leave by this node and not by the zone.
#define CONTRACT_NODE_EXIT (1u << 30)

struct rule {
	__u32 contract;
};

struct check_key {
	__u32 ifindex;
	__u16 port;
	__u8 protocol;
	__u8 pad;
};

// A port of this node that is a port of one of its endpoints.
struct published_key {
	struct addr address;
	__u16 port;
	__u8 protocol;
	__u8 pad;
};

struct published {
	struct addr address;
	__u16 port;
	__u16 pad;
};

// A connection as seen by the endpoint. For ICMP echo, the requesting side's port is the identifier
// and the other port is zero.
struct conn_key {
	__u32 ifindex; // the endpoint's
	struct addr local;
	struct addr remote;
	__u16 local_port;
	__u16 remote_port;
	__u8 protocol;
	__u8 pad[3];
};

enum conn_flag {
	CONN_OUTBOUND = 1, // the workload opened it
	CONN_HOST = 2,     // the remote is a socket of this node
	CONN_OUTSIDE = 4,  // the remote is an external other than this node
};

enum conn_state {
	CONN_ANSWERED = 1,
	CONN_FIN_ORIGINAL = 2,
	CONN_FIN_REPLY = 4,
	CONN_RESET = 8,
	CONN_CROSSED = 16, // TCP: both ends opened it at once, so both answer
};

// The ingress of a connection until its first packet shows by which of several interfaces the
// remote's packets come.
#define INGRESS_UNSEEN 0xffffffff

// Only seen, state and, once, flow are written in place. The table may reuse an evicted entry for
// another connection at once, and a late write of these fields does not harm that connection.
struct conn {
	__u64 generation; // of the config when it was last evaluated and allowed
	__u64 seen;       // CLOCK_MONOTONIC_COARSE in ns, accurate to about a second
	__u32 contract;
	__u32 ingress; // where the remote's packets arrive; 0: from this node
	__u32 local_identity;
	__u32 remote_identity;
	enum conn_flag flags;
	enum conn_state state;
	__u32 mark; // of packets from the workload: the way by which they leave; 0: none
	__u32 flow; // in sif_flows; 0: it is not recorded
};

// What an endpoint has of the connection table, and how it was told of refusals.
struct usage {
	__u64 next_flow;    // when the next new flow would be on time, CLOCK_MONOTONIC_COARSE in ns
	__u64 next_refusal; // the same of the next refusal that it is told of, CLOCK_MONOTONIC in ns
	__u32 connections;
	__u32 pad;
};

// An IP datagram whose first fragment passed, as seen by the endpoint.
struct fragment_key {
	__u32 ifindex; // the endpoint's
	__u32 ingress; // where the fragments arrive; 0: from the workload, or from this node
	struct addr local;
	struct addr remote;
	__u32 identification;
	__u8 protocol; // what follows the IPv4 header or the IPv6 fragment header
	__u8 direction;
	__u8 pad[2];
};

// What the first fragment of a datagram decided for the others, which have no ports.
struct fragment {
	__u64 generation;
	__u64 seen; // CLOCK_MONOTONIC_COARSE in ns
	__u32 end;  // of the first fragment's part of the datagram, in bytes
	__u32 mark; // the exit's; 0: none
	__u16 local_port;
	__u16 remote_port;
	__u8 protocol; // of the transport
	__u8 pad[3];
};

// What refused packets became.
enum refusal {
	REFUSAL_RESET,      // a TCP reset
	REFUSAL_PROHIBITED, // an ICMP error
	REFUSAL_LIMITED,    // nothing, because the endpoint was told of too many
	REFUSAL_COUNT,
};

struct verdict_count {
	__u64 packets;
	__u64 overridden; // of these, passed because of CONFIG_PASS_ALL
};

struct drop_key {
	__u32 ifindex;
	__u16 direction;
	__u16 reason;
};

#define EVENT_OVERRIDDEN 1 // the packet passed because of CONFIG_PASS_ALL

struct event {
	__u64 time; // CLOCK_MONOTONIC in ns
	__u32 ifindex;
	__u32 source_identity; // 0: unknown
	__u32 destination_identity;
	__u32 contract;
	struct addr source;
	struct addr destination;
	__u16 source_port;
	__u16 destination_port; // for ICMP: the type
	__u8 protocol;
	__u8 reason;
	__u8 direction;
	__u8 flags;
};

struct flow_count {
	__u64 packets; // segments that the kernel handles together count one by one
	__u64 bytes;   // from the IP header on, which such segments have once
};

// What is recorded of a flow of a connection, or of a refused one. The CPUs that have the packets
// of its two directions write to different cache lines, and to none that both of them read.
struct flow {
	struct event first;         // as it was opened, or refused
	struct flow_count original; // of the packets with the direction of the first one
	struct conn_key key;
	__u32 pad;
	__u64 told; // when it was last recorded, CLOCK_MONOTONIC_COARSE in ns
	__u64 told_packets;
	__u64 seen; // of a refused one: its last packet
	struct flow_count reply;
};

// Packets that are refused alike are recorded together.
struct refused_key {
	struct conn_key flow;
	__u16 port; // for ICMP: the type
	__u8 direction;
	__u8 reason;
};

// When the next record of an endpoint would be on time, CLOCK_MONOTONIC_COARSE in ns.
struct meter {
	__u64 refused;
	__u64 opened;
};

// What was not recorded of an endpoint, because of its meter.
struct unrecorded {
	__u64 refused; // packets
	__u64 opened;  // flows
};

enum record_flag {
	RECORD_GOES_ON = 1, // the flow was recorded before, and goes on
	RECORD_ENDED = 2,   // it was recorded before, and is over
};

// A record in sif_events. Programs of an earlier version wrote only the event.
struct record {
	struct event event;
	__u64 opened; // CLOCK_MONOTONIC in ns
	struct flow_count original;
	struct flow_count reply;
	__u32 flow; // 0: it was refused, or its end will not be recorded
	enum record_flag flags;
};

// What the programs need that look at a whole table.
struct sweep {
	struct config *cfg;
	__u64 now; // CLOCK_MONOTONIC_COARSE in ns
};

#define PINNED __uint(pinning, LIBBPF_PIN_BY_NAME)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE); // user space raises the generation in place
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
	PINNED;
} sif_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct endpoint);
	PINNED;
} sif_endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct addr);
	__type(value, struct peer);
	PINNED;
} sif_peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct external_key);
	__type(value, __u32);
	PINNED;
} sif_externals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, struct fabric_key);
	__type(value, __u32);
	PINNED;
} sif_fabric SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct pair_key);
	__type(value, __u32); // bit n: there are rules with prefix length n
	PINNED;
} sif_pairs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 524288);
	__type(key, struct rule_key);
	__type(value, struct rule);
	PINNED;
} sif_rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct check_key);
	__type(value, __u32);
	PINNED;
} sif_checks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct published_key);
	__type(value, struct published);
	PINNED;
} sif_published SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__type(key, __u32); // mark of an exit that lives
	__type(value, __u32);
	PINNED;
} sif_exits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct way_key);
	__type(value, __u32); // mark of packets that leave by it
	PINNED;
} sif_ways SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);   // contract, without CONTRACT_AUDIT and CONTRACT_NODE_EXIT
	__type(value, __u32); // class, below 2^16; a contract that is not here has class 0
	PINNED;
} sif_classes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__type(key, __u32); // interface of a link by which packets from peers with ways may arrive
	__type(value, __u32);
	PINNED;
} sif_links SEC(".maps");

struct {
	// Not an LRU table, which would replace established connections by new ones.
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 524288); // connlimit.MaxConnections
	__type(key, struct conn_key);
	__type(value, struct conn);
	PINNED;
} sif_conns SEC(".maps");

struct {
	// A datagram that is pushed out loses its later fragments, as in a full reassembly buffer.
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
	PINNED;
} sif_fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u32); // ifindex of the endpoint
	__type(value, struct usage);
	PINNED;
} sif_usage SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DIRECTION_COUNT * 64); // direction * 64 + reason
	__type(key, __u32);
	__type(value, struct verdict_count);
	PINNED;
} sif_verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct drop_key);
	__type(value, struct verdict_count);
	PINNED;
} sif_drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REFUSAL_COUNT);
	__type(key, __u32); // enum refusal
	__type(value, __u64);
	PINNED;
} sif_refusals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	PINNED;
} sif_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64); // events dropped because the ring was full
	PINNED;
} sif_lost SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, __u32); // conn.flow
	__type(value, struct flow);
	PINNED;
} sif_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32); // the last one that was given to a flow
	PINNED;
} sif_flow_ids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct refused_key);
	__type(value, struct flow);
	PINNED;
} sif_refused SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u32); // ifindex of the endpoint
	__type(value, struct meter);
	PINNED;
} sif_meters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u32); // ifindex of the endpoint
	__type(value, struct unrecorded);
	PINNED;
} sif_unrecorded SEC(".maps");

struct {
	// A struct flow has no room on the stack.
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow);
	PINNED;
} sif_scratch SEC(".maps");

#endif
