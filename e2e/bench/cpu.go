// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"
)

// usage is the processor time that each daemon of the lab has used, by node and name.
type usage struct {
	at    time.Time
	spent map[string]time.Duration
}

// usage reads the processor time that the lab's daemons have used so far.
func (f *fabric) usage() usage {
	u := usage{time.Now(), map[string]time.Duration{}}
	processes, err := f.Processes()
	if err != nil {
		return u
	}
	for _, p := range processes {
		proc, err := procfs.NewProc(p.PID)
		if err != nil {
			continue // it is not running
		}
		if stat, err := proc.Stat(); err == nil {
			u.spent[p.String()] = time.Duration(stat.CPUTime() * float64(time.Second))
		}
	}
	return u
}

func (u usage) since(earlier usage) usage {
	d := usage{at: u.at, spent: map[string]time.Duration{}}
	whole := u.at.Sub(earlier.at)
	for name, spent := range u.spent {
		// The share of one core.
		d.spent[name] = time.Duration(float64(spent-earlier.spent[name]) / float64(whole) * float64(time.Second))
	}
	return d
}

// cost is the processor time that the daemons of one name have used, on all nodes.
type cost struct {
	daemon string
	spent  time.Duration
}

// costs returns what the daemons have used since an earlier reading for each of count pieces of
// work, by their names, the most first, beyond what they use at rest: their shares of one core.
func (u usage) costs(earlier, rest usage, count int) []cost {
	total := map[string]time.Duration{}
	for process, spent := range u.spent {
		_, name, _ := strings.Cut(process, "/")
		resting := time.Duration(rest.spent[process].Seconds() * float64(u.at.Sub(earlier.at)))
		total[name] += spent - earlier.spent[process] - resting
	}
	var list []cost
	for name, spent := range total {
		if spent > 0 {
			list = append(list, cost{name, spent / time.Duration(count)})
		}
	}
	slices.SortFunc(list, func(a, b cost) int { return cmp.Or(cmp.Compare(b.spent, a.spent), cmp.Compare(a.daemon, b.daemon)) })
	return list
}

// shares lists the average use of the busiest daemons, in percent of one core.
func shares(list []usage) string {
	total := map[string]time.Duration{}
	for _, u := range list {
		for name, spent := range u.spent {
			total[name] += spent
		}
	}
	names := slices.SortedFunc(maps.Keys(total), func(a, b string) int { return int(total[b] - total[a]) })
	var parts []string
	for _, name := range names[:min(len(names), 8)] {
		percent := 100 * total[name].Seconds() / float64(len(list))
		if percent >= 2 {
			parts = append(parts, fmt.Sprintf("%s %.0f %%", name, percent))
		}
	}
	return strings.Join(parts, ", ")
}

// perByte returns the median of the processor time that daemons of a name have used for each byte
// of one stream. It depends less on other work on the machine than the stream's rate does.
func (m measurement) perByte(name string) time.Duration {
	var list []float64
	for i, u := range m.cpu {
		sum := time.Duration(0) // in one second
		for process, spent := range u.spent {
			if strings.HasSuffix(process, "/"+name) {
				sum += spent
			}
		}
		const bytes = 1e6 / 8 // of a megabit
		list = append(list, float64(sum)/(m.throughput[1][i]*bytes))
	}
	return time.Duration(median(list))
}
