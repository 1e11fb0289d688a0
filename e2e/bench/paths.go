// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"time"
)

// How long and how often a path is measured.
const (
	rounds       = 5
	sending      = 800 * time.Millisecond
	requests     = 1500
	manyConnects = 60
)

// path is a way that packets take.
type path struct {
	name     string
	from, to endpoint
}

// measurement is what was measured of one path.
type measurement struct {
	throughput []float64 // Mb/s, one for each round
	requests   []time.Duration
	connects   []time.Duration
	cpu        []usage // of the fabric's processes, while sending
}

// measure measures several paths in turns, so that whatever else the machine does meets all of them.
func (f *fabric) measure(paths ...path) ([]measurement, error) {
	list := make([]measurement, len(paths))
	for _, p := range paths {
		stop, err := serve(p.to)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		defer stop()
	}
	for round := range rounds {
		for i := range paths {
			// Each one is the first in some round.
			i = (i + round) % len(paths)
			p, m := paths[i], &list[i]
			before := f.usage()
			mbps, err := throughput(p.from, p.to, sending)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			m.cpu = append(m.cpu, f.usage().since(before))
			m.throughput = append(m.throughput, mbps)
		}
	}
	sleep, err := awake()
	if err != nil {
		return nil, err
	}
	defer sleep()
	for round := range rounds {
		for i := range paths {
			i = (i + round) % len(paths)
			p, m := paths[i], &list[i]
			took, err := latency(p.from, p.to, requests)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			m.requests = append(m.requests, took...)
			if took, err = connects(p.from, p.to, manyConnects); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			m.connects = append(m.connects, took...)
		}
	}
	return list, nil
}
