// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Carries out a decision: counts it, reports it, and returns the verdict to the kernel.
#ifndef SIF_VERDICT_H
#define SIF_VERDICT_H

#include "maps.h"
#include "packet.h"

// The reader polls. The programs wake it only when this much data is waiting.
#define EVENTS_WAKE_BYTES (128 * 1024)

static __always_inline bool allowed(enum reason why)
{
	return why >= REASON_ALLOWED_CONTRACT && why <= REASON_ALLOWED_ERROR;
}

// quiet reports whether drops for a reason are only counted: systems send such packets by
// themselves, or the packet before has been reported.
static __always_inline bool quiet(enum reason why)
{
	return why == REASON_NOT_IP || why == REASON_MULTICAST || why == REASON_NO_FIRST_FRAGMENT ||
	       why == REASON_STALE_FRAGMENT;
}

static __always_inline void count(enum direction dir, enum reason why, bool overridden)
{
	__u32 slot = dir * 64 + why;
	struct verdict_count *n = bpf_map_lookup_elem(&sif_verdicts, &slot);

	if (!n)
		return;
	n->packets++;
	if (overridden)
		n->overridden++;
}

static __always_inline void count_drop(__u32 ifindex, enum direction dir, enum reason why, bool overridden)
{
	struct drop_key key = { .ifindex = ifindex, .direction = dir, .reason = why };
	struct verdict_count *n = bpf_map_lookup_elem(&sif_drops, &key);
	struct verdict_count first = { .packets = 1, .overridden = overridden };

	if (!n) {
		bpf_map_update_elem(&sif_drops, &key, &first, BPF_NOEXIST);
		return;
	}
	n->packets++;
	if (overridden)
		n->overridden++;
}

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

static __always_inline void report(const struct packet *p, enum direction dir, enum reason why, bool overridden)
{
	struct event *e = bpf_ringbuf_reserve(&sif_events, sizeof(*e), 0);
	__u64 wake = BPF_RB_NO_WAKEUP;

	if (!e) {
		__u32 zero = 0;
		__u64 *lost = bpf_map_lookup_elem(&sif_lost, &zero);

		if (lost)
			(*lost)++;
		return;
	}
	describe(e, p, dir);
	e->reason = why;
	e->flags = overridden ? EVENT_OVERRIDDEN : 0;
	if (bpf_ringbuf_query(&sif_events, BPF_RB_AVAIL_DATA) > EVENTS_WAKE_BYTES)
		wake = BPF_RB_FORCE_WAKEUP;
	bpf_ringbuf_submit(e, wake);
}

// carry_out handles all packets except those of known connections, which are only counted.
static __noinline int carry_out(const struct packet *p, const struct config *cfg, enum direction dir, enum reason why)
{
	bool overridden;

	if (allowed(why)) {
		count(dir, why, false);
		if (why != REASON_ALLOWED_CONNECTION && why != REASON_ALLOWED_ERROR &&
		    ((cfg->flags & CONFIG_FLOW_EVENTS) || (p->contract & CONTRACT_AUDIT)))
			report(p, dir, why, false);
		return TCX_NEXT;
	}
	overridden = cfg->flags & CONFIG_PASS_ALL;
	count(dir, why, overridden);
	count_drop(p->key.ifindex, dir, why, overridden);
	if (!quiet(why))
		report(p, dir, why, overridden);
	return overridden ? TCX_NEXT : TCX_DROP;
}

#endif
