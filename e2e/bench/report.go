// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Figure is one line of the report.
type Figure struct {
	Group   string  `json:"group"`
	Name    string  `json:"name"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`              // Mb/s, µs, ms
	Against string  `json:"against,omitempty"` // name of the alternative
	Other   float64 `json:"other,omitempty"`   // value of the alternative
	Ratio   float64 `json:"ratio,omitempty"`   // value / other
	Target  string  `json:"target,omitempty"`  // the design's target for Value or Ratio
	Met     *bool   `json:"met,omitempty"`
}

// Report contains the results of one run.
type Report struct {
	Date    time.Time `json:"date"`
	Machine string    `json:"machine"`
	Load    string    `json:"load"`      // before the lab was up
	After   string    `json:"loadAfter"` // after the last measurement
	Figures []Figure  `json:"figures"`
	Sizes   []Size    `json:"sizes,omitempty"`
	Notes   []string  `json:"notes"`
	Took    string    `json:"took"`
}

func newReport() *Report {
	kernel, err := exec.Command("uname", "-r").Output()
	if err != nil {
		kernel = []byte(err.Error())
	}
	return &Report{
		Date:    time.Now().UTC().Truncate(time.Second),
		Machine: fmt.Sprintf("%d cores, Linux %s, %s", runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version()),
		Load:    load(),
	}
}

// load returns the machine's load averages.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// bound is a target.
type bound struct {
	text  string
	holds func(Figure) bool
}

var none = bound{}

func ratioAtLeast(x float64) bound {
	return bound{fmt.Sprintf("ratio ≥ %g", x), func(f Figure) bool { return f.Ratio >= x }}
}

func ratioAtMost(x float64) bound {
	return bound{fmt.Sprintf("ratio ≤ %g", x), func(f Figure) bool { return f.Ratio <= x }}
}

func atMost(x float64) bound {
	return bound{fmt.Sprintf("≤ %g", x), func(f Figure) bool { return f.Value <= x }}
}

func below(x float64) bound {
	return bound{fmt.Sprintf("below %g", x), func(f Figure) bool { return f.Value < x }}
}

func (r *Report) add(f Figure, b bound) {
	if f.Other != 0 {
		f.Ratio = f.Value / f.Other
	}
	if b.holds != nil {
		met := b.holds(f)
		f.Target, f.Met = b.text, &met
	}
	r.Figures = append(r.Figures, f)
}

// compare reports a path next to an alternative.
func (r *Report) compare(group, against string, m, other measurement, rate, time bound) {
	for _, n := range slices.Sorted(maps.Keys(m.throughput)) {
		name := "TCP, 1 stream"
		if n != 1 {
			name = fmt.Sprintf("TCP, %d streams", n)
		}
		r.add(Figure{Group: group, Name: name, Value: median(m.throughput[n]), Unit: "Mb/s", Against: against, Other: median(other.throughput[n])}, rate)
	}
	r.add(Figure{Group: group, Name: "1 KiB request p50", Value: us(quantile(m.requests, 0.5)), Unit: "µs", Against: against, Other: us(quantile(other.requests, 0.5))}, time)
	r.add(Figure{Group: group, Name: "1 KiB request p99", Value: us(quantile(m.requests, 0.99)), Unit: "µs", Against: against, Other: us(quantile(other.requests, 0.99))}, none)
	r.add(Figure{Group: group, Name: "connect + first request p50", Value: us(quantile(m.connects, 0.5)), Unit: "µs", Against: against, Other: us(quantile(other.connects, 0.5))}, none)
}

// times reports p50 and p99 of durations in milliseconds.
func (r *Report) times(group, name string, list []time.Duration, p50, p99 bound) {
	r.add(Figure{Group: group, Name: name + " p50", Value: ms(quantile(list, 0.5)), Unit: "ms"}, p50)
	r.add(Figure{Group: group, Name: name + " p99", Value: ms(quantile(list, 0.99)), Unit: "ms"}, p99)
}

// costs reports processor time in milliseconds, of all daemons and by daemon. It depends less on
// other work on the machine than elapsed time does.
func (r *Report) costs(group, name string, list []cost) {
	all := cost{daemon: "all daemons"}
	for _, c := range list {
		all.spent += c.spent
	}
	for _, c := range append([]cost{all}, list...) {
		r.add(Figure{Group: group, Name: name + ", " + c.daemon, Value: ms(c.spent), Unit: "ms"}, none)
	}
}

func us(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.1f ms", ms(d)) }

// write prints the report as a table.
func (r *Report) write(w io.Writer) error {
	fmt.Fprintf(w, "\n%s; %s; load before: %s, after: %s; took %s\n", r.Date.Format(time.RFC3339), r.Machine, r.Load, r.After, r.Took)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	group := ""
	for _, f := range r.Figures {
		if f.Group != group {
			group = f.Group
			fmt.Fprintf(t, "\n%s\n", group)
		}
		line := []string{"  " + f.Name, fmt.Sprintf("%.*f %s", digits(f.Value), f.Value, f.Unit), "", "", ""}
		if f.Against != "" {
			line[2] = fmt.Sprintf("%s: %.*f", f.Against, digits(f.Other), f.Other)
			line[3] = fmt.Sprintf("ratio %.2f", f.Ratio)
		}
		if f.Met != nil {
			verdict := "met"
			if !*f.Met {
				verdict = "NOT MET"
			}
			line[4] = fmt.Sprintf("target %s: %s", f.Target, verdict)
		}
		fmt.Fprintln(t, strings.Join(line, "\t"))
	}
	if err := errors.Join(t.Flush(), writeSizes(w, r.Sizes)); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, n := range r.Notes {
		fmt.Fprintln(w, "-", n)
	}
	return nil
}

func digits(v float64) int {
	if v > -100 && v < 100 {
		return 1
	}
	return 0
}
