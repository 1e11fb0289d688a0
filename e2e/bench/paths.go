// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"time"
)

// Duration and number of the measurements of a path.
const (
	rounds       = 5
	sending      = 800 * time.Millisecond
	requests     = 1500
	manyConnects = 60
)

// path is a pair of endpoints that send to each other.
type path struct {
	name     string
	from, to endpoint
}

// measurement contains the results for one path.
type measurement struct {
	throughput map[int][]float64 // Mb/s, one value per round, by the number of streams
	requests   []time.Duration
	connects   []time.Duration
	cpu        []usage // processor time of the fabric's processes, while sending one stream
}

// measure measures several paths alternately, so that other load on the machine affects all of
// them; their throughput with each number of streams.
func (f *fabric) measure(streams []int, paths ...path) ([]measurement, error) {
	list := make([]measurement, len(paths))
	serving := map[endpoint]bool{}
	for i, p := range paths {
		list[i].throughput = map[int][]float64{}
		if serving[p.to] {
			continue
		}
		serving[p.to] = true
		stop, err := serve(p.to)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		defer stop()
	}
	for round := range rounds {
		for _, n := range streams {
			for i := range paths {
				// Each path is the first one in some round.
				i = (i + round) % len(paths)
				p, m := paths[i], &list[i]
				before := f.usage()
				mbps, err := together(p.from, p.to, sending, n)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", p.name, err)
				}
				if n == 1 {
					m.cpu = append(m.cpu, f.usage().since(before))
				}
				m.throughput[n] = append(m.throughput[n], mbps)
			}
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
