// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Records flows: one record when a flow opens or is refused, one when it ends, and updates of long
// ones. What is not recorded is counted: more than an endpoint's meter lets through, and what finds
// no room. So a flood costs the reader of the records little.
#ifndef SIF_FLOW_H
#define SIF_FLOW_H

#include "maps.h"
#include "packet.h"

// The reader polls. The programs wake it only when this much data is waiting.
#define EVENTS_WAKE_BYTES (128 * 1024)

// How many records of refused and of opened flows an endpoint may cause in a second. It may be
// ahead of that by as many as two seconds have.
#define REFUSED_INTERVAL (SECOND / 100)
#define OPENED_INTERVAL (SECOND / 1000)
#define RECORD_BURST (2 * SECOND)

// The time between two records of a flow that goes on, and how long a refused one must be quiet to
// be over.
#define FLOW_UPDATE (60 * SECOND)
#define REFUSED_IDLE (30 * SECOND)

#define ETHERNET_HEADER 14

// describe must not be inlined, so that struct event is in the object's BTF.
static __noinline void describe(struct event *e, const struct packet *p, enum direction dir)
{
	bool from_local = dir == DIRECTION_FROM_WORKLOAD;
	bool error = p->kind == PACKET_ERROR || p->kind == PACKET_TOO_BIG;
	const struct conn_key *key = &p->key;

	e->time = bpf_ktime_get_ns();
	e->ifindex = key->ifindex;
	e->source_identity = from_local ? p->local_identity : p->remote_identity;
	e->destination_identity = from_local ? p->remote_identity : p->local_identity;
	e->contract = p->contract;
	e->source = error ? p->sender : from_local ? key->local : key->remote;
	e->destination = error ? p->receiver : from_local ? key->remote : key->local;
	e->source_port = from_local ? key->local_port : key->remote_port;
	e->destination_port = p->port;
	e->protocol = key->protocol;
	e->direction = dir;
}

static __always_inline void add(struct flow_count *n, const struct __sk_buff *skb)
{
	n->packets += skb->gso_segs ? skb->gso_segs : 1;
	n->bytes += skb->len - ETHERNET_HEADER;
}

// account adds a packet to what is recorded of its flow, if it is. Of two CPUs that have packets of
// one direction at the same time, one may be lost.
static __always_inline void account(__u32 id, bool is_original, const struct __sk_buff *skb)
{
	struct flow *f = id ? bpf_map_lookup_elem(&sif_flows, &id) : NULL;

	if (f)
		add(is_original ? &f->original : &f->reply, skb);
}

// fill must not be inlined, so that struct record is in the object's BTF.
static __noinline void fill(struct record *r, const struct flow *f, __u32 id, __u64 time, enum record_flag flags)
{
	r->event = f->first;
	r->event.time = time;
	r->opened = f->first.time;
	r->original = f->original;
	r->reply = f->reply;
	r->flow = id;
	r->flags = flags;
}

// tell writes a record, and returns false if there is no room.
static __always_inline bool tell(const struct flow *f, __u32 id, __u64 time, enum record_flag flags)
{
	struct record *r = bpf_ringbuf_reserve(&sif_events, sizeof(*r), 0);
	__u64 wake = BPF_RB_NO_WAKEUP;

	if (!r)
		return false;
	fill(r, f, id, time, flags);
	if (bpf_ringbuf_query(&sif_events, BPF_RB_AVAIL_DATA) > EVENTS_WAKE_BYTES)
		wake = BPF_RB_FORCE_WAKEUP;
	bpf_ringbuf_submit(r, wake);
	return true;
}

static __always_inline void lost(void)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&sif_lost, &zero);

	if (n)
		(*n)++;
}

static __always_inline void unrecorded(__u32 ifindex, bool refused)
{
	struct unrecorded *n = bpf_map_lookup_elem(&sif_unrecorded, &ifindex);
	struct unrecorded first = { .refused = refused, .opened = !refused };

	if (!n)
		bpf_map_update_elem(&sif_unrecorded, &ifindex, &first, BPF_NOEXIST);
	else if (refused)
		n->refused++;
	else
		n->opened++;
}

static __always_inline bool on_time(__u64 *next, __u64 now, __u64 interval)
{
	__u64 at = *next;

	if ((__s64)(at - now) < 0)
		at = now;
	if (at - now > RECORD_BURST)
		return false;
	*next = at + interval; // of two CPUs at once, one may be free
	return true;
}

// metered reports whether the endpoint may cause another record.
static __always_inline bool metered(__u32 ifindex, bool refused, __u64 now)
{
	struct meter *m = bpf_map_lookup_elem(&sif_meters, &ifindex);
	struct meter none = {};

	if (!m) {
		bpf_map_update_elem(&sif_meters, &ifindex, &none, BPF_NOEXIST);
		m = bpf_map_lookup_elem(&sif_meters, &ifindex);
	}
	return m && (refused ? on_time(&m->refused, now, REFUSED_INTERVAL) : on_time(&m->opened, now, OPENED_INTERVAL));
}

// begin returns what is recorded of a flow that begins with this packet, in memory of this CPU.
static __always_inline struct flow *begin(const struct __sk_buff *skb, const struct packet *p, enum direction dir,
					  enum reason why, __u64 now)
{
	struct flow none = {};
	__u32 zero = 0;
	struct flow *f = bpf_map_lookup_elem(&sif_scratch, &zero);

	if (!f)
		return NULL;
	*f = none;
	describe(&f->first, p, dir);
	f->first.reason = why;
	f->key = p->key;
	f->told = now;
	f->seen = now;
	add(&f->original, skb);
	f->told_packets = f->original.packets;
	return f;
}

// opened records a flow that is allowed. Flows that pass because of audit mode are recorded
// whatever the meter says.
static __noinline void opened(const struct __sk_buff *skb, const struct packet *p, enum direction dir, enum reason why)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 zero = 0, id = 0, *last;
	struct flow *f;
	struct conn *c;

	if (!metered(p->key.ifindex, false, now) && !(p->contract & CONTRACT_AUDIT)) {
		unrecorded(p->key.ifindex, false);
		return;
	}
	f = begin(skb, p, dir, why, now);
	if (!f)
		return;
	c = bpf_map_lookup_elem(&sif_conns, &p->key);
	last = bpf_map_lookup_elem(&sif_flow_ids, &zero);
	if (c && last)
		id = __sync_fetch_and_add(last, 1) + 1;
	if (c && id) {
		// First here: sif_end_flows ends a flow whose connection does not name it.
		c->flow = id;
		if (bpf_map_update_elem(&sif_flows, &id, f, BPF_NOEXIST)) {
			c->flow = 0;
			id = 0;
		}
	}
	if (!tell(f, id, f->first.time, 0))
		lost();
}

// refused records a packet that was refused. Those that follow with the same addresses, ports and
// reason are counted.
static __noinline void refused(const struct __sk_buff *skb, const struct packet *p, enum direction dir, enum reason why,
			       bool overridden)
{
	struct refused_key key = { .flow = p->key, .port = p->port, .direction = dir, .reason = why };
	struct flow *f = bpf_map_lookup_elem(&sif_refused, &key);
	__u64 now = bpf_ktime_get_coarse_ns();

	if (f) {
		add(&f->original, skb);
		f->seen = now;
		return;
	}
	f = metered(p->key.ifindex, true, now) ? begin(skb, p, dir, why, now) : NULL;
	if (!f) {
		unrecorded(p->key.ifindex, true);
		return;
	}
	if (overridden)
		f->first.flags |= EVENT_OVERRIDDEN;
	bpf_map_update_elem(&sif_refused, &key, f, BPF_NOEXIST); // if there is no room, it is told of each packet
	if (!tell(f, 0, f->first.time, 0))
		lost();
}

// goes_on tells, now and then, of a flow that has had packets since, the last one not long ago. It
// returns false if there is no room.
static __always_inline bool goes_on(struct flow *f, __u32 id, __u64 seen, __u64 now)
{
	__u64 packets = f->original.packets + f->reply.packets;

	if (packets == f->told_packets || (__s64)(now - f->told) < (__s64)FLOW_UPDATE ||
	    (__s64)(now - seen) >= (__s64)FLOW_UPDATE)
		return true;
	if (!tell(f, id, now, RECORD_GOES_ON))
		return false;
	f->told = now;
	f->told_packets = packets;
	return true;
}

static long end_refused(struct bpf_map *map, struct refused_key *key, struct flow *f, struct sweep *s)
{
	if ((__s64)(s->now - f->seen) <= (__s64)REFUSED_IDLE)
		return goes_on(f, 0, f->seen, s->now) ? 0 : 1;
	if (f->original.packets != f->told_packets && !tell(f, 0, f->seen, RECORD_ENDED))
		return 1;
	bpf_map_delete_elem(&sif_refused, key);
	return 0;
}

#endif
