// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"time"

	"github.com/sif-project/sif/api"
)

// outageText says what a daemon has measured of an outage, and for how long what was in force goes
// on; empty if there is none.
func outageText(o *api.Outage, now time.Time) string {
	if o == nil {
		return ""
	}
	honoured := ""
	if o.Honoured > 0 {
		honoured = fmt.Sprintf("; %s would have ended", count(o.Honoured, "endpoint"))
	}
	since := brief(now.Sub(o.Since))
	switch {
	case !o.Back.IsZero() && o.Honoured == 0:
		return ""
	case !o.Back.IsZero():
		return fmt.Sprintf("an outage of %s is over, and what was honoured beyond its end is being renewed%s", brief(o.Back.Sub(o.Since)), honoured)
	case expired(o.Until, now):
		return fmt.Sprintf("an outage for %s, longer than the bound of %s: what has ended is not honoured any more: %s", since, brief(o.Until.Sub(o.Since)), o.Why)
	}
	return fmt.Sprintf("an outage for %s: what was in force then stays so for another %s, whatever ends%s: %s", since, remaining(o.Until, now), honoured, o.Why)
}

// outageRows lists the outages that daemons have measured, and what is left of each.
func outageRows(s api.Status, now time.Time) [][]string {
	rows := [][]string{{"Daemon", "For", "Left", "Honoured", "Away"}}
	add := func(who string, o *api.Outage) {
		if o == nil {
			return
		}
		away := o.Why
		if !o.Back.IsZero() {
			away = "nobody any more"
		}
		rows = append(rows, []string{who, brief(now.Sub(o.Since)), remaining(o.Until, now), fmt.Sprint(o.Honoured), away})
	}
	add("controller "+s.Controller.Address, s.Controller.Outage)
	for _, c := range s.Controllers {
		add("controller "+c.Address, c.Outage)
	}
	for _, n := range s.Nodes {
		add(n.Daemon()+" "+n.ID().String(), n.Outage)
	}
	return rows
}
