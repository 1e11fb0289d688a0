// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Carries out a decision: counts it, records it, and returns the verdict to the kernel.
#ifndef SIF_VERDICT_H
#define SIF_VERDICT_H

#include "flow.h"
#include "maps.h"
#include "packet.h"

static __always_inline bool allowed(enum reason why)
{
	return why >= REASON_ALLOWED_CONTRACT && why <= REASON_ALLOWED_ERROR;
}

// quiet reports whether drops for a reason are only counted: systems send such packets by
// themselves, or the packet before has been recorded.
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

// carry_out handles all packets except those of known connections, which are only counted.
static __noinline int carry_out(const struct __sk_buff *skb, const struct packet *p, const struct config *cfg,
				enum direction dir, enum reason why)
{
	bool overridden;

	if (allowed(why)) {
		count(dir, why, false);
		if (why != REASON_ALLOWED_CONNECTION && why != REASON_ALLOWED_ERROR)
			opened(skb, p, dir, why);
		return TCX_NEXT;
	}
	overridden = cfg->flags & CONFIG_PASS_ALL;
	count(dir, why, overridden);
	count_drop(p->key.ifindex, dir, why, overridden);
	if (!quiet(why))
		refused(skb, p, dir, why, overridden);
	return overridden ? TCX_NEXT : TCX_DROP;
}

#endif
