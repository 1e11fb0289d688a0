// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

//go:build ignore

// The programs of an endpoint, at both tc hooks of the host side of its veth pair: ingress for
// packets from the workload, egress for packets to it. A packet passes if it opens a flow that a
// contract, a check or the rule for the resolver allows, or belongs to such a flow. All other
// packets are dropped and counted. Flows, and what is refused, are recorded. A workload that wants
// to know is told of refusals that are certain.

#include "headers/maps.h"
#include "headers/packet.h"
#include "headers/policy.h"
#include "headers/reject.h"
#include "headers/verdict.h"

#define CONN_FIN (CONN_FIN_ORIGINAL | CONN_FIN_REPLY)

static __always_inline enum lifetime lifetime(const struct conn *c, __u8 protocol)
{
	if (protocol == IPPROTO_UDP)
		return LIFETIME_UDP;
	if (protocol == IPPROTO_SCTP)
		return LIFETIME_SCTP;
	if (protocol != IPPROTO_TCP)
		return LIFETIME_ICMP;
	if ((c->state & CONN_RESET) || (c->state & CONN_FIN) == CONN_FIN)
		return LIFETIME_TCP_CLOSED;
	if (c->state & CONN_FIN)
		return LIFETIME_TCP_CLOSING;
	return c->state & CONN_ANSWERED ? LIFETIME_TCP_ESTABLISHED : LIFETIME_TCP_OPENING;
}

// live compares signed numbers, because another CPU may have set seen after we read the clock.
static __always_inline bool live(const struct config *cfg, const struct conn *c, __u8 protocol, __u64 now)
{
	return (__s64)(now - c->seen) <= (__s64)cfg->lifetime[lifetime(c, protocol)];
}

// original reports whether a packet at this hook has the direction of the packet that opened c.
static __always_inline bool original(const struct conn *c, enum direction dir)
{
	return !!(c->flags & CONN_OUTBOUND) == (dir == DIRECTION_FROM_WORKLOAD);
}

// belongs reports whether a packet can be part of c: a packet that opens a flow is never an answer,
// and an answer never opens a flow.
static __always_inline bool belongs(const struct packet *p, const struct conn *c, enum direction dir)
{
	if (c->state & CONN_CROSSED)
		return original(c, dir) || !p->opens;
	return original(c, dir) ? !p->answers : !p->opens;
}

static __always_inline __u32 progress(const struct packet *p, __u32 state, bool is_original)
{
	if (!is_original)
		state |= CONN_ANSWERED;
	if (p->opens && p->key.protocol == IPPROTO_TCP)
		state &= CONN_CROSSED;
	if (p->tcp_flags & TCP_FIN)
		state |= is_original ? CONN_FIN_ORIGINAL : CONN_FIN_REPLY;
	if (p->tcp_flags & TCP_RST)
		state |= CONN_RESET;
	return state;
}

// touch writes only fields that change, because the CPUs share the entry.
static __always_inline void touch(struct conn *c, const struct packet *p, enum direction dir, __u64 now)
{
	__u32 state = progress(p, c->state, original(c, dir));

	if (state != c->state)
		c->state = state;
	if ((__s64)(now - c->seen) > (__s64)SECOND)
		c->seen = now;
}

// judge looks up the remote's identity and evaluates whether the policy allows a flow that was
// opened in this direction. ingress is the interface where the remote's packets arrive. judge sets
// the mark of the workload's packets: for a flow to an external that of its exit, with a peer that
// is reached by ways that of the way.
static __always_inline enum reason judge(struct packet *p, const struct config *cfg, const struct endpoint *ep,
					 bool outbound, __u32 ingress, __u16 port, struct remote *r)
{
	enum reason why;

	if (outbound) {
		if (is_dns(cfg, &p->key)) {
			r->host = true;
			return REASON_ALLOWED_DNS;
		}
		why = destination(cfg, &p->key, r);
	} else {
		why = source(&p->key.remote, ingress, r);
	}
	p->remote_identity = r->identity;
	if (why != REASON_NONE)
		return why;
	if (r->host && !outbound) {
		if (checked(p->key.ifindex, p->key.protocol, port))
			return REASON_ALLOWED_CHECK;
		if (!r->identity)
			return REASON_NO_CHECK;
	}
	if (r->port)
		port = r->port;
	p->contract = outbound ? contract_of(p->local_identity, r->identity, p->key.protocol, port)
			       : contract_of(r->identity, p->local_identity, p->key.protocol, port);
	if (!p->contract)
		return REASON_NO_CONTRACT;
	if (r->ways) {
		p->mark = way(p->contract, ep->number, r->ways);
		return p->mark ? REASON_ALLOWED_CONTRACT : REASON_NO_WAY;
	}
	if (!outbound || !r->outside)
		return REASON_ALLOWED_CONTRACT;
	p->mark = p->contract & CONTRACT_NODE_EXIT ? cfg->node_exit : ep->exit;
	return p->mark ? REASON_ALLOWED_CONTRACT : REASON_NO_EXIT;
}

// for_sure reports whether no allowed flow can be the reason for a packet from the workload that no
// connection knows and judge refused. The packet may be an answer to a flow that was forgotten, and
// that will be known again when its originator sends: one outside may be another than the external
// that has its address as a destination.
static __always_inline bool for_sure(const struct packet *p, const struct remote *r, enum reason why)
{
	bool tcp = p->key.protocol == IPPROTO_TCP;

	if (p->answers)
		return false;
	if (why == REASON_PEER_GONE)
		return true;
	if (why == REASON_OUTSIDE || (why == REASON_NO_CONTRACT && r->outside))
		return p->opens || !tcp;
	if (why != REASON_NO_CONTRACT)
		return false;
	return p->opens || p->kind == PACKET_SINGLE ||
	       !contract_of(p->remote_identity, p->local_identity, p->key.protocol, p->key.local_port);
}

// keep_exit makes a connection with an external keep the exit by which it began, also if new ones
// take another. If that exit is gone, so is the state of the connection there. It returns false if
// a TCP connection is lost, and what else there is goes on by the new exit. Within the fabric, what
// there is goes on by the new way.
static __always_inline bool keep_exit(struct packet *p, const struct conn *c, const struct remote *r, enum reason *why)
{
	bool left = c->flags & CONN_OUTSIDE;

	if (p->mark == c->mark || r->ways || (!left && !r->outside))
		return true;
	if (left && c->mark && !((p->contract ^ c->contract) & CONTRACT_NODE_EXIT) && exit_lives(c->mark)) {
		p->mark = c->mark;
		if (*why == REASON_NO_EXIT)
			*why = REASON_ALLOWED_CONTRACT;
		return true;
	}
	return p->opens || p->key.protocol != IPPROTO_TCP;
}

// arrived reports whether a packet that arrives at ingress is from r, the remote of an outbound
// connection.
static __always_inline enum reason arrived(const struct packet *p, const struct remote *r, __u32 ingress)
{
	__u32 *identity;

	if (r->ways)
		return is_link(ingress) ? REASON_NONE : REASON_WRONG_INTERFACE;
	if (r->host || r->ingress != INGRESS_UNSEEN)
		return ingress == r->ingress ? REASON_NONE : REASON_WRONG_INTERFACE;
	if (ingress == 0) // in sif_externals, 0 means a destination
		return REASON_WRONG_INTERFACE;
	identity = external(&p->key.remote, ingress);
	return identity && *identity == r->identity ? REASON_NONE : REASON_UNKNOWN_SOURCE;
}

// forget deletes a connection.
static __always_inline void forget(const struct conn_key *key)
{
	struct usage *u;

	if (bpf_map_delete_elem(&sif_conns, key))
		return; // another CPU was first
	u = bpf_map_lookup_elem(&sif_usage, &key->ifindex);
	if (u)
		__sync_fetch_and_add(&u->connections, -1);
}

// remember stores a new connection unless its endpoint has too many, or they come too fast, or the
// table is full. Without an entry the answers would be dropped, so the first packet is dropped.
static __always_inline enum reason remember(const struct conn_key *key, const struct conn *c, const struct config *cfg,
					    __u64 now)
{
	struct usage *u = usage_of(key->ifindex);
	__u64 next;

	if (!u)
		return REASON_TABLE_FULL;
	if (u->connections >= cfg->max_connections)
		return REASON_ENDPOINT_FULL;
	next = u->next_flow;
	if ((__s64)(next - now) < 0)
		next = now;
	if (next - now > cfg->flow_burst)
		return REASON_TOO_FAST;
	u->next_flow = next + cfg->flow_interval; // of two CPUs at once, one may be free
	if (!bpf_map_update_elem(&sif_conns, key, c, BPF_NOEXIST))
		__sync_fetch_and_add(&u->connections, 1);
	else if (bpf_map_update_elem(&sif_conns, key, c, BPF_EXIST))
		return REASON_TABLE_FULL;
	return REASON_NONE;
}

// recheck evaluates a known connection again, because its generation is not the newest or because
// its packets arrive at another interface than before. If the connection is not allowed any more,
// recheck deletes its entry; if only this packet is not allowed, the entry stays.
static __always_inline enum reason recheck(struct packet *p, const struct config *cfg, const struct endpoint *ep,
					   const struct conn *c, enum direction dir, __u64 generation, __u64 now)
{
	struct conn next = *c;
	bool outbound = next.flags & CONN_OUTBOUND;
	bool to = dir == DIRECTION_TO_WORKLOAD && p->kind != PACKET_TOO_BIG;
	__u32 ingress = to ? p->ingress : next.ingress;
	__u16 port = outbound ? p->key.remote_port : p->key.local_port;
	struct remote r = {};
	struct peer *peer;
	enum reason why;
	bool lost;

	if (p->key.protocol == IPPROTO_ICMP)
		port = 8;
	else if (p->key.protocol == IPPROTO_ICMPV6)
		port = 128;
	if (to && !outbound) {
		why = source(&p->key.remote, ingress, &r);
		if (why != REASON_NONE)
			return why;
		if (r.host != !!(next.flags & CONN_HOST))
			return REASON_WRONG_INTERFACE;
	} else if (!outbound && !(next.flags & CONN_HOST)) {
		// The remote may have moved to another interface; its next packet must arrive there. One
		// with ways may have lost the link by which it came last.
		peer = bpf_map_lookup_elem(&sif_peers, &p->key.remote);
		if (peer && !has_ways(peer))
			ingress = peer->ifindex;
		else if (peer && !is_link(ingress))
			ingress = INGRESS_UNSEEN;
	}
	why = judge(p, cfg, ep, outbound, ingress, port, &r);
	if (why == REASON_NO_WAY)
		return why; // it waits for one
	lost = (allowed(why) || why == REASON_NO_EXIT) && !keep_exit(p, c, &r, &why);
	if (lost || !allowed(why)) {
		p->cut = !to || ingress == next.ingress;
		p->certain = p->cut && (lost || why == REASON_NO_CONTRACT || why == REASON_NO_CHECK ||
					why == REASON_OUTSIDE || why == REASON_PEER_GONE);
		p->mark = next.mark;
		forget(&p->key);
		return REASON_STALE_CONNECTION;
	}
	if (outbound && to) {
		why = arrived(p, &r, ingress);
		if (why != REASON_NONE)
			return why;
		r.ingress = ingress;
	} else if (outbound && arrived(p, &r, next.ingress) == REASON_NONE) {
		r.ingress = next.ingress;
	}
	next.ingress = r.ingress;
	next.contract = p->contract;
	next.mark = p->mark;
	next.local_identity = p->local_identity;
	next.remote_identity = p->remote_identity;
	next.generation = generation;
	if (p->kind == PACKET_FLOW) {
		next.state = progress(p, next.state, original(&next, dir));
		next.seen = now;
	}
	// If the entry is gone, another CPU has found that the connection is not allowed.
	return bpf_map_update_elem(&sif_conns, &p->key, &next, BPF_EXIST) ? REASON_STALE_CONNECTION : REASON_NONE;
}

static __always_inline enum reason open_flow(struct packet *p, const struct config *cfg, const struct endpoint *ep,
					     enum direction dir, __u64 generation, __u64 now)
{
	bool outbound = dir == DIRECTION_FROM_WORKLOAD;
	struct remote r = {};
	struct conn c = {};
	enum reason why, room;

	why = judge(p, cfg, ep, outbound, p->ingress, p->port, &r);
	if (p->answers && (allowed(why) || why == REASON_NO_CONTRACT || why == REASON_NO_CHECK || why == REASON_NO_WAY))
		return REASON_NO_CONNECTION;
	if (!allowed(why)) {
		p->certain = outbound && for_sure(p, &r, why);
		return why;
	}
	if (p->kind == PACKET_SINGLE || (p->tcp_flags & TCP_RST))
		return why;
	c.generation = generation;
	c.seen = now;
	c.contract = p->contract;
	c.ingress = r.ingress;
	c.local_identity = p->local_identity;
	c.remote_identity = p->remote_identity;
	c.flags = (outbound ? CONN_OUTBOUND : 0) | (r.host ? CONN_HOST : 0) | (r.outside ? CONN_OUTSIDE : 0);
	c.mark = p->mark;
	c.state = progress(p, 0, true) | (p->crosses ? CONN_CROSSED : 0);
	room = remember(&p->key, &c, cfg, now);
	return room == REASON_NONE ? why : room;
}

// judge_error allows an ICMP error that quotes a packet of a live connection, if the error is from
// the other end, from this node, (too big) from any router, or, about a flow with an external, from
// a router outside the fabric whose packets arrive where those of the external do.
static __always_inline enum reason judge_error(struct packet *p, const struct config *cfg, const struct endpoint *ep,
					       const struct conn *c, enum direction dir, __u64 generation, __u64 now)
{
	bool from_local = dir == DIRECTION_FROM_WORKLOAD;
	bool node = !from_local && p->ingress == 0;
	enum reason why;

	if (!same_addr(from_local ? &p->receiver : &p->sender, &p->key.remote)) {
		if (from_local)
			return REASON_NO_CONNECTION;
		if (p->kind != PACKET_TOO_BIG && !node && (!c || !(c->flags & CONN_OUTSIDE) || in_fabric(&p->sender)))
			return REASON_UNKNOWN_SOURCE;
	}
	if (!c)
		return REASON_NO_CONNECTION;
	if (from_local)
		p->mark = c->mark;
	// The sender is known to be right: evaluate only the connection, at its own ingress.
	if (from_local || node)
		p->kind = PACKET_TOO_BIG;
	if (c->generation != generation || (p->kind == PACKET_ERROR && c->ingress != p->ingress)) {
		why = recheck(p, cfg, ep, c, dir, generation, now);
		p->certain = false; // nobody answers an error
		if (why != REASON_NONE)
			return why;
	}
	return REASON_ALLOWED_ERROR;
}

static __always_inline bool owns(const struct endpoint *ep, const struct addr *a)
{
	const struct addr *own = is_ipv4(a) ? &ep->ip4 : &ep->ip6;

	return (a->word[0] | a->word[1] | a->word[2] | a->word[3]) && same_addr(a, own);
}

// decide handles packets that do not belong to a known connection of the newest generation.
static __noinline int decide(const struct __sk_buff *skb, struct packet *p, const struct config *cfg,
			     enum direction dir, __u64 generation)
{
	bool from_local = dir == DIRECTION_FROM_WORKLOAD;
	struct endpoint *ep;
	bool error;
	__u64 now = bpf_ktime_get_coarse_ns();
	struct conn *c;
	enum reason why;

	error = p->kind == PACKET_ERROR || p->kind == PACKET_TOO_BIG;
	ep = bpf_map_lookup_elem(&sif_endpoints, &p->key.ifindex);
	if (!ep)
		return REASON_NO_ENDPOINT;
	p->local_identity = ep->identity;
	if (!owns(ep, &p->key.local))
		return from_local ? REASON_SPOOFED_SOURCE : REASON_UNKNOWN_DESTINATION;
	if (error && !same_addr(from_local ? &p->sender : &p->receiver, &p->key.local))
		return from_local ? REASON_SPOOFED_SOURCE : REASON_UNKNOWN_DESTINATION;

	c = bpf_map_lookup_elem(&sif_conns, &p->key);
	if (c && !live(cfg, c, p->key.protocol, now))
		c = NULL;
	if (error)
		return judge_error(p, cfg, ep, c, dir, generation, now);
	if (p->kind == PACKET_FLOW && c && belongs(p, c, dir)) {
		why = recheck(p, cfg, ep, c, dir, generation, now);
		if (why == REASON_NONE) {
			why = REASON_ALLOWED_CONNECTION;
			account(c->flow, original(c, dir), skb);
		}
	} else {
		p->crosses =
			c && p->opens && p->key.protocol == IPPROTO_TCP && (!c->state || (c->state & CONN_CROSSED));
		why = open_flow(p, cfg, ep, dir, generation, now);
	}
	p->certain = p->certain && (ep->flags & ENDPOINT_REJECT);
	return why;
}

static __always_inline int handle(struct __sk_buff *skb, enum direction dir)
{
	bool from_local = dir == DIRECTION_FROM_WORKLOAD;
	struct packet p = {};
	__u32 zero = 0;
	struct config *cfg = bpf_map_lookup_elem(&sif_config, &zero);
	struct conn *c;
	__u64 generation;
	enum reason why;
	int verdict;

	if (!cfg)
		return TCX_DROP;
	// The mark says how a packet leaves. A workload has no say in it.
	if (from_local)
		skb->mark = 0;
	// Read the generation before the policy: a change that this run does not see raises it above
	// the one that we store.
	generation = *(volatile __u64 *)&cfg->generation;
	why = parse(skb, &p, from_local);
	if (why != REASON_NONE)
		return carry_out(skb, &p, cfg, dir, why);
	if (is_later(&p.part))
		return carry_out(skb, &p, cfg, dir, follow(skb, &p.key, &p.part, dir, generation));

	if (p.kind == PACKET_FLOW) {
		c = bpf_map_lookup_elem(&sif_conns, &p.key);
		if (c && c->generation == generation && belongs(&p, c, dir) &&
		    (from_local || c->ingress == p.ingress)) {
			__u64 now = bpf_ktime_get_coarse_ns();

			if (live(cfg, c, p.key.protocol, now)) {
				touch(c, &p, dir, now);
				count(dir, REASON_ALLOWED_CONNECTION, false);
				account(c->flow, original(c, dir), skb);
				if (from_local && c->mark)
					skb->mark = c->mark;
				if (is_first(&p.part))
					lead(skb, &p.key, &p.part, dir, generation);
				return TCX_NEXT;
			}
		}
	}
	if (!from_local && is_ours(skb, &p))
		return TCX_NEXT;
	why = decide(skb, &p, cfg, dir, generation);
	if (allowed(why)) {
		if (from_local)
			skb->mark = p.mark;
		if (is_first(&p.part))
			lead(skb, &p.key, &p.part, dir, generation);
	}
	verdict = carry_out(skb, &p, cfg, dir, why);
	if (verdict == TCX_DROP && p.certain)
		verdict = refuse(skb, &p, cfg, dir);
	return verdict;
}

SEC("tcx/ingress")
int sif_from_workload(struct __sk_buff *skb)
{
	return handle(skb, DIRECTION_FROM_WORKLOAD);
}

SEC("tcx/egress")
int sif_to_workload(struct __sk_buff *skb)
{
	return handle(skb, DIRECTION_TO_WORKLOAD);
}

static long sweep_one(struct bpf_map *map, struct conn_key *key, struct conn *c, struct sweep *s)
{
	if (!live(s->cfg, c, key->protocol, s->now))
		forget(key);
	return 0;
}

// sif_sweep deletes the connections that have been idle for too long. User space runs it; it sees
// no packet. It is in the kernel because user space could delete a connection that has just begun
// under the key of one that was idle.
SEC("tc")
int sif_sweep(struct __sk_buff *skb)
{
	struct sweep s = { .now = bpf_ktime_get_coarse_ns() };
	__u32 zero = 0;

	s.cfg = bpf_map_lookup_elem(&sif_config, &zero);
	if (s.cfg)
		bpf_for_each_map_elem(&sif_conns, sweep_one, &s, 0);
	return 0;
}

// end_flow tells of a flow whose connection is over, or belongs to another flow. The last segments
// after both ends have closed are not counted. It stops when there is no room for the record.
static long end_flow(struct bpf_map *map, __u32 *id, struct flow *f, struct sweep *s)
{
	struct conn *c = bpf_map_lookup_elem(&sif_conns, &f->key);
	bool over;

	if (c && c->flow != *id)
		c = NULL;
	over = !c || !live(s->cfg, c, f->key.protocol, s->now) ||
	       (lifetime(c, f->key.protocol) == LIFETIME_TCP_CLOSED && (__s64)(s->now - c->seen) > (__s64)SECOND);
	if (!over)
		return goes_on(f, *id, c->seen, s->now) ? 0 : 1;
	if (!tell(f, *id, c ? c->seen : s->now, RECORD_ENDED))
		return 1;
	bpf_map_delete_elem(&sif_flows, id);
	return 0;
}

// sif_end_flows records what has become of flows that were recorded when they opened or were
// refused. User space runs it; it sees no packet.
SEC("tc")
int sif_end_flows(struct __sk_buff *skb)
{
	struct sweep s = { .now = bpf_ktime_get_coarse_ns() };
	__u32 zero = 0;

	s.cfg = bpf_map_lookup_elem(&sif_config, &zero);
	if (!s.cfg)
		return 0;
	bpf_for_each_map_elem(&sif_flows, end_flow, &s, 0);
	bpf_for_each_map_elem(&sif_refused, end_refused, &s, 0);
	return 0;
}

// sif_rouse sends its packet to the workload of its interface. User space runs it.
SEC("tc")
int sif_rouse(struct __sk_buff *skb)
{
	return bpf_clone_redirect(skb, skb->ifindex, 0) ? TCX_DROP : TCX_NEXT;
}

char sif_license[] SEC("license") = "MPL-2.0";
