// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/sif-project/sif/internal/wellknown"
)

// guestNetdev is the ID of the network device of QEMU, unless the job has one of its own.
const guestNetdev = "sif"

// GuestArguments are the arguments by which QEMU gives its guest the endpoint's interface.
func GuestArguments() []string {
	return append(netdevArgument(guestNetdev), deviceArgument(guestNetdev)...)
}

func netdevArgument(id string) []string {
	return []string{"-netdev", fmt.Sprintf("tap,id=%s,ifname=%s,script=no,downscript=no", id, wellknown.GuestTap)}
}

// deviceArgument leaves out host_mtu: only the node knows the MTU. It tells the guest by DHCP and
// router advertisements.
func deviceArgument(id string) []string {
	return []string{"-device", fmt.Sprintf("virtio-net-pci,netdev=%s,mac=%s", id, wellknown.GuestMAC)}
}

// yes returns how meta says that something is so.
func yes(is bool) string {
	if is {
		return "true"
	}
	return ""
}

// guests writes in the tasks of driver "qemu" what their jobs leave out of the arguments of QEMU.
// With a network device of its own QEMU makes none for user networking.
func (x *extractor) guests(group *hclsyntax.Body) {
	for _, task := range group.Blocks {
		if task.Type != "task" || task.Body.Attributes["driver"] == nil {
			continue
		}
		if driver, _ := literalText(task.Body.Attributes["driver"].Expr); driver != "qemu" {
			continue
		}
		for _, config := range task.Body.Blocks {
			if config.Type == "config" {
				x.guest(config)
			}
		}
	}
}

// guest completes the args of a task's config. What an expression in them may contain is not known
// here, so that what is missing among the literals is added.
func (x *extractor) guest(config *hclsyntax.Block) {
	src := x.job.source.Data
	attr := config.Body.Attributes["args"]
	if attr == nil {
		indent := indentAt(src, config.TypeRange.Start.Byte)
		text := "\n  args = [\n" + argumentLines(GuestArguments(), "    ") + "  ]"
		x.insertInto(config.OpenBraceRange, config.CloseBraceRange, "", indented(text, indent))
		return
	}
	list, literal := attr.Expr.(*hclsyntax.TupleConsExpr)
	if !literal {
		r := attr.Expr.Range()
		x.edit(r.Start.Byte, r.Start.Byte, "concat(")
		x.edit(r.End.Byte, r.End.Byte, ", ["+quoteAll(GuestArguments(), ", ")+"])")
		return
	}
	var own []string
	for _, e := range list.Exprs {
		argument, _ := literalText(e)
		own = append(own, argument)
	}
	missing := missingArguments(own)
	if len(missing) == 0 {
		return
	}
	// Before what the job has: whatever follows it, a comma or a comment, then stays where it is.
	start, end := list.OpenRange.End.Byte, list.SrcRange.End.Byte-1
	inside := src[start:end]
	n := bytes.IndexByte(inside, '\n')
	if n < 0 {
		text := quoteAll(missing, ", ")
		if len(bytes.TrimSpace(inside)) > 0 {
			text += ", "
		}
		x.edit(start, start, text)
		return
	}
	lines := strings.TrimSuffix("\n"+argumentLines(missing, indentAt(src, attr.NameRange.Start.Byte)+"  "), "\n")
	if rest := bytes.TrimSpace(inside[:n]); len(rest) == 0 || rest[0] == '#' || bytes.HasPrefix(rest, []byte("//")) {
		start += n // after the comment on the bracket's line
	}
	x.edit(start, start, lines)
}

var (
	ofTap    = regexp.MustCompile(`(^|,)ifname=` + wellknown.GuestTap + `(,|$)`)
	idOf     = regexp.MustCompile(`(?:^|,)id=([^,]+)`)
	netdevOf = regexp.MustCompile(`(?:^|,)netdev=([^,]+)`)
)

// missingArguments returns which of the GuestArguments a job leaves out. It may have a network
// device on the tap interface, or the guest's interface, under a name of its own.
func missingArguments(own []string) []string {
	id, tap, whole := "", false, false
	var devices, others []string // the IDs of devices that cards name, and of devices that are not the tap
	for i := 1; i < len(own); i++ {
		option, value := strings.TrimLeft(own[i-1], "-"), own[i]
		switch {
		case !strings.HasPrefix(own[i-1], "-"):
		case (option == "nic" || option == "net") && ofTap.MatchString(value):
			whole = true // both at once
		case option == "netdev" && ofTap.MatchString(value):
			tap = true
			if m := idOf.FindStringSubmatch(value); m != nil {
				id = m[1]
			}
		case option == "netdev":
			if m := idOf.FindStringSubmatch(value); m != nil {
				others = append(others, m[1])
			}
		case option == "device":
			if m := netdevOf.FindStringSubmatch(value); m != nil {
				devices = append(devices, m[1])
			}
		}
	}
	// A card whose device is missing is meant for the tap.
	open := slices.DeleteFunc(slices.Clone(devices), func(d string) bool { return slices.Contains(others, d) })
	switch {
	case whole:
		return nil
	case !tap && len(open) == 1:
		return netdevArgument(open[0])
	case !tap:
		return GuestArguments()
	case id == "" || slices.Contains(devices, id):
		return nil
	}
	return deviceArgument(id)
}

// argumentLines formats arguments for a list, each option with its value on a line.
func argumentLines(arguments []string, indent string) string {
	var b strings.Builder
	for i := 0; i+1 < len(arguments); i += 2 {
		fmt.Fprintf(&b, "%s%s,\n", indent, quoteAll(arguments[i:i+2], ", "))
	}
	return b.String()
}

func quoteAll(list []string, sep string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = strconv.Quote(s)
	}
	return strings.Join(quoted, sep)
}
