// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package hcl

import (
	"bytes"
	"fmt"
	"strings"

	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

// NetworkMode is the network mode of groups that are connected by the fabric.
const NetworkMode = "cni/" + wellknown.CNINetwork

// The keys of a group's meta from which the controller learns what the group requests.
// MetaOriginate and MetaRespond are comma-separated lists of contracts. In a plain Nomad job users
// write them by hand.
const (
	MetaService   = "sif.service"
	MetaOriginate = "sif.originate"
	MetaRespond   = "sif.respond"
	// MetaVM is "true" if the group is a virtual machine. The CNI argument wellknown.ArgVM must say
	// the same.
	MetaVM = wellknown.MetaVM
)

// argService is a CNI argument that shows people and logs which service the group requests. It is
// not trusted.
const argService = "SIF_SERVICE"

// Stanza is a connectivity block: what the instances of a group request.
type Stanza struct {
	Service   string   // "domain/service"; empty: the service that selects the group
	Originate []string // contracts as written: "name" (of the service's domain) or "domain/name"
	Respond   []string // likewise; if both lists are empty, all roles of the service
	VM        bool     // the group is a virtual machine
	// WorkloadAPI says that the tasks of the group are to have the SPIFFE Workload API.
	WorkloadAPI bool
	Pos         fabric.Position // of the block

	source    Source
	block     hcl2.Range
	service   hcl2.Range
	originate []text
	respond   []text
}

// Job is a Nomad job file with its connectivity blocks extracted.
type Job struct {
	Plain   []byte            // the job file for Nomad, without the blocks
	Stanzas map[string]Stanza // by group

	source Source
	body   *hclsyntax.Body
	edits  []edit
}

var stanzaSchema = &hcl2.BodySchema{Attributes: []hcl2.AttributeSchema{{Name: "service"}, {Name: "originate"}, {Name: "respond"}, {Name: "vm"}, {Name: "workload_api"}}}

// ExtractConnectivity removes the connectivity blocks from a Nomad job file, and writes what they
// request as plain Nomad: network mode NetworkMode and the Meta keys, for a virtual machine what
// QEMU must be told, and the mounts of the Workload API. All other text is unchanged. The stanza
// must consist of literals; expressions elsewhere may refer to variables, locals and functions. The
// job is nil if the diagnostics contain errors. JSON job files are not supported.
func ExtractConnectivity(src Source) (*Job, Diagnostics) {
	if strings.HasSuffix(src.Name, ".json") || bytes.HasPrefix(bytes.TrimSpace(src.Data), []byte("{")) {
		return nil, Diagnostics{{Severity: Error, Summary: src.Name + " is a JSON job file, which cannot have a connectivity stanza",
			Detail: fmt.Sprintf("Write it in HCL, or set network mode %q and the meta keys %s, %s and %s by hand and use nomad job run -json.", NetworkMode, MetaService, MetaOriginate, MetaRespond)}}
	}
	file, parseDiags := hclsyntax.ParseConfig(src.Data, src.Name, hcl2.InitialPos)
	if parseDiags.HasErrors() {
		return nil, newDiagnostics(parseDiags, src)
	}
	body := file.Body.(*hclsyntax.Body)
	x := &extractor{
		decoder: decoder{why: "The stanza is read before Nomad evaluates the job, so its values must be literals."},
		job:     &Job{Stanzas: map[string]Stanza{}, source: src, body: body},
		groups:  map[string]hcl2.Range{},
	}
	x.walk(body, nil)
	diags := newDiagnostics(x.diags, src)
	if diags.HasErrors() {
		return nil, diags
	}
	x.job.Plain = applyEdits(src.Data, x.job.edits)
	return x.job, diags
}

// extractor collects the stanzas of a job file and the edits that replace them.
type extractor struct {
	decoder
	job    *Job
	groups map[string]hcl2.Range
}

// walk finds groups, and stanzas in places where they would have no effect. path are the types of
// the enclosing blocks.
func (x *extractor) walk(body *hclsyntax.Body, path []string) {
	for _, b := range body.Blocks {
		here := strings.Join(append(path, b.Type), "/")
		switch {
		case b.Type == "config":
			continue // configuration of the task driver
		case b.Type == "dynamic" && len(b.Labels) == 1 && b.Labels[0] == "connectivity",
			b.Type == "connectivity" && here != "job/group/connectivity":
			x.report(errorAt(b.DefRange(), "Move it directly into the group that it applies to.",
				"a connectivity block must be directly inside a group"))
			continue
		case here == "job/group":
			x.group(b)
		}
		x.walk(b.Body, append(path, b.Type))
	}
}

func (x *extractor) group(group *hclsyntax.Block) {
	var stanza *hclsyntax.Block
	for _, b := range group.Body.Blocks {
		switch {
		case b.Type != "connectivity":
		case stanza != nil:
			x.report(errorAt(b.DefRange(), "Merge the two blocks.", "the group already has a connectivity block at %s", position(stanza.DefRange())))
			return
		default:
			stanza = b
		}
	}
	if stanza == nil || len(group.Labels) != 1 {
		return // Nomad reports an invalid group
	}
	name := group.Labels[0]
	if first, dup := x.groups[name]; dup {
		x.report(errorAt(group.LabelRanges[0], "Rename one of the two.", "group %q is already declared at %s", name, position(first)))
		return
	}
	x.groups[name] = group.LabelRanges[0]
	if len(stanza.Labels) > 0 {
		x.report(errorAt(stanza.LabelRanges[0], "Remove the label, and name the service inside the block: service = \"domain/service\".",
			"a connectivity block takes no label"))
		return
	}
	s := x.stanza(stanza)
	x.job.Stanzas[name] = s
	x.rewrite(group.Body, stanza, s)
}

func (x *extractor) stanza(b *hclsyntax.Block) Stanza {
	s := Stanza{Pos: position(b.DefRange()), source: x.job.source, block: b.DefRange(), service: b.DefRange()}
	content := x.content(b.Body, stanzaSchema, subject{kind: "a connectivity block"})
	if t, ok := x.stringAttr(content, "service"); ok {
		if _, err := fabric.ParseRef(t.value); err != nil {
			x.report(errorAt(t.rng, `Write "domain/service".`, "%s", err))
		}
		s.Service, s.service = t.value, t.rng
	}
	s.originate = x.contracts(content, "originate")
	s.respond = x.contracts(content, "respond")
	s.Originate, s.Respond = values(s.originate), values(s.respond)
	s.VM = x.boolAttr(content, "vm", false)
	s.WorkloadAPI = x.boolAttr(content, "workload_api", false)
	return s
}

func (x *extractor) contracts(content *hcl2.BodyContent, name string) []text {
	attr := content.Attributes[name]
	if attr == nil {
		return nil
	}
	if isEmptyList(attr) {
		x.report(errorAt(attr.Expr.Range(), "Name at least one contract, or remove the argument. A stanza without contracts requests every role of the service.",
			"argument %q is an empty list", name))
	}
	list := x.stringList(content, name)
	for _, t := range list {
		var err error
		if strings.Contains(t.value, "/") {
			_, err = fabric.ParseRef(t.value)
		} else {
			err = fabric.CheckName(t.value)
		}
		if err != nil {
			x.report(errorAt(t.rng, `Write the name of a contract, or "domain/contract" for one of another domain.`, "%s", err))
		}
	}
	return list
}
