// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/setup/setuptest"
	"github.com/sif-project/sif/internal/testhost"
)

const nomadBootstrap = "2b778dd9-f5f1-6f29-b4b4-9a5fa948757a"

// A real Nomad with ACLs, whose only client is node aws1/w1 under another name, as a cloud
// generates them, in the default datacenter.
func TestNomad(t *testing.T) {
	testhost.RequireRoot(t)
	w := newWorld(t)
	server, _ := testhost.Nomad(t, `
name = "IP-10-0-0-1.eu-central-1.Compute.Internal"
client {
  node_class = "database"
}
acl {
  enabled = true
}`)
	ctx := t.Context()
	client := func(token string) *nomadapi.Client {
		c, err := nomadapi.NewClient(&nomadapi.Config{Address: "http://" + server.Address, SecretID: token})
		must.NoError(t, err)
		return c
	}
	root := client(nomadBootstrap)
	eventually(t, func() error {
		_, _, err := root.ACLTokens().BootstrapOpts(nomadBootstrap, nil)
		return err
	})
	token := setuptest.Nomad(t, root, setuptest.Settings(testFabric, trustDomain))
	_, err := root.Namespaces().Register(&nomadapi.Namespace{Name: "other"}, nil)
	must.NoError(t, err)

	c := w.fresh(t, NewNomad(func() *nomadapi.Client { return client(token) }))
	w1, w2 := w.node(t, c, "w1"), w.node(t, c, "w2")
	w1.register(t, "127.0.0.1")
	w2.register(t, "10.0.0.2")
	d := testDomain("app")
	d.Services = append(d.Services, fabric.Service{Name: "news", Selectors: []fabric.Selector{{Kind: fabric.SelectConsul, Namespace: fabric.DefaultNamespace, Service: "news"}}})
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(d)})
	must.NoError(t, err)

	web := runJob(t, root, "default", "app-web", "proxy", map[string]string{"sif.originate": "frontend"})
	admit := func(node *testNode, alloc string, host byte) (fabric.Admission, error) {
		req := request4(0, host)
		if node == w2 {
			req.IPv4, req.IPv6 = netip.AddrFrom4([4]byte{100, 64, 1, host}), netip.MustParseAddr(fmt.Sprintf("fd5f:7369:6600:1::%x", host))
		}
		req.Allocation = alloc
		reply, err := node.Admit(ctx, req)
		if err != nil {
			return fabric.Admission{}, err
		}
		var a fabric.Admission
		return a, node.source.Keys().Verify(reply.Admission, fabric.KindAdmission, &a)
	}
	a, err := admit(w1, web, 10)
	must.NoError(t, err)
	must.Eq(t, web, a.Endpoint)
	must.Eq(t, fabric.Origin{Namespace: "default", Job: "app-web", Group: "proxy"}, a.Origin)
	must.Eq(t, "app/proxy >app/frontend", a.Identity().Key())
	must.Eq(t, []fabric.Check{{Protocol: fabric.TCP, Port: 8080}, {Protocol: fabric.TCP, Port: 9100}}, a.Checks)

	// The expected node has no influence on the answer.
	nomad := NewNomad(func() *nomadapi.Client { return root })
	place, err := nomad.Placement(ctx, web, "")
	must.NoError(t, err)
	for _, likely := range []string{place.Machine.ID, "00000000-0000-0000-0000-000000000000", "no ID"} {
		again, err := nomad.Placement(ctx, web, likely)
		must.NoError(t, err)
		must.Eq(t, place, again)
	}

	// A node asks for the allocation of another node.
	_, err = admit(w2, web, 10)
	must.StrContains(t, code(t, api.CodeNotPlaced, err).Message, `was not placed on node aws1/w2: Nomad placed it on Nomad node `+place.Machine.ID+` ("IP-10-0-0-1.eu-central-1.Compute.Internal" in datacenter "dc1"): Nomad node `+place.Machine.ID+` is node aws1/w1 of the fabric already`)

	// What Nomad knows of its nodes.
	m, err := nomad.Machine(ctx, place.Machine.ID)
	must.NoError(t, err)
	must.Eq(t, place.Machine, m)
	must.False(t, m.Down)
	for _, id := range []string{place.Machine.ID[:8], "00000000-0000-4000-8000-000000000000", ""} {
		_, err = nomad.Machine(ctx, id)
		must.ErrorIs(t, err, ErrNoMachine)
	}
	at := func(address string) []string {
		list, err := nomad.MachinesAt(ctx, netip.MustParseAddr(address))
		must.NoError(t, err)
		var ids []string
		for _, m := range list {
			ids = append(ids, m.ID)
		}
		return ids
	}
	must.Eq(t, []string{m.ID}, at("127.0.0.1"))
	must.SliceEmpty(t, at("192.0.2.77"))
	for _, a := range m.Addresses { // also one that is not in the list of nodes
		must.Eq(t, []string{m.ID}, at(a.String()))
	}
	bound, err := c.operator.BindNode(ctx, w1.id, api.BindRequest{}, "")
	must.NoError(t, err)
	must.Eq(t, api.BindReply{Node: w1.id, NomadNode: m.ID, Name: m.Name, Datacenter: "dc1", Before: m.ID}, bound)

	// A prefix of an allocation's ID does not name the allocation.
	_, err = admit(w1, web[:8]+"-0000-0000-0000-000000000000", 11)
	code(t, api.CodeNotPlaced, err)

	// The same job name and the same service block in another namespace.
	foreign := runJob(t, root, "other", "app-web", "proxy", nil)
	_, err = admit(w1, foreign, 11)
	must.StrContains(t, code(t, api.CodeNoSelector, err).Message,
		`the workload (namespace "other", job "app-web", group "proxy") matches no selector of the graph; tried: app/proxy: nomad(namespace=default, job=app-web, group=proxy): namespace is "other"; `)

	// A job that matches a service block, and one that matches nothing.
	news := runJob(t, root, "default", "paper", "g", nil, "news")
	a, err = admit(w1, news, 12)
	must.NoError(t, err)
	must.Eq(t, "app/news", a.Service.String())
	foreignNews := runJob(t, root, "other", "paper", "g", nil, "news")
	_, err = admit(w1, foreignNews, 13)
	code(t, api.CodeNoSelector, err)
	stray := runJob(t, root, "default", "stray", "g", nil)
	_, err = admit(w1, stray, 13)
	e := code(t, api.CodeNoSelector, err)
	must.Len(t, 3, e.Details.Tried)
	must.SliceContains(t, e.Details.Tried, `app/svc: nomad(namespace=default, job=app): job is "stray"`)
	must.SliceContains(t, e.Details.Tried, `app/news: consul(namespace=default, service=news): its services are stray-http`)

	// A task with a network of its own, whatever the driver says to it.
	job := sleepJob("default", "app", "g", nil)
	job.TaskGroups[0].Tasks[0].SetConfig("network_mode", "host")
	_, err = admit(w1, runAny(t, root, job), 14)
	must.StrContains(t, code(t, api.CodeJob, err).Message,
		`job "app" cannot be connected: in group "g", task "sleep" has a network of its own beside its group's, by "network_mode" of its driver. Remove "network_mode"`)

	// Virtual machines: the node and both places of the job must agree.
	for i, tt := range []struct {
		meta, argument, command string
		vm                      bool
		refused                 string
	}{
		{"true", "true", "exec sleep 600 # qemu", true, ""},
		{"true", "true", "exec sleep 600 # qemu", false, `cannot be connected: group "g" is a virtual machine, for which its node made no tap interface`},
		{"", "", "exec sleep 600", true, `cannot be connected: the CNI argument SIF_VM of group "g" says that it is a virtual machine, and its meta lacks sif.vm`},
		{"true", "", "exec sleep 600 # qemu", false, `in group "g", meta key sif.vm says that it is a virtual machine, and its network lacks the CNI argument SIF_VM`},
		{"true", "true", "exec sleep 600", true, `in group "g", task "sleep" cannot be a virtual machine: neither its command nor its arguments name a QEMU`},
	} {
		name := fmt.Sprintf("app-vm-%d", i)
		job := sleepJob("default", name, "g", map[string]string{"sif.vm": tt.meta}, "news")
		job.TaskGroups[0].Networks[0].CNI = &nomadapi.CNIConfig{Args: map[string]string{"SIF_VM": tt.argument}}
		job.TaskGroups[0].Tasks[0].SetConfig("command", "/bin/sh").SetConfig("args", []string{"-c", tt.command})
		req := request4(0, byte(20+i))
		req.Allocation, req.VM = runAny(t, root, job), tt.vm
		reply, err := w1.Admit(ctx, req)
		if tt.refused != "" {
			must.StrContains(t, code(t, api.CodeJob, err).Message, tt.refused)
			continue
		}
		must.NoError(t, err)
		must.NoError(t, w1.source.Keys().Verify(reply.Admission, fabric.KindAdmission, &a))
		must.Eq(t, fabric.Origin{Namespace: "default", Job: name, Group: "g", VM: true}, a.Origin)
	}

	// A stopped allocation.
	_, _, err = root.Jobs().Deregister("stray", false, nil)
	must.NoError(t, err)
	eventually(t, func() error {
		_, err := admit(w1, stray, 13)
		if !api.IsCode(err, api.CodeNotPlaced) {
			return fmt.Errorf("not refused as stopped: %v", err)
		}
		return nil
	})

	// What a node attaches: by the class that its Nomad node has for Nomad, and never under the ID
	// of an allocation, whether that was admitted or not.
	_, err = c.operator.Apply(ctx, api.GraphRequest{Domains: domains(attachDomain("shop")), Bindings: []fabric.Binding{attaches("shop", fabric.AttachScope{Services: []string{"db"}, NodeClass: "data*"})}})
	must.NoError(t, err)
	w.inConsul(t, consulapi.AgentServiceRegistration{Name: "db", Port: 5432})
	must.Eq(t, "shop/db", w1.admitted(t, w.attachment(t, 1, 0, 40)).Service.String())
	for _, allocation := range []string{web, news, stray, foreign} {
		for n, node := range []*testNode{w1, w2} {
			req := w.attachment(t, 1, byte(n), 41)
			req.Allocation = allocation
			_, err := node.Admit(ctx, req)
			code(t, api.CodeTaken, err)
		}
	}

	// Nothing is admitted while Nomad cannot be reached.
	_, err = NewNomad(func() *nomadapi.Client {
		c, err := nomadapi.NewClient(&nomadapi.Config{Address: "http://127.0.0.1:1"})
		must.NoError(t, err)
		return c
	}).Placement(ctx, web, "")
	must.ErrorContains(t, err, "ask Nomad for allocation "+web)
}

// runJob runs a job with one group that sleeps, and returns the ID of its allocation. The job has
// the service "<job>-http", with checks, and a service for each name in services.
func runJob(t *testing.T, client *nomadapi.Client, namespace, name, group string, meta map[string]string, services ...string) string {
	t.Helper()
	return runAny(t, client, sleepJob(namespace, name, group, meta, services...))
}

func sleepJob(namespace, name, group string, meta map[string]string, services ...string) *nomadapi.Job {
	job := nomadapi.NewServiceJob(name, name, "global", 50)
	job.Namespace = &namespace
	job.Datacenters = []string{"*"}
	g := nomadapi.NewTaskGroup(group, 1)
	g.Meta = meta
	g.Networks = []*nomadapi.NetworkResource{{
		Mode: "host", DynamicPorts: []nomadapi.Port{{Label: "http", To: 8080}, {Label: "admin", To: 9100}},
	}}
	g.EphemeralDisk = &nomadapi.EphemeralDisk{SizeMB: pointer(110)}
	g.Services = []*nomadapi.Service{{
		Name: name + "-http", PortLabel: "http", Provider: "nomad",
		Checks: []nomadapi.ServiceCheck{
			{Type: "http", Path: "/", Interval: 1e10, Timeout: 1e9},
			{Type: "tcp", PortLabel: "http", Interval: 1e10, Timeout: 1e9},
		},
	}}
	task := nomadapi.NewTask("sleep", "raw_exec").SetConfig("command", "/bin/sleep").SetConfig("args", []string{"600"})
	task.Services = []*nomadapi.Service{{
		Name: name + "-http", PortLabel: "admin", Provider: "nomad",
		Checks: []nomadapi.ServiceCheck{{Type: "tcp", PortLabel: "admin", Interval: 1e10, Timeout: 1e9}},
	}}
	for _, s := range services {
		g.Services = append(g.Services, &nomadapi.Service{Name: s, PortLabel: "http", Provider: "nomad"})
	}
	g.AddTask(task)
	job.AddTaskGroup(g)
	return job
}

// runAny runs a job, and returns the ID of its allocation.
func runAny(t *testing.T, client *nomadapi.Client, job *nomadapi.Job) string {
	t.Helper()
	namespace := *job.Namespace
	_, _, err := client.Jobs().Register(job, &nomadapi.WriteOptions{Namespace: namespace})
	must.NoError(t, err)
	var id string
	eventually(t, func() error {
		list, _, err := client.Jobs().Allocations(*job.ID, false, &nomadapi.QueryOptions{Namespace: namespace})
		if err != nil {
			return err
		}
		for _, a := range list {
			if a.DesiredStatus == nomadapi.AllocDesiredStatusRun {
				id = a.ID
				return nil
			}
		}
		return fmt.Errorf("no allocation of job %s yet", *job.ID)
	})
	return id
}

func pointer[T any](v T) *T { return &v }

// purge stops a job and its children, waits until their allocations have ended, and removes them.
// The client of Nomad can miss that a job is purged at once (Nomad 1.10.5).
func purge(t *testing.T, client *nomadapi.Client, job string) {
	t.Helper()
	deregister := func(purge bool) {
		t.Helper()
		jobs, _, err := client.Jobs().List(&nomadapi.QueryOptions{Prefix: job})
		must.NoError(t, err)
		for _, j := range jobs {
			_, _, err := client.Jobs().Deregister(j.ID, purge, nil)
			must.NoError(t, err)
		}
	}
	ended := []string{nomadapi.AllocClientStatusComplete, nomadapi.AllocClientStatusFailed, nomadapi.AllocClientStatusLost}
	deregister(false)
	eventually(t, func() error {
		list, _, err := client.Allocations().List(nil)
		for _, a := range list {
			if strings.HasPrefix(a.JobID, job) && !slices.Contains(ended, a.ClientStatus) {
				return fmt.Errorf("allocation %s of %s is %s", a.ID, a.JobID, a.ClientStatus)
			}
		}
		return err
	})
	deregister(true)
}

// What an allocation's services are called is what Nomad itself registers, and a child has the
// identity of its parent. The job is described the same before and after it is placed, as far as
// it can be.
func TestNomadServices(t *testing.T) {
	testhost.RequireRoot(t)
	_, client := testhost.Nomad(t, `
name       = "w1"
datacenter = "aws1"
client {
  meta {
    rack = "r7"
  }
}`)
	scheduler := NewNomad(func() *nomadapi.Client { return client })
	texts := []string{
		"plain", "n-${NOMAD_JOB_NAME}", "n-${NOMAD_JOB_ID}-${NOMAD_GROUP_NAME}", "n-${JOB}", "n-${BASE}", "n-${TASKGROUP}-${TASK}",
		"n-${node.datacenter}", "n-${NOMAD_DC}", "n-${NOMAD_REGION}-${NOMAD_NAMESPACE}", "n-${meta.rack}", "n-${attr.kernel.name}",
		"n-${node.unique.name}", "n-${node.pool}", "n-${NOMAD_ALLOC_INDEX}", "n-${NOMAD_SHORT_ALLOC_ID}", "n-${NOMAD_META_tier}",
		"n-${NOMAD_META_TIER}", "n-${NOMAD_META_both}", "n-${NOMAD_META_check_port}", "n-${NOMAD_META_where}", "n-${NOMAD_PORT_http}",
		"n-${NOMAD_HOST_PORT_http}", "n-${NOMAD_ALLOC_PORT_http}", "n-${NOMAD_META_what}", "n-${NOMAD_META_more}", "n-${NOMAD_JOB_PARENT_ID}",
	}
	job := sleepJob("default", "shop", "api", map[string]string{"both": "group"})
	job.Type = pointer("batch")
	g := job.TaskGroups[0]
	g.Tasks[0].Config["args"] = []string{"60"}
	g.Tasks[0].Meta, g.Tasks[0].Env = map[string]string{"both": "task"}, map[string]string{"COLOUR": "red-${NOMAD_META_tier}"}
	job.Meta = map[string]string{"tier": "a", "check-port": "9400", "where": "dc-${node.datacenter}", "both": "job", "what": "", "more": ""}
	g.Services, g.Tasks[0].Services = nil, nil
	for i, text := range append(texts, "n-${NOMAD_TASK_NAME}-${COLOUR}", "n-${NOMAD_META_both}") {
		s := &nomadapi.Service{Name: fmt.Sprintf("s%d", i), Tags: []string{text}, PortLabel: "http", Provider: "nomad"}
		switch {
		case i >= len(texts):
			g.Tasks[0].Services = append(g.Tasks[0].Services, s)
		case i < 10: // Nomad checks the names of the others before it fills in the variables
			s.Name = strings.Replace(text, "n-", fmt.Sprintf("n%d-", i), 1)
			g.Services = append(g.Services, s)
		default:
			g.Services = append(g.Services, s)
		}
	}
	compare := func(t *testing.T, alloc string) Placement {
		t.Helper()
		place, err := scheduler.Placement(t.Context(), alloc, "")
		must.NoError(t, err)
		must.Eq(t, "", place.Refused)
		must.Eq(t, "shop", place.Workload.Job)
		ours := map[string]bool{}
		for _, s := range place.Workload.Services {
			ours[s.Name+" "+s.Tags[0]] = true
		}
		must.MapLen(t, len(g.Services)+len(g.Tasks[0].Services), ours)
		eventually(t, func() error {
			list, _, err := client.Allocations().Services(alloc, nil)
			if err != nil {
				return err
			}
			theirs := map[string]bool{}
			for _, s := range list {
				theirs[s.ServiceName+" "+s.Tags[0]] = true
			}
			if !maps.Equal(ours, theirs) {
				return fmt.Errorf("the controller has %v, Nomad registered %v", slices.Sorted(maps.Keys(ours)), slices.Sorted(maps.Keys(theirs)))
			}
			return nil
		})
		return place
	}
	t.Run("itself", func(t *testing.T) {
		compare(t, runAny(t, client, job))
		purge(t, client, "shop")
	})
	child := func(prefix string) (alloc string) {
		eventually(t, func() error {
			list, _, err := client.Allocations().List(nil)
			if err != nil {
				return err
			}
			for _, a := range list {
				if strings.HasPrefix(a.JobID, prefix) && a.DesiredStatus == nomadapi.AllocDesiredStatusRun {
					alloc = a.ID
					return nil
				}
			}
			return errors.New("no child was placed yet")
		})
		return alloc
	}
	t.Run("periodic", func(t *testing.T) {
		p := *job
		p.Periodic = &nomadapi.PeriodicConfig{Enabled: pointer(true), Spec: pointer("0 3 1 1 *"), SpecType: pointer("cron")}
		_, _, err := client.Jobs().Register(&p, nil)
		must.NoError(t, err)
		_, _, err = client.Jobs().PeriodicForce("shop", nil)
		must.NoError(t, err)
		compare(t, child("shop/periodic-"))
		purge(t, client, "shop")
	})
	t.Run("parameterized", func(t *testing.T) {
		p := *job
		p.ParameterizedJob = &nomadapi.ParameterizedJobConfig{MetaRequired: []string{"what"}, MetaOptional: []string{"more"}}
		_, _, err := client.Jobs().Register(&p, nil)
		must.NoError(t, err)
		_, _, err = client.Jobs().Dispatch("shop", map[string]string{"what": "w"}, nil, "", nil)
		must.NoError(t, err)
		compare(t, child("shop/dispatch-"))
		purge(t, client, "shop")
	})
	t.Run("periodic and parameterized", func(t *testing.T) {
		p := *job
		p.Periodic = &nomadapi.PeriodicConfig{Enabled: pointer(true), Spec: pointer("0 3 1 1 *"), SpecType: pointer("cron")}
		p.ParameterizedJob = &nomadapi.ParameterizedJobConfig{}
		_, _, err := client.Jobs().Register(&p, nil)
		must.NoError(t, err)
		reply, _, err := client.Jobs().Dispatch("shop", nil, nil, "", nil)
		must.NoError(t, err)
		_, _, err = client.Jobs().PeriodicForce(reply.DispatchedJobID, nil)
		must.NoError(t, err)
		compare(t, child(reply.DispatchedJobID+"/periodic-"))
	})
}
