// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadjob

import (
	"fmt"
	"strings"
	"testing"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/fabric"
)

func pointer[T any](v T) *T { return &v }

// shop is a job with one group and one service, whose name, tag and check's port are given.
func shop(name, tag, port string) (*nomadapi.Job, *nomadapi.TaskGroup) {
	job := nomadapi.NewServiceJob("shop", "shop", "global", 50)
	job.Meta = map[string]string{"tier": "a", "check-port": "9400", "where": "${node.datacenter}", "both": "job"}
	group := nomadapi.NewTaskGroup("api", 1)
	group.Meta = map[string]string{"both": "group"}
	group.Networks = []*nomadapi.NetworkResource{{
		DynamicPorts:  []nomadapi.Port{{Label: "http", To: 8080}, {Label: "free"}},
		ReservedPorts: []nomadapi.Port{{Label: "fixed", Value: 443}},
	}}
	group.Services = []*nomadapi.Service{{
		Name: name, Tags: []string{tag}, PortLabel: "http", Checks: []nomadapi.ServiceCheck{{Type: "tcp", PortLabel: port}, {Type: "script"}},
	}}
	task := nomadapi.NewTask("main", "exec")
	task.Meta, task.Env = map[string]string{"both": "task"}, map[string]string{"COLOUR": "red-${NOMAD_META_tier}"}
	group.AddTask(task)
	return job.AddTaskGroup(group), group
}

func instanceOf(job *nomadapi.Job) *Instance {
	return &Instance{
		Allocation: &nomadapi.Allocation{
			ID: "12345678-0000-0000-0000-000000000000", Name: "shop.api[3]", Namespace: "default", Job: job,
			AllocatedResources: &nomadapi.AllocatedResources{Shared: nomadapi.AllocatedSharedResources{
				Ports: []nomadapi.PortMapping{
					{Label: "http", Value: 23456, To: 8080, HostIP: "10.0.0.1"}, {Label: "free", Value: 23457, To: -1}, {Label: "fixed", Value: 443},
				},
				Networks: []*nomadapi.NetworkResource{{DynamicPorts: []nomadapi.Port{{Label: "old", Value: 23459, To: 81}}}},
			}},
		},
		Node: &nomadapi.Node{
			ID: "n-1", Name: "w1", Datacenter: "aws1", NodeClass: "big", NodePool: "default",
			Attributes: map[string]string{"kernel.name": "linux"}, Meta: map[string]string{"rack": "r7"},
		},
	}
}

func TestDescribe(t *testing.T) {
	for _, tc := range []struct {
		name, tag, port string // as written
		before, placed  string // what it is called before and after it is placed
		tagged          string // after
		check           uint16 // after
		gaps, later     int    // before it is placed
		missing         int    // after
	}{
		{"plain", "t", "8081", "plain", "plain", "t", 8081, 0, 0, 0},
		{"", "t", "", "shop-api", "shop-api", "t", 8080, 0, 0, 0},
		{"${NOMAD_JOB_NAME}-${NOMAD_GROUP_NAME}", "dc-${node.datacenter}", "http", "shop-api", "shop-api", "dc-aws1", 8080, 1, 1, 0},
		{"${BASE}", "${NOMAD_REGION}", "fixed", "shop-api-group", "shop-api-group", "global", 443, 0, 0, 0},
		{"x-${NOMAD_META_tier}", "${NOMAD_META_BOTH}", "${NOMAD_META_check_port}", "x-a", "x-a", "group", 9400, 0, 0, 0},
		{"x-${NOMAD_META_where}", "t", "${NOMAD_PORT_http}", "x-${node.datacenter}", "x-aws1", "t", 8080, 1, 1, 0},
		{"i-${NOMAD_ALLOC_INDEX}", "${NOMAD_DC}", "${NOMAD_HOST_PORT_http}", "i-${NOMAD_ALLOC_INDEX}", "i-3", "aws1", 23456, 3, 3, 0},
		{"${meta.rack}", "${attr.kernel.name}", "free", "${meta.rack}", "r7", "linux", 23457, 2, 2, 0},
		{"${node.class}-${node.pool}", "${node.unique.name}", "${NOMAD_ALLOC_PORT_fixed}", "${node.class}-${node.pool}", "big-default", "w1", 443, 3, 3, 0},
		{"${COLOUR}", "t", "8081", "${COLOUR}", "${COLOUR}", "t", 8081, 1, 0, 1},
		{"${NOMAD_TASK_NAME}", "${nothing}", "8081", "${NOMAD_TASK_NAME}", "${NOMAD_TASK_NAME}", "${nothing}", 8081, 2, 0, 2},
		{"x", "t", "${NOMAD_META_checkport}", "x", "x", "t", 0, 1, 0, 1},
		{"x", "t", "nowhere", "x", "x", "t", 0, 1, 0, 1},
		{"x", "t", "70000", "x", "x", "t", 0, 1, 0, 1},
		{"x", "t", "0", "x", "x", "t", 0, 1, 0, 1},
		{"$${NOMAD_JOB_NAME} ${}", "${NOMAD_JOB_NAME", "8081", "$shop ${}", "$shop ${}", "${NOMAD_JOB_NAME", 8081, 0, 0, 0},
	} {
		job, group := shop(tc.name, tc.tag, tc.port)
		what := must.Sprint(tc.name, tc.tag, tc.port)
		before := Describe(job, group, nil)
		must.Eq(t, tc.before, before.Workload.Services[0].Name, what)
		must.Len(t, tc.gaps, before.Gaps, what)
		later := 0
		for _, g := range before.Gaps {
			must.NotEq(t, "", g.String())
			if g.Later {
				later++
			}
		}
		must.Eq(t, tc.later, later, what)

		after := Describe(job, group, instanceOf(job))
		must.Eq(t, fabric.WorkloadService{Name: tc.placed, Tags: []string{tc.tagged}}, after.Workload.Services[0], what)
		must.Len(t, tc.missing, after.Gaps, what)
		if tc.check != 0 {
			must.Eq(t, []fabric.Check{{Protocol: fabric.TCP, Port: tc.check}}, after.Checks, what)
			must.Eq(t, "", Refusal(group, after), what)
		} else {
			must.SliceEmpty(t, after.Checks, what)
			must.StrContains(t, Refusal(group, after), `in group "api", port "`, what)
			must.NotEq(t, "", Refusal(group, before), must.Sprint("it passed before it was placed, and is refused then"), what)
		}
	}
}

// A task's service has the variables of the task.
func TestServiceOfTask(t *testing.T) {
	job, group := shop("x", "t", "8081")
	group.Services, group.Tasks[0].Services = nil, []*nomadapi.Service{{
		Name: "${NOMAD_TASK_NAME}-${TASK}", Tags: []string{"${COLOUR}", "${NOMAD_META_both}"}, Meta: map[string]string{"${NOMAD_META_tier}": "${NOMAD_SHORT_ALLOC_ID}"},
	}}
	d := Describe(job, group, instanceOf(job))
	must.Eq(t, []fabric.WorkloadService{{Name: "main-main", Tags: []string{"red-a", "task"}, Meta: map[string]string{"a": "12345678"}}}, d.Workload.Services)
	must.SliceEmpty(t, d.Gaps)
	must.False(t, d.HealthChecked)
	for provider, want := range map[string]bool{"": true, "consul": true, "nomad": false} {
		group.Tasks[0].Services[0].Provider = provider
		group.Tasks[0].Services[0].Checks = []nomadapi.ServiceCheck{{Type: "script"}}
		must.Eq(t, want, Describe(job, group, instanceOf(job)).HealthChecked)
	}
}

// Selectors match a child by the name of its parent. Its variables have its own name, and only the
// dispatch knows its meta.
func TestChild(t *testing.T) {
	job, group := shop("${NOMAD_JOB_NAME}", "${NOMAD_META_what}", "8081")
	job.ParameterizedJob = &nomadapi.ParameterizedJobConfig{MetaRequired: []string{"what"}, MetaOptional: []string{"more"}}
	d := Describe(job, group, nil)
	must.Eq(t, "shop", d.Workload.Job)
	must.Len(t, 2, d.Gaps)
	must.True(t, d.Gaps[0].Later && d.Gaps[1].Later)

	child := *job
	child.ID, child.Name, child.ParentID, child.Dispatched = pointer("shop/dispatch-1-2"), pointer("shop/dispatch-1-2"), job.ID, true
	child.Meta = map[string]string{"what": "w"}
	group.Services[0].Tags = append(group.Services[0].Tags, "${NOMAD_META_MORE}")
	d = Describe(&child, group, instanceOf(&child))
	must.Eq(t, "shop", d.Workload.Job)
	must.Eq(t, fabric.WorkloadService{Name: "shop/dispatch-1-2", Tags: []string{"w", ""}}, d.Workload.Services[0])
}

// A canary has the tags and the meta of canaries until it is promoted, as far as the job has any.
func TestCanary(t *testing.T) {
	for _, tc := range []struct {
		tags         []string
		meta         map[string]string
		differs      bool
		service      fabric.WorkloadService // of the canary
		canaryBefore string                 // what is not known of it before it is placed
	}{
		{nil, nil, false, fabric.WorkloadService{Name: "web", Tags: []string{"stable"}, Meta: map[string]string{"stage": "stable"}}, ""},
		{[]string{"next", "${node.datacenter}"}, nil, true, fabric.WorkloadService{Name: "web", Tags: []string{"next", "aws1"}, Meta: map[string]string{"stage": "stable"}}, "canary_tags"},
		{nil, map[string]string{"stage": "${node.datacenter}"}, true, fabric.WorkloadService{Name: "web", Tags: []string{"stable"}, Meta: map[string]string{"stage": "aws1"}}, "canary_meta"},
	} {
		job, group := shop("web", "stable", "8081")
		group.Services[0].Meta = map[string]string{"stage": "stable"}
		group.Services[0].CanaryTags, group.Services[0].CanaryMeta = tc.tags, tc.meta
		stable := fabric.WorkloadService{Name: "web", Tags: []string{"stable"}, Meta: map[string]string{"stage": "stable"}}

		must.Eq(t, stable, Describe(job, group, nil).Workload.Services[0])
		before, differs := DescribeCanary(job, group)
		must.Eq(t, tc.differs, differs)
		if tc.canaryBefore != "" {
			must.Len(t, 1, before.Gaps)
			must.Eq(t, tc.canaryBefore, before.Gaps[0].Key)
		}
		in := instanceOf(job)
		must.False(t, in.Canary())
		must.Eq(t, stable, Describe(job, group, in).Workload.Services[0])
		in.Allocation.DeploymentStatus = &nomadapi.AllocDeploymentStatus{Canary: true}
		must.Eq(t, tc.service, Describe(job, group, in).Workload.Services[0])
		in.Allocation.DeploymentStatus.Canary = false // promoted
		must.Eq(t, stable, Describe(job, group, in).Workload.Services[0])
	}
}

// The ports that a job names are those of its network's labels and of its services, inside the
// workload, in the form of DNS.
func TestNamedPorts(t *testing.T) {
	job, group := shop("${NOMAD_JOB_NAME}", "t", "8081")
	group.Networks[0].DynamicPorts = append(group.Networks[0].DynamicPorts, nomadapi.Port{Label: "Admin_1", To: 9000}, nomadapi.Port{Label: "-bad", To: 9001})
	group.Services = append(group.Services,
		&nomadapi.Service{Name: "metrics", PortLabel: "9102"},
		&nomadapi.Service{Name: "http", PortLabel: "http"}, // what the label says already
		&nomadapi.Service{Name: "http", PortLabel: "fixed"},
		&nomadapi.Service{Name: "no-port"}, &nomadapi.Service{Name: "lost", PortLabel: "nowhere"}, &nomadapi.Service{Name: "a.b", PortLabel: "80"})
	ports := func(in *Instance) string {
		var list []string
		for _, p := range Describe(job, group, in).Ports {
			list = append(list, fmt.Sprintf("%s=%d", p.Name, p.Port))
		}
		return strings.Join(list, " ")
	}
	must.Eq(t, "admin_1=9000 fixed=443 http=443 http=8080 metrics=9102 shop=8080", ports(nil))
	placed := instanceOf(job)
	placed.Allocation.AllocatedResources.Shared.Ports = append(placed.Allocation.AllocatedResources.Shared.Ports, nomadapi.PortMapping{Label: "Admin_1", Value: 20000, To: 9000})
	must.Eq(t, "admin_1=9000 fixed=443 free=23457 http=443 http=8080 metrics=9102 shop=8080", ports(placed))
	for i := range 2 * maxPorts {
		group.Services = append(group.Services, &nomadapi.Service{Name: fmt.Sprintf("s%d", i), PortLabel: "80"})
	}
	must.Len(t, maxPorts, Describe(job, group, nil).Ports)
}

func TestForeignResolver(t *testing.T) {
	for _, tc := range []struct {
		dns  *nomadapi.DNSConfig
		ours bool
	}{
		{nil, true},
		{&nomadapi.DNSConfig{}, false},
		{&nomadapi.DNSConfig{Searches: []string{"corp.example"}}, false},
		{&nomadapi.DNSConfig{Servers: []string{"10.0.0.53"}}, false},
		{&nomadapi.DNSConfig{Servers: []string{"10.0.0.53", "169.254.1.1"}}, false},
		{&nomadapi.DNSConfig{Servers: []string{"${meta.resolver}"}}, false},
		{&nomadapi.DNSConfig{Servers: []string{"169.254.1.1"}}, true},
		{&nomadapi.DNSConfig{Servers: []string{"169.254.1.1", "10.0.0.53"}, Options: []string{"ndots:5"}}, true},
	} {
		_, group := shop("x", "t", "8081")
		group.Networks[0].DNS = tc.dns
		why, remedy := ForeignResolver(group)
		must.Eq(t, tc.ours, why == "", must.Sprint(tc.dns))
		must.Eq(t, tc.ours, remedy == "", must.Sprint(tc.dns))
	}
}
