// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// What an endpoint has used up of what it may.
#ifndef SIF_USAGE_H
#define SIF_USAGE_H

#include "maps.h"

// usage_of returns the usage of an endpoint, or NULL if there is no memory.
static __always_inline struct usage *usage_of(__u32 ifindex)
{
	struct usage *u = bpf_map_lookup_elem(&sif_usage, &ifindex);
	struct usage none = {};

	if (u)
		return u;
	bpf_map_update_elem(&sif_usage, &ifindex, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&sif_usage, &ifindex);
}

#endif
