// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
)

// section writes a table under a title, unless the table has no rows besides its heading.
func section(b *strings.Builder, title string, rows [][]string) {
	if len(rows) > 1 {
		b.WriteString("\n" + title + "\n")
		table(b, rows)
	}
}

// table writes rows in aligned columns.
func table(b *strings.Builder, rows [][]string) {
	var columns strings.Builder
	w := tabwriter.NewWriter(&columns, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	w.Flush() // writing to a Builder cannot fail
	for line := range strings.Lines(columns.String()) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
}

// count is a number with its noun: "1 node", "2 nodes".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// shortID abbreviates a UUID as Nomad does. Other IDs stay as they are.
func shortID(id string) string {
	if len(id) == 36 {
		return id[:8]
	}
	return id
}

// brief formats a duration in its two largest units.
func brief(d time.Duration) string {
	d = max(d, 0).Round(time.Second)
	days, hours, minutes, seconds := int(d.Hours())/24, int(d.Hours())%24, int(d.Minutes())%60, int(d.Seconds())%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh%dm", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%dm%ds", minutes, seconds)
	}
	return fmt.Sprintf("%ds", seconds)
}
