// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package health

import (
	"slices"
	"time"

	"github.com/sif-project/sif/api"
)

const (
	// window is the number of small packets over which loss is counted.
	window = 30
	// downAfter is the number of small packets in a row after whose loss a way is down.
	downAfter = 3
	// lossFrom is the number of lost packets in the window from which a way loses packets: more
	// than those of a daemon that restarts.
	lossFrom = 5
	// mtuAfter is the number of full-size packets in a row, after whose loss packets of that size
	// do not pass. Others must pass meanwhile.
	mtuAfter = 3
	// grain is the accuracy of the path MTU in bytes, and leastMTU the size that is tried first:
	// what every link must carry for IPv6.
	grain    = 8
	leastMTU = 1280
)

// family is what is measured of one way with one version of IP.
type family struct {
	full     int // bytes, with IP's header
	results  []time.Duration
	answered time.Time
	streak   int // small packets lost since the last answer
	fault    string

	// The size of packets that pass is searched between passed and tooBig.
	fullLost int // full-size packets lost in a row
	passed   int // the largest that passed, 0 if none did
	tooBig   int // the smallest that was lost while others passed; 0 if full-size packets pass
	searched bool
}

const lost = -1 // among results

func (f *family) record(result time.Duration) {
	f.results = append(f.results, result)
	if len(f.results) > window {
		f.results = slices.Delete(f.results, 0, len(f.results)-window)
	}
}

// small records the outcome of a small packet.
func (f *family) small(rtt time.Duration, answered bool, now time.Time) {
	if !answered {
		f.streak++
		f.record(lost)
		return
	}
	if f.streak >= downAfter {
		f.results = nil // what an outage lost says nothing of the way as it is now
	}
	f.streak, f.answered = 0, now
	f.record(rtt)
}

// nextSize returns the size of the next large packet. After full-size packets were lost it is
// by turns the full size and one between those that passed and those that did not.
func (f *family) nextSize() int {
	if f.tooBig == 0 || f.tooBig-f.passed <= grain {
		return f.full
	}
	if f.searched = !f.searched; !f.searched {
		return f.full
	}
	if f.passed == 0 && f.tooBig > leastMTU {
		return leastMTU
	}
	return (f.passed + f.tooBig) / 2
}

// large records the outcome of a packet of size bytes. One that was lost while small ones were lost
// as well says nothing of its size.
func (f *family) large(size int, answered bool) {
	switch {
	case answered:
		f.passed = max(f.passed, size)
		if size >= f.tooBig {
			f.tooBig = 0
		}
		if size == f.full {
			f.fullLost, f.tooBig = 0, 0
		}
	case f.streak > 0:
	case size < f.full:
		f.tooBig = size
		f.passed = min(f.passed, size-grain)
	default:
		if f.fullLost++; f.fullLost == mtuAfter {
			f.tooBig, f.passed = f.full, 0
		}
	}
}

// suspicious reports whether the next full-size packet should not be late: the last one was lost,
// which may be chance.
func (f *family) suspicious() bool { return f.fullLost > 0 && f.fullLost < mtuAfter }

// blocked reports whether full-size packets do not pass.
func (f *family) blocked() bool { return f.fullLost >= mtuAfter }

func (f *family) found(wayDown bool) api.WayFound {
	found := api.WayFound{Full: f.full, Passed: f.passed, Answered: f.answered, Error: f.fault, Sent: len(f.results)}
	var times []time.Duration
	for _, r := range f.results {
		if r == lost {
			found.Lost++
		} else {
			times = append(times, r)
		}
	}
	if len(times) > 0 {
		slices.Sort(times)
		found.RTT = times[len(times)/2]
	}
	switch {
	case f.streak >= downAfter || wayDown && f.streak > 0:
		found.State, found.Passed = api.WayDown, 0
	case f.answered.IsZero():
		found.State = api.WayUnmeasured
	case found.Lost >= lossFrom:
		found.State = api.WayLoss
	case f.blocked():
		found.State = api.WayMTU
	default:
		found.State = api.WayUp
	}
	return found
}
