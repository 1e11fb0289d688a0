// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadjob

import (
	"encoding/json"
	"strings"
	"testing"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/internal/wellknown"
)

// taskOf is a task written as its driver and the JSON of the driver's configuration.
type taskOf struct{ driver, config string }

// machine is a group of tasks "t0", "t1", ... which says in its meta and its CNI arguments what it
// is.
func machine(t *testing.T, meta, argument string, tasks ...taskOf) *nomadapi.TaskGroup {
	t.Helper()
	group := nomadapi.NewTaskGroup("g", 1)
	group.Meta = map[string]string{wellknown.MetaVM: meta}
	group.Networks = []*nomadapi.NetworkResource{{CNI: &nomadapi.CNIConfig{Args: map[string]string{wellknown.ArgVM: argument}}}}
	for i, what := range tasks {
		task := nomadapi.NewTask("t"+string(rune('0'+i)), what.driver)
		must.NoError(t, json.Unmarshal([]byte(what.config), &task.Config))
		group.AddTask(task)
	}
	return group
}

const (
	netdev = `"-netdev", "tap,id=sif,ifname=tap0,script=no,downscript=no"`
	card   = `"-device", "virtio-net-pci,netdev=sif,mac=02:51:f0:00:00:01"`
)

func qemuWith(args string) taskOf {
	return taskOf{"qemu", `{"image_path": "local/d", "args": [` + args + `]}`}
}

func TestFaultsOfVirtualMachines(t *testing.T) {
	good := qemuWith(netdev + `, ` + card)
	for name, tc := range map[string]struct {
		tasks   []taskOf
		refused string // the beginning of the only refusal; empty: there is none
		warned  string // of the only warning
	}{
		"as the stanza writes it": {[]taskOf{good}, "", ""},
		"any order, more":         {[]taskOf{qemuWith(`"-smp", "2", ` + card + `, "-vga", "none", ` + netdev)}, "", ""},
		"one argument for both":   {[]taskOf{qemuWith(`"-nic", "tap,ifname=tap0,script=no,mac=02:51:F0:00:00:01,model=e1000"`)}, "", ""},
		"the old arguments":       {[]taskOf{qemuWith(`"-net", "nic,macaddr=02:51:f0:00:00:01", "-net", "tap,ifname=tap0,script=no"`)}, "", ""},
		"only the client knows":   {[]taskOf{qemuWith(`"${NOMAD_META_net}"`)}, "", ""},
		"raw_exec":                {[]taskOf{{"raw_exec", `{"command": "/usr/bin/qemu-system-x86_64", "args": [` + netdev + `, ` + card + `]}`}}, "", ""},
		"exec, by a shell":        {[]taskOf{{"exec", `{"command": "/bin/sh", "args": ["-c", "mknod /dev/net/tun c 10 200 && exec qemu-system-x86_64 -m 256"]}`}}, "", ""},
		"exec, by a variable":     {[]taskOf{{"exec", `{"command": "${meta.hypervisor}"}`}}, "", ""},

		"docker":           {[]taskOf{{"docker", `{"image": "qemu"}`}}, `task "t0" cannot be a virtual machine: driver "docker" runs no guest`, ""},
		"java":             {[]taskOf{{"java", `{"jar_path": "x"}`}}, `task "t0" cannot be a virtual machine: driver "java" runs no guest`, ""},
		"exec of no QEMU":  {[]taskOf{{"exec", `{"command": "/bin/server"}`}}, `task "t0" cannot be a virtual machine: neither its command`, ""},
		"no task":          {nil, "no task is there", ""},
		"two guests":       {[]taskOf{good, good}, `task "t1" is a second guest beside "t0"`, ""},
		"two by drivers":   {[]taskOf{{"raw_exec", `{"command": "qemu-kvm", "args": [` + netdev + `, ` + card + `]}`}, good}, `task "t1" is a second guest`, ""},
		"a sidecar":        {[]taskOf{good, {"docker", `{"image": "x"}`}}, "", `task "t1" has no network: the guest of task "t0"`},
		"a sidecar first":  {[]taskOf{{"raw_exec", `{"command": "proxy", "args": ["${NOMAD_PORT_http}"]}`}, good}, "", `task "t0" has no network: the guest of task "t1"`},
		"nothing":          {[]taskOf{qemuWith(``)}, `the QEMU of task "t0" has no network device on tap0`, ""},
		"another tap":      {[]taskOf{qemuWith(`"-netdev", "tap,id=sif,ifname=tap01", ` + card)}, `the QEMU of task "t0" has no network device on tap0`, ""},
		"a value, no name": {[]taskOf{qemuWith(`"tap,id=sif,ifname=tap0", ` + card)}, `the QEMU of task "t0" has no network device on tap0`, ""},
		"twice":            {[]taskOf{qemuWith(netdev + `, ` + card + `, ` + netdev)}, `the QEMU of task "t0" has 2 network devices on tap0`, ""},
		"no card":          {[]taskOf{qemuWith(netdev)}, `the QEMU of task "t0" has no card on its network device "sif"`, ""},
		"another card":     {[]taskOf{qemuWith(netdev + `, "-device", "virtio-net-pci,netdev=sif2,mac=02:51:f0:00:00:01"`)}, `the QEMU of task "t0" has no card`, ""},
		"no address":       {[]taskOf{qemuWith(netdev + `, "-device", "virtio-net-pci,netdev=sif"`)}, `the card of the guest of task "t0" does not have the hardware address`, ""},
		"another address":  {[]taskOf{qemuWith(netdev + `, "-device", "virtio-net-pci,netdev=sif,mac=52:54:00:12:34:56"`)}, `the card of the guest of task "t0" does not have`, ""},
		"raw_exec, none":   {[]taskOf{{"raw_exec", `{"command": "qemu-system-aarch64", "args": ["-m", "256"]}`}}, `the QEMU of task "t0" has no network device on tap0`, ""},
		"port_map":         {[]taskOf{{"qemu", `{"args": [` + netdev + `, ` + card + `], "port_map": [{"http": 80}]}`}}, `task "t0" maps ports by its driver`, ""},
		"user beside":      {[]taskOf{qemuWith(netdev + `, ` + card + `, "-netdev", "user,id=u", "-device", "e1000,netdev=u"`)}, "", `the QEMU of task "t0" has user networking beside`},
	} {
		group := machine(t, "true", "true", tc.tasks...)
		must.True(t, IsVM(group))
		var refused, warned []string
		for _, f := range Faults(group) {
			must.NotEq(t, "", f.Remedy)
			if f.Refused {
				refused = append(refused, f.String())
			} else {
				warned = append(warned, f.String())
			}
		}
		must.Eq(t, tc.refused != "", len(refused) == 1, must.Sprint(name, refused))
		must.Eq(t, tc.warned != "", len(warned) == 1, must.Sprint(name, warned))
		if tc.refused != "" {
			must.StrHasPrefix(t, tc.refused, refused[0], must.Sprint(name))
			must.StrHasPrefix(t, `in group "g", `+tc.refused, Refusal(group, Description{}), must.Sprint(name))
		} else {
			must.Eq(t, "", Refusal(group, Description{}), must.Sprint(name))
		}
		if tc.warned != "" {
			must.StrHasPrefix(t, tc.warned, warned[0], must.Sprint(name))
		}
	}
}

// The two places in which a job says that a group is a virtual machine must agree.
func TestFaultsOfWhatJobsSay(t *testing.T) {
	good := qemuWith(netdev + `, ` + card)
	for _, tc := range []struct {
		meta, argument string
		vm             bool
		want           string
	}{
		{"true", "true", true, ""},
		{"1", "true", true, ""},
		{"true", "", true, "meta key sif.vm says that it is a virtual machine"},
		{"true", "false", true, "meta key sif.vm says that it is a virtual machine"},
		{"", "true", false, "CNI argument SIF_VM says that it is a virtual machine"},
		{"false", "1", false, "CNI argument SIF_VM says that it is a virtual machine"},
		{"yes", "true", false, `meta key sif.vm is "yes"`},
		{"true", "TRUE", true, `CNI argument SIF_VM is "TRUE"`},
		{"", "", false, `the guest of task "t0" is behind QEMU's user networking`},
		{"false", "0", false, `the guest of task "t0" is behind QEMU's user networking`},
	} {
		what := must.Sprintf("%q %q", tc.meta, tc.argument)
		group := machine(t, tc.meta, tc.argument, good)
		must.Eq(t, tc.vm, IsVM(group), what)
		faults := Faults(group)
		if tc.want == "" {
			must.SliceEmpty(t, faults, what)
			continue
		}
		must.Len(t, 1, faults, what)
		must.StrHasPrefix(t, tc.want, faults[0].String(), what)
		must.Eq(t, !strings.HasPrefix(tc.want, "the guest"), faults[0].Refused, what)
	}
	must.SliceEmpty(t, Faults(machine(t, "", "", taskOf{"docker", `{}`})))
	must.SliceEmpty(t, Faults(nomadapi.NewTaskGroup("g", 1)))
}

func TestNeedsOf(t *testing.T) {
	for _, tc := range []struct {
		config string
		want   Needs
	}{
		{`{"image_path": "local/disk", "args": [` + card + `, ` + netdev + `, ` + card + `]}`, Needs{Options: []string{"-device", "-netdev"}}},
		{`{"image_path": "/srv/images/a.qcow2", "args": []}`, Needs{Image: "/srv/images"}},
		{`{"image_path": "${NOMAD_TASK_DIR}/a"}`, Needs{}},
	} {
		task := nomadapi.NewTask("t", "qemu")
		must.NoError(t, json.Unmarshal([]byte(tc.config), &task.Config))
		must.Eq(t, tc.want, NeedsOf(task))
	}
}
