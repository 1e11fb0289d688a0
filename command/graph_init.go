// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/hcl"
	"github.com/sif-project/sif/internal/graphdraft"
)

// GraphInitCommand is sif graph init.
type GraphInitCommand struct {
	Meta
	from, out, domain string
	namespaces        stringList
	nomad             *nomad.Config
}

// Synopsis implements cli.Command.
func (c *GraphInitCommand) Synopsis() string { return "Draft a service graph of what runs today" }

func (c *GraphInitCommand) usage() string {
	return `
Usage: sif graph init -from=nomad [options]

  Drafts a service graph from the jobs that Nomad runs, and applies nothing.
  Each group becomes a service; each connection that a job declares becomes a
  contract with the port of whoever answers: the upstreams of Consul Connect,
  the services that templates ask for (service, nomadService), and names of
  Consul's DNS in templates and environment variables. Each Nomad namespace is
  a domain, in audit mode: what no contract allows passes and is listed by
  'sif status'. The bindings of the domains are drafted as well. Comments say
  where everything comes from, and what the jobs do not say: clients outside,
  and ports that Nomad chooses.

  Names that the fabric does not allow are made into ones that it allows. The
  same jobs make the same draft.

  The exit code is 0 on success, and 1 on an error, also if no job runs.
`
}

func (c *GraphInitCommand) options() []*flag.FlagSet {
	c.nomad, c.namespaces = nomad.DefaultConfig(), nil
	o := newOptions("Init Options")
	o.StringVar(&c.from, "from", "", "Where from: `nomad`. Required.")
	o.StringVar(&c.out, "o", "", "The `path` to the file that is written, which must not exist. Default: standard output")
	o.StringVar(&c.domain, "domain", "", "Draft a single domain with this `name`. Default: a domain for each Nomad namespace.")
	o.Var(&c.namespaces, "namespace", "Draft the jobs of this Nomad `namespace` only. May be given several times. Default: all namespaces.")
	o.StringVar(&c.nomad.Region, "region", c.nomad.Region, "The Nomad `region`. Overrides NOMAD_REGION.")
	o.StringVar(&c.nomad.Address, "nomad-address", c.nomad.Address,
		"The `address` of Nomad. Overrides NOMAD_ADDR. Nomad's other environment variables, such as NOMAD_TOKEN and NOMAD_CACERT, apply.")
	return []*flag.FlagSet{o}
}

func (c *GraphInitCommand) run(ctx context.Context, _ []string) error {
	if c.from != "nomad" {
		return usagef("-from: %q is not a source; there is one: -from=nomad", c.from)
	}
	if c.domain != "" {
		if err := fabric.CheckName(c.domain); err != nil {
			return usagef("-domain: %v", err)
		}
		if c.domain == fabric.ReservedDomain {
			return usagef("-domain: %q is the fabric's own", c.domain)
		}
	}
	if len(c.namespaces) == 0 {
		c.namespaces = stringList{nomad.AllNamespacesNamespace}
	}
	jobs, err := c.jobs(ctx)
	if err != nil {
		return fmt.Errorf("reading the jobs: %w", err)
	}
	draft := graphdraft.Make(jobs, c.domain)
	if len(draft.Graph.Domains) == 0 {
		return fmt.Errorf("drafting the graph: Nomad runs no job in %s", c.place())
	}
	text := hcl.EncodeCommented(draft.Graph, hcl.Comments{
		Domains: draft.Domains, Bindings: draft.Bindings, Services: draft.Services, Contracts: draft.Contracts,
	})
	if err := c.check(text); err != nil {
		return err
	}
	if c.out == "" {
		c.UI.Output(strings.TrimSuffix(string(text), "\n"))
		return nil
	}
	if err := writeNew(c.out, text); err != nil {
		return fmt.Errorf("writing the draft: %w", err)
	}
	c.UI.Output(fmt.Sprintf("Drafted %s in %s. Read it, correct it, then: sif graph plan %s", summary(draft.Graph), c.out, c.out))
	return nil
}

func (c *GraphInitCommand) place() string {
	if slices.Contains(c.namespaces, nomad.AllNamespacesNamespace) {
		return "any namespace that the token may read"
	}
	return "the namespaces " + strings.Join(c.namespaces, ", ")
}

// jobs reads the jobs that run.
func (c *GraphInitCommand) jobs(ctx context.Context) ([]*nomad.Job, error) {
	client, err := nomad.NewClient(c.nomad)
	if err != nil {
		return nil, err
	}
	var jobs []*nomad.Job
	seen := map[string]bool{}
	for _, namespace := range c.namespaces {
		stubs, _, err := client.Jobs().List((&nomad.QueryOptions{Namespace: namespace}).WithContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("list the jobs of Nomad's namespace %q at %s: %w", namespace, client.Address(), err)
		}
		for _, stub := range stubs {
			id := stub.Namespace + "/" + stub.ID
			if seen[id] || stub.ParentID != "" {
				continue
			}
			seen[id] = true
			job, _, err := client.Jobs().Info(stub.ID, (&nomad.QueryOptions{Namespace: stub.Namespace}).WithContext(ctx))
			if missing := (nomad.UnexpectedResponseError{}); errors.As(err, &missing) && missing.StatusCode() == 404 {
				continue // it was just purged
			}
			if err != nil {
				return nil, fmt.Errorf("read job %q of Nomad's namespace %q: %w", stub.ID, stub.Namespace, err)
			}
			jobs = append(jobs, job)
		}
	}
	return jobs, nil
}

// check reads the draft as sif graph validate does. A draft that it refuses is not given out.
func (c *GraphInitCommand) check(text []byte) error {
	if _, diags := hcl.DecodeGraph(hcl.Options{}, hcl.Source{Name: "draft.sif.hcl", Data: text}); diags.HasErrors() {
		return c.diagnose(diags)
	}
	return nil
}

// writeNew writes a file that does not exist yet.
func writeNew(path string, text []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists already: remove it, or give another path", path)
	}
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err := errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
