// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"fmt"
	"time"

	"github.com/sif-project/sif/api"
)

// staleAfter is the age of an answer of a controller that does not lead from which it is a problem.
const staleAfter = 15 * time.Second

// roleOf says in a word what a controller does.
func roleOf(c api.ControllerStatus) string {
	switch {
	case c.Away != "":
		return "away"
	case c.Leader:
		return "leader"
	}
	return "standby"
}

// controllerProblems lists what is wrong with the controllers besides what the one that answered
// says of itself.
func controllerProblems(s api.Status, now time.Time) (list []string) {
	report := func(c api.ControllerStatus, format string, args ...any) {
		list = append(list, fmt.Sprintf("controller %s: ", c.Address)+fmt.Sprintf(format, args...))
	}
	leaders := 0
	if s.Controller.Leader {
		leaders++
	}
	for _, c := range s.Controllers {
		if c.Leader {
			leaders++
		}
		switch {
		case c.Away != "":
			report(c, "it has been away for %s: %s", brief(now.Sub(c.Since)), c.Away)
			continue
		case c.Version != s.Controller.Version:
			report(c, "it is of version %s, and %s of version %s: upgrade the others, too", c.Version, s.Controller.Address, s.Controller.Version)
		}
		if expired(c.CertificateExpires, now) {
			report(c, "its certificate has expired")
		}
		for _, why := range c.Degraded {
			report(c, "%s", why)
		}
	}
	switch {
	case leaders == 0:
		list = append(list, "controllers: none of them leads, so nothing can be admitted or changed")
	case leaders > 1: // for a moment, while one hands over
		list = append(list, fmt.Sprintf("controllers: %d of them say that they lead; only the one with the lock in Consul can change anything", leaders))
	}
	if s.Age > staleAfter {
		report(s.Controller, "it does not lead, and what it knows of the nodes is %s old", brief(s.Age))
	}
	return list
}

// controllerRows lists the controllers, if there are several.
func controllerRows(s api.Status, now time.Time) [][]string {
	rows := [][]string{{"Address", "Version", "Role", "Revision", "Certificate", "Since"}}
	if len(s.Controllers) == 0 {
		return rows
	}
	for _, c := range append([]api.ControllerStatus{s.Controller}, s.Controllers...) {
		since := "-"
		if !c.Since.IsZero() {
			since = brief(now.Sub(c.Since))
		}
		rows = append(rows, []string{c.Address, c.Version, roleOf(c), fmt.Sprint(c.Revision), remaining(c.CertificateExpires, now), since})
	}
	return rows
}
