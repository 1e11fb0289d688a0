// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"fmt"

	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/sif-project/sif/internal/wellknown"
)

// workloadAPI gives the tasks of a group the socket of the SPIFFE Workload API, by a host volume of
// Nomad, and says in their environment where it is. It returns the volume, unless the group has it.
func (x *extractor) workloadAPI(group *hclsyntax.Body, s Stanza) string {
	if s.VM {
		x.report(errorAt(s.block, "Remove one of the two arguments.", "a virtual machine cannot have the Workload API: a socket of the node does not lead into a guest"))
		return ""
	}
	volume := fmt.Sprintf("volume %q {\n  type      = \"host\"\n  source    = %q\n  read_only = true\n}", wellknown.WorkloadAPIVolume, wellknown.WorkloadAPIVolume)
	for _, b := range group.Blocks {
		switch {
		case b.Type == "volume" && len(b.Labels) == 1 && b.Labels[0] == wellknown.WorkloadAPIVolume:
			volume = ""
		case b.Type == "task":
			x.workloadAPIOf(b)
		case b.Type == "dynamic" && len(b.Labels) == 1 && b.Labels[0] == "task":
			x.report(errorAt(b.DefRange(), "Write static task blocks, or mount the volume by hand.", "a group with workload_api cannot have a dynamic task block"))
		}
	}
	return volume
}

// workloadAPIOf gives one task the socket. A task of raw_exec sees the node's own.
func (x *extractor) workloadAPIOf(task *hclsyntax.Block) {
	driver := ""
	if attr := task.Body.Attributes["driver"]; attr != nil {
		driver, _ = literalText(attr.Expr)
		if driver == "qemu" {
			x.report(errorAt(attr.Expr.Range(), "Remove workload_api, or the task.", "a task of driver %q cannot mount the Workload API", driver))
			return
		}
	}
	if task.OpenBraceRange.Start.Line == task.CloseBraceRange.End.Line {
		x.report(errorAt(task.DefRange(), "Write the task on several lines.", "a task that gets the Workload API cannot be on one line"))
		return
	}
	text := ""
	if driver != "raw_exec" && !x.mounts(task.Body) {
		text = fmt.Sprintf("\n\n  volume_mount {\n    volume      = %q\n    destination = %q\n    read_only   = true\n  }", wellknown.WorkloadAPIVolume, wellknown.WorkloadAPIDir)
	}
	text += x.environment(task.Body)
	if text != "" {
		indent := indentAt(x.job.source.Data, task.TypeRange.Start.Byte)
		x.insertInto(task.OpenBraceRange, task.CloseBraceRange, "", indented(text, indent))
	}
}

// mounts reports whether a task mounts the volume already.
func (x *extractor) mounts(task *hclsyntax.Body) bool {
	for _, b := range task.Blocks {
		if attr := b.Body.Attributes["volume"]; b.Type == "volume_mount" && attr != nil {
			if volume, _ := literalText(attr.Expr); volume == wellknown.WorkloadAPIVolume {
				return true
			}
		}
	}
	return false
}

// environment says in the environment of a task where the socket is, unless the task does. It
// returns a block if the task has none.
func (x *extractor) environment(task *hclsyntax.Body) string {
	src := x.job.source.Data
	where := []pair{{wellknown.WorkloadAPIEnv, wellknown.WorkloadAPIAddress}}
	if attr := task.Attributes["env"]; attr != nil {
		object, literal := attr.Expr.(*hclsyntax.ObjectConsExpr)
		if !literal {
			r := attr.Expr.Range()
			x.edit(r.Start.Byte, r.Start.Byte, "merge({ "+joinPairs(where, "")+" }, ")
			x.edit(r.End.Byte, r.End.Byte, ")")
			return ""
		}
		for _, item := range object.Items {
			if key, _ := literalText(item.KeyExpr); key == wellknown.WorkloadAPIEnv {
				return ""
			}
		}
		x.insertPairs(where, object.OpenRange, object.SrcRange.End.Byte-1, indentAt(src, attr.NameRange.Start.Byte))
		return ""
	}
	for _, b := range task.Blocks {
		if b.Type != "env" {
			continue
		}
		if b.Body.Attributes[wellknown.WorkloadAPIEnv] == nil {
			indent := indentAt(src, b.TypeRange.Start.Byte)
			x.insertInto(b.OpenBraceRange, b.CloseBraceRange, indented("\n  "+joinPairs(where, ""), indent), "")
		}
		return ""
	}
	return "\n\n  env {\n    " + joinPairs(where, "") + "\n  }"
}
