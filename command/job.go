// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/posener/complete"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
	"github.com/sif-project/sif/internal/nomadjob"
)

// graphCheckTimeout limits how long a job command waits for the controller, which it can do
// without.
const graphCheckTimeout = 5 * time.Second

// jobMeta is the common part of the job commands.
type jobMeta struct {
	Meta
	variables variables
	nomad     *nomad.Config
}

// job is a job file on its way to Nomad.
type job struct {
	source    hcl.Source
	variables string // for Nomad's parser
	spec      *hcl.Job
	parsed    *nomad.Job
	namespace string // in which Nomad runs the job
	client    *nomad.Client
}

// jobOptions returns the sections of options of all job commands.
func (m *jobMeta) jobOptions() []*flag.FlagSet {
	m.nomad = nomad.DefaultConfig()
	o := newOptions("Job Options")
	m.variables.add(o, "Set a variable of the job file, as `name=value`. May be given several times.",
		"The `path` to a file with values of variables, in HCL, or in JSON if its name ends in .json. May be given several times: "+
			"later files override earlier ones, and -var overrides files.")
	o.StringVar(&m.nomad.Namespace, "namespace", m.nomad.Namespace,
		"The Nomad `namespace` of a job whose file does not name one. Overrides NOMAD_NAMESPACE.")
	o.StringVar(&m.nomad.Region, "region", m.nomad.Region,
		"The Nomad `region` of a job whose file does not name one. Overrides NOMAD_REGION.")
	o.StringVar(&m.nomad.Address, "nomad-address", m.nomad.Address,
		"The `address` of Nomad. Overrides NOMAD_ADDR. Nomad's other environment variables, such as NOMAD_TOKEN and NOMAD_CACERT, apply.")
	return []*flag.FlagSet{m.generalOptions(), o}
}

func (m *jobMeta) arguments() arguments {
	return arguments{min: 1, max: 1, words: "one argument: <path>", predict: complete.PredictFiles("*.hcl")}
}

// read reads a job file and rewrites its stanzas as plain Nomad.
func (m *jobMeta) read(ctx context.Context, path string) (*job, error) {
	j := &job{}
	var err error
	if j.source, err = readSource(ctx, path); err != nil {
		return nil, fmt.Errorf("reading the job: %w", err)
	}
	files, err := m.variables.files(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading values of variables: %w", err)
	}
	var diags hcl.Diagnostics
	j.spec, diags = hcl.ExtractConnectivity(j.source)
	if err := m.diagnose(diags); err != nil {
		return nil, err
	}
	j.variables, diags = hcl.JobVariables(j.source, files, m.variables.settings)
	return j, m.diagnose(diags)
}

// parse sends the rewritten job to Nomad's parser.
func (m *jobMeta) parse(ctx context.Context, j *job) error {
	client, err := nomad.NewClient(m.nomad)
	if err != nil {
		return fmt.Errorf("reaching Nomad: %w", err)
	}
	j.client, j.parsed = client, &nomad.Job{}
	// Jobs().ParseHCLOpts takes no context.
	_, err = client.Raw().Write("/v1/jobs/parse", &nomad.JobsParseRequest{JobHCL: string(j.spec.Plain), Variables: j.variables}, j.parsed, writeOptions(ctx))
	if err != nil {
		return fmt.Errorf("parsing the job: %w", j.explain(err))
	}
	j.namespace = m.nomad.Namespace
	if j.parsed.Namespace != nil {
		j.namespace = *j.parsed.Namespace
	}
	j.namespace = cmp.Or(j.namespace, nomad.DefaultNamespace)
	client.SetNamespace(j.namespace)
	j.parsed.Namespace = &j.namespace
	if j.parsed.Region != nil {
		client.SetRegion(*j.parsed.Region)
	}
	if j.parsed.ID == nil {
		return errors.New("parsing the job: the file has no job block")
	}
	return nil
}

func writeOptions(ctx context.Context) *nomad.WriteOptions {
	return (&nomad.WriteOptions{}).WithContext(ctx)
}

// warn shows the warnings of a reply of Nomad.
func (m *jobMeta) warn(warnings string) {
	if warnings != "" {
		m.UI.Warn("Job Warnings:\n" + warnings)
	}
}

// nomadPlace matches how Nomad's parser names a position in its input.
var nomadPlace = regexp.MustCompile(`input\.hcl:(\d+),(\d+)(-\d+(,\d+)?)?`)

// explain returns the message of an error of Nomad's API, with positions in the original job file.
func (j *job) explain(err error) error {
	var resp nomad.UnexpectedResponseError
	if !errors.As(err, &resp) || !resp.HasBody() {
		return err
	}
	text := strings.TrimSpace(resp.Body())
	if !strings.Contains(text, "var content") {
		text = nomadPlace.ReplaceAllStringFunc(text, func(place string) string {
			part := nomadPlace.FindStringSubmatch(place)
			line, err := strconv.Atoi(part[1])
			if err != nil {
				return place
			}
			return fmt.Sprintf("%s:%d:%s", j.source.Name, j.spec.Line(line), part[2])
		})
	}
	return fmt.Errorf("nomad answered %d: %s", resp.StatusCode(), text)
}

// check reports what in a job would be refused when its workloads start, by the job itself and by
// the graph in force.
func (m *jobMeta) check(ctx context.Context, j *job) error {
	for _, note := range j.needs() {
		m.UI.Info(note)
	}
	refused := m.diagnose(slices.Concat(j.escapes(), j.machines(), j.gaps(), j.resolvers()))
	if err := m.checkGraph(ctx, j); err != nil {
		return err
	}
	return refused
}

// escapes reports how the tasks of connected groups leave the network of their group, or could.
func (j *job) escapes() hcl.Diagnostics {
	var diags hcl.Diagnostics
	for _, g := range j.connected() {
		for _, e := range nomadjob.Escapes(g) {
			place := hcl.Place{Group: *g.Name, Task: e.Task, Argument: "driver"}
			if e.Key != "" {
				place.Blocks, place.Argument = []hcl.Block{{Type: "config"}}, e.Key
			}
			severity, what := hcl.Error, fmt.Sprintf("group %q is connected by the fabric, but its %s", *g.Name, e)
			if !e.Leaves {
				severity = hcl.Warning
			}
			diags = append(diags, j.spec.Diagnose(severity, place, what, e.Remedy))
		}
	}
	return diags
}

// machines reports what stands against connected groups as virtual machines.
func (j *job) machines() hcl.Diagnostics {
	var diags hcl.Diagnostics
	for _, g := range j.connected() {
		for _, f := range nomadjob.Faults(g) {
			severity := hcl.Warning
			if f.Refused {
				severity = hcl.Error
			}
			diags = append(diags, j.spec.Diagnose(severity, j.placeOf(g, f), fmt.Sprintf("in group %q, %s", *g.Name, f), f.Remedy))
		}
	}
	return diags
}

// placeOf returns where in the job file a fault is.
func (j *job) placeOf(g *nomad.TaskGroup, f nomadjob.Fault) hcl.Place {
	place := hcl.Place{Group: *g.Name, Task: f.Task, Argument: f.Key}
	switch {
	case f.Task == "":
		place.Argument = "connectivity"
	case f.Key != "" && f.Key != "driver":
		place.Blocks = []hcl.Block{{Type: "config"}}
	}
	return place
}

// needs tells what Nomad's clients must allow the guests of connected groups, because only they
// know whether they do.
func (j *job) needs() []string {
	var notes []string
	for _, g := range j.connected() {
		if !nomadjob.IsVM(g) {
			continue
		}
		for _, t := range nomadjob.Guests(g) {
			if t.Driver != "qemu" {
				continue
			}
			n := nomadjob.NeedsOf(t)
			lines := []string{fmt.Sprintf("args_allowlist = [%s]   # if there is such a list", quoteList(n.Options))}
			if n.Image != "" {
				lines = append(lines, fmt.Sprintf("image_paths    = [%q]", n.Image))
			}
			notes = append(notes, fmt.Sprintf("Note: Nomad's clients must allow the virtual machine of group %q, in plugin \"qemu\" { config { ... } }:\n  %s",
				*g.Name, strings.Join(lines, "\n  ")))
		}
	}
	return notes
}

func quoteList(list []string) string {
	var quoted []string
	for _, s := range list {
		quoted = append(quoted, strconv.Quote(s))
	}
	return strings.Join(quoted, ", ")
}

// gaps reports what in the service blocks of connected groups is not known. What only the placement
// tells is left to the check of the graph.
func (j *job) gaps() hcl.Diagnostics {
	var diags hcl.Diagnostics
	for _, g := range j.connected() {
		gaps := nomadjob.Describe(j.parsed, g, nil).Gaps
		if canary, differs := nomadjob.DescribeCanary(j.parsed, g); differs {
			gaps = append(gaps, slices.DeleteFunc(canary.Gaps, func(gap nomadjob.Gap) bool { return slices.Contains(gaps, gap) })...)
		}
		for _, gap := range gaps {
			if gap.Later {
				continue
			}
			place := hcl.Place{Group: *g.Name, Task: gap.Task, Blocks: []hcl.Block{{Type: "service", Index: gap.Service}}, Argument: gap.Key}
			severity, remedy := hcl.Warning, "A selector does not match it."
			if gap.Refused() {
				place.Blocks = append(place.Blocks, hcl.Block{Type: "check", Index: gap.Check})
				severity, remedy = hcl.Error, "The node could not reach the check."
			}
			diags = append(diags, j.spec.Diagnose(severity, place, gap.String(), remedy))
		}
	}
	return diags
}

// resolvers reports dns blocks that take the fabric's resolver away. A group with a stanza has
// none: the resolver was put in front.
func (j *job) resolvers() hcl.Diagnostics {
	var diags hcl.Diagnostics
	for _, g := range j.connected() {
		if why, remedy := nomadjob.ForeignResolver(g); why != "" {
			place := hcl.Place{Group: *g.Name, Blocks: []hcl.Block{{Type: "network"}, {Type: "dns"}}, Argument: "servers"}
			diags = append(diags, j.spec.Diagnose(hcl.Error, place, why, remedy))
		}
	}
	return diags
}

// connected returns the groups that the fabric connects, by a stanza or by their network mode.
func (j *job) connected() []*nomad.TaskGroup {
	return slices.DeleteFunc(slices.Clone(j.parsed.TaskGroups), func(g *nomad.TaskGroup) bool {
		return g.Name == nil || len(g.Networks) == 0 || g.Networks[0].Mode != hcl.NetworkMode
	})
}

// checkGraph checks the stanzas of a job against the graph in force. If the controller does not
// answer, it warns: the controller checks the stanzas again when the workloads start.
func (m *jobMeta) checkGraph(ctx context.Context, j *job) error {
	if len(j.spec.Stanzas) == 0 {
		m.UI.Warn("Warning: the job has no connectivity stanza, so it is handed to Nomad as it is.")
		return nil
	}
	ctx, stop := context.WithTimeout(ctx, graphCheckTimeout)
	defer stop()
	client, err := m.client()
	if err != nil {
		return err
	}
	reply, err := client.Graph(ctx)
	if err != nil {
		m.UI.Warn(fmt.Sprintf("Warning: the connectivity stanzas were not checked against the graph in force: %s", err))
		return nil
	}
	if reply.Graph == nil {
		reply.Graph = &fabric.Graph{}
	}
	applied := hcl.Applied{Graph: reply.Graph, Partial: reply.Partial, Waiting: reply.Waiting}
	var diags hcl.Diagnostics
	for _, g := range j.parsed.TaskGroups {
		if g.Name == nil {
			continue
		}
		s, ok := j.spec.Stanzas[*g.Name]
		if !ok {
			continue
		}
		check := func(d nomadjob.Description) hcl.Diagnostics {
			later := map[string]bool{}
			for _, gap := range d.Gaps {
				later[gap.Filled] = later[gap.Filled] || gap.Later
			}
			return s.Check(applied, d.Workload, later, time.Now())
		}
		found := check(nomadjob.Describe(j.parsed, g, nil))
		diags = append(diags, found...)
		if canary, differs := nomadjob.DescribeCanary(j.parsed, g); differs {
			for _, d := range check(canary) {
				if !slices.Contains(found, d) {
					d.Summary += ", as a canary with its canary_tags and canary_meta"
					diags = append(diags, d)
				}
			}
		}
	}
	return m.diagnose(diags)
}
