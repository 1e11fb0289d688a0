// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadjob

import (
	"encoding/json"
	"fmt"
	"testing"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
)

func TestEscapes(t *testing.T) {
	for _, tc := range []struct {
		driver, config string
		leaves, could  []string // arguments; "": the driver
	}{
		{"docker", `{"image": "x", "ports": ["http"], "cap_add": ["net_raw"], "privileged": false, "network_mode": "", "pid_mode": "", "devices": []}`, nil, nil},
		{"docker", `{"network_mode": "host"}`, []string{"network_mode"}, nil},
		{"docker", `{"network_mode": "none"}`, []string{"network_mode"}, nil},
		{"docker", `{"network_mode": "container:other"}`, []string{"network_mode"}, nil},
		{"docker", `{"network_mode": "${NOMAD_META_mode}"}`, []string{"network_mode"}, nil},
		{"podman", `{"network_mode": "slirp4netns"}`, []string{"network_mode"}, nil},
		{"containerd-driver", `{"host_network": true}`, []string{"host_network"}, nil},
		{"containerd-driver", `{"host_network": false}`, nil, nil},
		{"containerd-driver", `{"host_network": "true"}`, []string{"host_network"}, nil},
		{"nspawn", `{"network_veth": true, "network_zone": "z"}`, []string{"network_veth", "network_zone"}, nil},
		{"virt", `{"network_interface": [{"bridge": [{"name": "virbr0"}]}]}`, []string{"network_interface"}, nil},
		{"docker", `{"pid_mode": "host"}`, []string{"pid_mode"}, nil},
		{"docker", `{"pid_mode": "container:other"}`, []string{"pid_mode"}, nil},
		{"exec", `{"pid_mode": "private"}`, nil, nil},
		{"exec", `{"pid_mode": "host"}`, []string{"pid_mode"}, nil},
		{"docker", `{"privileged": true}`, nil, []string{"privileged"}},
		{"docker", `{"cap_add": ["NET_RAW", "cap_sys_admin"]}`, nil, []string{"cap_add"}},
		{"podman", `{"cap_add": ["all"]}`, nil, []string{"cap_add"}},
		{"docker", `{"devices": [{"host_path": "/dev/sda"}]}`, nil, []string{"devices"}},
		{"docker", `{"volumes": ["local/x:/x", "/run/netns:/run/netns:ro"]}`, nil, []string{"volumes"}},
		{"docker", `{"volumes": ["/:/host"]}`, nil, []string{"volumes"}},
		{"docker", `{"volumes": ["/srv/data:/data", "../alloc/x:/x"]}`, nil, nil},
		{"docker", `{"mount": [{"type": "bind", "source": "/var/../var/run/docker.sock", "target": "/s"}]}`, nil, []string{"mount"}},
		{"docker", `{"mounts": [{"type": "volume", "source": "data", "target": "/s"}]}`, nil, nil},
		{"qemu", `{"args": ["-device", "virtio-net-pci,netdev=sif"]}`, nil, nil},
		{"qemu", `{"args": ["-device", "vfio-pci,host=01:00.0"]}`, nil, []string{"args"}},
		{"raw_exec", `{"command": "/bin/true"}`, nil, []string{""}},
		{"exec", `null`, nil, nil},
	} {
		task := nomadapi.NewTask("t", tc.driver)
		must.NoError(t, json.Unmarshal([]byte(tc.config), &task.Config))
		group := nomadapi.NewTaskGroup("g", 1).AddTask(nomadapi.NewTask("before", "exec")).AddTask(task)
		var leaves, could []string
		for _, e := range Escapes(group) {
			must.Eq(t, "t", e.Task)
			must.NotEq(t, "", e.Remedy)
			if e.Leaves {
				leaves = append(leaves, e.Key)
			} else {
				could = append(could, e.Key)
			}
		}
		what := must.Sprint(tc.driver, tc.config)
		must.Eq(t, tc.leaves, leaves, what)
		must.Eq(t, tc.could, could, what)
		must.Eq(t, len(leaves) > 0, Refusal(group, Description{}) != "", what)
		if len(leaves) > 0 {
			must.StrContains(t, Refusal(group, Description{}), `in group "g", task "t" `, what)
			must.StrContains(t, Refusal(group, Description{}), fmt.Sprintf("by %q of its driver. Remove %q", leaves[0], leaves[0]), what)
		}
	}
}
