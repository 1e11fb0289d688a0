// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadjob

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/internal/wellknown"
)

// Fault is what stands against a group as a virtual machine.
type Fault struct {
	Task string // empty: the group
	Key  string // the argument of the task, or of its driver's configuration; empty: the task itself
	// Refused says that no instance may be connected. Otherwise the group works, but not as its
	// author may expect.
	Refused bool
	What    string // in words that follow the name of the group
	Remedy  string // a sentence
}

func (f Fault) String() string { return f.What }

// IsVM reports whether a group says that it is a virtual machine.
func IsVM(group *nomadapi.TaskGroup) bool {
	is, _ := yes(group.Meta[wellknown.MetaVM])
	return is
}

// yes parses what a job says of a virtual machine, as the CNI plugin does.
func yes(text string) (is, valid bool) {
	switch text {
	case "true", "1":
		return true, true
	case "", "false", "0":
		return false, true
	}
	return false, false
}

// Faults returns what stands against a group as a virtual machine. A group that is none has faults
// if it runs a guest, or says so only in one of the two places.
func Faults(group *nomadapi.TaskGroup) []Fault {
	argument := ""
	if len(group.Networks) > 0 && group.Networks[0].CNI != nil {
		argument = group.Networks[0].CNI.Args[wellknown.ArgVM]
	}
	for _, said := range []struct{ what, value string }{
		{"meta key " + wellknown.MetaVM, group.Meta[wellknown.MetaVM]}, {"CNI argument " + wellknown.ArgVM, argument},
	} {
		if _, valid := yes(said.value); !valid {
			return []Fault{{Refused: true, What: fmt.Sprintf("%s is %q", said.what, said.value), Remedy: `Write "true", or remove it.`}}
		}
	}
	byArgument, _ := yes(argument)
	both := fmt.Sprintf(`Write vm = true in the connectivity block, or set both %s in the meta of the group and the CNI argument %s of its network to "true"; or neither.`,
		wellknown.MetaVM, wellknown.ArgVM)
	switch is := IsVM(group); {
	case is && !byArgument:
		return []Fault{{Refused: true, What: fmt.Sprintf("meta key %s says that it is a virtual machine, and its network lacks the CNI argument %s", wellknown.MetaVM, wellknown.ArgVM), Remedy: both}}
	case !is && byArgument:
		return []Fault{{Refused: true, What: fmt.Sprintf("CNI argument %s says that it is a virtual machine, and its meta lacks the key %s", wellknown.ArgVM, wellknown.MetaVM), Remedy: both}}
	case is:
		return machineFaults(group)
	}
	return userNetworking(group)
}

// machineFaults returns what stands against a group that says it is a virtual machine.
func machineFaults(group *nomadapi.TaskGroup) []Fault {
	guests := Guests(group)
	if len(guests) == 0 {
		return []Fault{noGuest(group)}
	}
	var faults []Fault
	for _, t := range guests[1:] {
		faults = append(faults, Fault{t.Name, "driver", true, fmt.Sprintf("task %q is a second guest beside %q: a virtual machine has one interface", t.Name, guests[0].Name),
			"Put each guest into a group of its own."})
	}
	for _, t := range group.Tasks {
		if !slices.Contains(guests, t) {
			faults = append(faults, Fault{t.Name, "", false, fmt.Sprintf("task %q has no network: the guest of task %q has the group's addresses", t.Name, guests[0].Name),
				"Run it in the guest, or in a group of its own."})
		}
	}
	return append(faults, guestFaults(guests[0])...)
}

// noGuest returns why none of the tasks can be a guest, by the one that comes nearest.
func noGuest(group *nomadapi.TaskGroup) Fault {
	const remedy = `Use driver "qemu", or "exec" or "raw_exec" with a QEMU as command; or remove vm = true.`
	var main *nomadapi.Task
	for _, t := range group.Tasks {
		if main == nil || main.Lifecycle != nil && t.Lifecycle == nil {
			main = t
		}
	}
	switch {
	case main == nil:
		return Fault{"", "", true, "no task is there that runs the guest of a virtual machine", remedy}
	case main.Driver == "exec" || main.Driver == "raw_exec":
		return Fault{main.Name, "command", true, fmt.Sprintf("task %q cannot be a virtual machine: neither its command nor its arguments name a QEMU", main.Name), remedy}
	}
	return Fault{main.Name, "driver", true, fmt.Sprintf("task %q cannot be a virtual machine: driver %q runs no guest", main.Name, main.Driver), remedy}
}

// Guests returns the tasks of a group that run the guest of a virtual machine. If no task certainly
// does, it is the first that might: what only Nomad's client knows may be a QEMU.
func Guests(group *nomadapi.TaskGroup) []*nomadapi.Task {
	var guests, possible []*nomadapi.Task
	for _, t := range group.Tasks {
		command := append(texts(t.Config["command"]), texts(t.Config["args"])...) // of a shell: what it runs
		names := func(what string) bool {
			return slices.ContainsFunc(command, func(text string) bool { return strings.Contains(text, what) })
		}
		byCommand := t.Driver == "exec" || t.Driver == "raw_exec"
		switch {
		case t.Driver == "qemu", byCommand && names("qemu"):
			guests = append(guests, t)
		case byCommand && names("${"):
			possible = append(possible, t)
		}
	}
	if len(guests) == 0 && len(possible) > 0 {
		return possible[:1]
	}
	return guests
}

// guestFaults returns what stands against the guest's interface.
func guestFaults(t *nomadapi.Task) []Fault {
	var faults []Fault
	if t.Driver == "qemu" && isSet(t.Config["port_map"]) {
		faults = append(faults, Fault{t.Name, "port_map", true, fmt.Sprintf("task %q maps ports by its driver, to a network that a virtual machine of the fabric has not", t.Name),
			`Remove "port_map", and write in the port block of the group's network as "to" the port in the guest.`})
	}
	args := texts(t.Config["args"])
	if slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "${") }) || t.Driver != "qemu" && !isQEMU(t) {
		return faults // only Nomad's client, or the command itself, knows them all
	}
	q := readQEMU(args)
	options := fmt.Sprintf(`Write "-netdev", "tap,id=sif,ifname=%s,script=no,downscript=no", "-device", "virtio-net-pci,netdev=sif,mac=%s" in its args.`,
		wellknown.GuestTap, wellknown.GuestMAC)
	switch {
	case len(q.taps) == 0:
		faults = append(faults, Fault{t.Name, "args", true, fmt.Sprintf("the QEMU of task %q has no network device on %s", t.Name, wellknown.GuestTap), options})
	case len(q.taps) > 1:
		faults = append(faults, Fault{t.Name, "args", true, fmt.Sprintf("the QEMU of task %q has %d network devices on %s", t.Name, len(q.taps), wellknown.GuestTap), "Keep one of them."})
	case !q.hasCard:
		faults = append(faults, Fault{t.Name, "args", true, fmt.Sprintf("the QEMU of task %q has no card on its network device %q", t.Name, q.taps[0]), options})
	case !q.hasMAC:
		faults = append(faults, Fault{t.Name, "args", true, fmt.Sprintf("the card of the guest of task %q does not have the hardware address that the fabric expects", t.Name),
			"Add mac=" + wellknown.GuestMAC + " to it."})
	}
	if q.user {
		faults = append(faults, Fault{t.Name, "args", false, fmt.Sprintf("the QEMU of task %q has user networking beside the fabric's interface, which leads nowhere: QEMU itself has no address", t.Name), "Remove it."})
	}
	return faults
}

// isQEMU reports whether the command of a task is a QEMU itself, and no script that runs one.
func isQEMU(t *nomadapi.Task) bool {
	return slices.ContainsFunc(texts(t.Config["command"]), func(c string) bool {
		return strings.HasPrefix(path.Base(c), "qemu-") || path.Base(c) == "kvm"
	})
}

// userNetworking warns of guests of a group that is no virtual machine. They are no way out: their
// flows are QEMU's own, from the group's addresses.
func userNetworking(group *nomadapi.TaskGroup) []Fault {
	var faults []Fault
	for _, t := range group.Tasks {
		if t.Driver == "qemu" {
			faults = append(faults, Fault{t.Name, "driver", false, fmt.Sprintf("the guest of task %q is behind QEMU's user networking: it has no address of its own, and nothing reaches it", t.Name),
				"Write vm = true in the connectivity block to give it the group's addresses."})
		}
	}
	return faults
}

// qemu is what the arguments of a QEMU say about its guest's interface.
type qemu struct {
	taps            []string // the IDs of the devices on the tap interface; of one without an ID ""
	hasCard, hasMAC bool     // of the first of them
	user            bool     // it has user networking
}

var (
	onTap    = regexp.MustCompile(`(^|,)ifname=` + regexp.QuoteMeta(wellknown.GuestTap) + `(,|$)`)
	idOf     = regexp.MustCompile(`(?:^|,)id=([^,]+)`)
	netdevOf = regexp.MustCompile(`(?:^|,)netdev=([^,]+)`)
	withMAC  = regexp.MustCompile(`(?i)(^|,)mac(addr)?=` + regexp.QuoteMeta(wellknown.GuestMAC) + `(,|$)`)
)

func readQEMU(args []string) qemu {
	var q qemu
	first := func(r *regexp.Regexp, s string) string {
		if m := r.FindStringSubmatch(s); m != nil {
			return m[1]
		}
		return ""
	}
	type card struct{ netdev, text string }
	var cards []card
	for i := 1; i < len(args); i++ {
		if !strings.HasPrefix(args[i-1], "-") {
			continue
		}
		option, value := strings.TrimLeft(args[i-1], "-"), args[i]
		kind, _, _ := strings.Cut(value, ",")
		switch {
		case option == "device" && netdevOf.MatchString(value):
			cards = append(cards, card{first(netdevOf, value), value})
		case option == "net" && kind == "nic":
			cards = append(cards, card{"", value})
		case option != "netdev" && option != "nic" && option != "net":
		case kind == "user":
			q.user = true
		case onTap.MatchString(value):
			q.taps = append(q.taps, first(idOf, value))
			if option == "nic" { // the card is in the same argument
				cards = append(cards, card{first(idOf, value), value})
			}
		}
	}
	if len(q.taps) > 0 {
		if i := slices.IndexFunc(cards, func(c card) bool { return c.netdev == q.taps[0] }); i >= 0 {
			q.hasCard, q.hasMAC = true, withMAC.MatchString(cards[i].text)
		}
	}
	return q
}

// Needs are what Nomad's clients must allow a task of driver "qemu", by its plugin's configuration.
type Needs struct {
	Options []string // of QEMU, for args_allowlist, in order. An empty list of the plugin allows all
	Image   string   // the directory of the image, for image_paths; empty: it is the allocation's
}

// NeedsOf returns what clients must allow a task of driver "qemu".
func NeedsOf(t *nomadapi.Task) Needs {
	var n Needs
	for _, a := range texts(t.Config["args"]) {
		if strings.HasPrefix(strings.TrimSpace(a), "-") {
			n.Options = append(n.Options, a)
		}
	}
	slices.Sort(n.Options)
	n.Options = slices.Compact(n.Options)
	for _, image := range texts(t.Config["image_path"]) {
		if path.IsAbs(image) {
			n.Image = path.Dir(image)
		}
	}
	return n
}
