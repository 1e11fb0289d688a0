// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/posener/complete"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
)

// graphCheckTimeout bounds how long a job command waits for the controller,
// without which it can do its work.
const graphCheckTimeout = 5 * time.Second

// jobMeta is what the job commands have in common.
type jobMeta struct {
	Meta

	nomadConfig *nomad.Config
}

// job is a job file on its way to Nomad.
type job struct {
	source    hcl.Source
	variables string // for Nomad's parser
	spec      *hcl.Job
	parsed    *nomad.Job
	namespace string // that it runs in
	client    *nomad.Client
}

const jobOptions = `
Job Options:

  -var 'key=value'
    Value of a variable of the job file; may be given several times.

  -var-file=<path>
    File of variables in HCL, or in JSON if it ends in .json; may be given
    several times. Later files override earlier ones, -var overrides files.

  -namespace=<namespace>
    Nomad namespace of a job whose file does not name one. Overrides
    NOMAD_NAMESPACE.

  -region=<region>
    Nomad region of a job whose file does not name one. Overrides NOMAD_REGION.

  -nomad-address=<addr>
    Address of Nomad. Overrides NOMAD_ADDR. Nomad's other environment variables,
    such as NOMAD_TOKEN and NOMAD_CACERT, hold too.
`

func (m *jobMeta) jobFlags(flags *flag.FlagSet) {
	m.controllerFlags(flags)
	m.nomadConfig = nomad.DefaultConfig()
	m.variableFlags(flags)
	flags.StringVar(&m.nomadConfig.Namespace, "namespace", m.nomadConfig.Namespace, "")
	flags.StringVar(&m.nomadConfig.Region, "region", m.nomadConfig.Region, "")
	flags.StringVar(&m.nomadConfig.Address, "nomad-address", m.nomadConfig.Address, "")
}

// AutocompleteArgs implements cli.CommandAutocomplete.
func (m *jobMeta) AutocompleteArgs() complete.Predictor { return complete.PredictFiles("*.hcl") }

func jobPredictions(more complete.Flags) complete.Flags {
	flags := controllerPredictions(complete.Flags{
		"-var": complete.PredictAnything, "-var-file": complete.PredictFiles("*"), "-namespace": complete.PredictAnything,
		"-region": complete.PredictAnything, "-nomad-address": complete.PredictAnything,
	})
	for name, p := range more {
		flags[name] = p
	}
	return flags
}

// read reads the one job file that the arguments name and rewrites it. Like
// the steps that follow it says itself what is wrong.
func (m *jobMeta) read(flags *flag.FlagSet) (*job, bool) {
	if flags.NArg() != 1 {
		m.usage(flags.Name(), "This command takes one argument: <path>")
		return nil, false
	}
	j := &job{}
	var err error
	if j.source, err = readFile(flags.Arg(0)); err != nil {
		m.fail("reading the job", err)
		return nil, false
	}
	var files []hcl.Source
	for _, name := range m.varFiles {
		f, err := readFile(name)
		if err != nil {
			m.fail("reading variables", err)
			return nil, false
		}
		files = append(files, f)
	}
	var diags hcl.Diagnostics
	j.spec, diags = hcl.ExtractConnectivity(j.source)
	m.diagnose(diags)
	if diags.HasErrors() {
		return nil, false
	}
	j.variables, diags = hcl.JobVariables(j.source, files, m.vars)
	m.diagnose(diags)
	return j, !diags.HasErrors()
}

func readFile(name string) (hcl.Source, error) {
	if name == "-" {
		data, err := io.ReadAll(os.Stdin)
		return hcl.Source{Name: "<stdin>", Data: data}, err
	}
	data, err := os.ReadFile(name)
	return hcl.Source{Name: name, Data: data}, err
}

// parse has Nomad parse the rewritten job.
func (m *jobMeta) parseJob(j *job) bool {
	client, err := nomad.NewClient(m.nomadConfig)
	if err != nil {
		m.fail("reaching Nomad", err)
		return false
	}
	j.client = client
	j.parsed, err = client.Jobs().ParseHCLOpts(&nomad.JobsParseRequest{JobHCL: string(j.spec.Plain), Variables: j.variables})
	if err != nil {
		m.fail("parsing the job", j.explain(err))
		return false
	}
	j.namespace = m.nomadConfig.Namespace
	if j.parsed.Namespace != nil {
		j.namespace = *j.parsed.Namespace
	}
	if j.namespace == "" {
		j.namespace = nomad.DefaultNamespace
	}
	client.SetNamespace(j.namespace)
	if j.parsed.Region != nil {
		client.SetRegion(*j.parsed.Region)
	}
	if j.parsed.ID == nil {
		m.fail("parsing the job", errors.New("the file holds no job block"))
		return false
	}
	return true
}

// nomadPlace is how Nomad's parser names a place in what it was sent.
var nomadPlace = regexp.MustCompile(`input\.hcl:(\d+),(\d+)(-\d+(,\d+)?)?`)

// explain turns an error of Nomad's API into what it says, with places in the
// job file as it was written.
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
	return fmt.Errorf("nomad answers %d: %s", resp.StatusCode(), text)
}

// checkGraph checks the job's stanzas against the graph in force. A controller
// that does not answer is a warning: it will check the stanzas itself when the
// workloads start.
func (m *jobMeta) checkGraph(ctx context.Context, j *job) bool {
	if len(j.spec.Stanzas) == 0 {
		m.UI.Warn("Warning: the job has no connectivity stanza, so it is handed to Nomad as it is.")
		return true
	}
	ctx, stop := context.WithTimeout(ctx, graphCheckTimeout)
	defer stop()
	client, err := m.client()
	if err != nil {
		m.fail("reaching the controller", err)
		return false
	}
	reply, err := client.Graph(ctx)
	if err != nil {
		m.UI.Warn(fmt.Sprintf("Warning: the connectivity stanzas were not checked against the graph in force: %s", err))
		return true
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
		if s, ok := j.spec.Stanzas[*g.Name]; ok {
			diags = append(diags, s.Check(applied, j.workload(g), time.Now())...)
		}
	}
	m.diagnose(diags)
	return !diags.HasErrors()
}

// workload is what the scheduler will attest of a group's allocations.
func (j *job) workload(g *nomad.TaskGroup) fabric.Workload {
	w := fabric.Workload{Namespace: j.namespace, Job: *j.parsed.ID, Group: *g.Name}
	services := slices.Clone(g.Services)
	for _, t := range g.Tasks {
		services = append(services, t.Services...)
	}
	for _, s := range services {
		w.Services = append(w.Services, fabric.WorkloadService{Name: s.Name, Tags: s.Tags, Meta: s.Meta})
	}
	return w
}
