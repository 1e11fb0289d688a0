// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package nomadjob

import (
	"fmt"
	"path"
	"slices"
	"strings"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/sif-project/sif/internal/wellknown"
)

// Escape is something in a task by which it leaves its group's network, or could leave it.
type Escape struct {
	Task string
	Key  string // the argument of the driver's configuration; empty: it is the driver itself
	// Leaves says that it is a way out on every node. Otherwise it depends on values that only the
	// operators of the node can judge, or have allowed.
	Leaves bool
	Why    string // what the task does, without a subject
	Remedy string // a sentence
}

// String returns what is wrong in words that follow the name of the group.
func (e Escape) String() string {
	if e.Key == "" {
		return fmt.Sprintf("task %q %s", e.Task, e.Why)
	}
	return fmt.Sprintf("task %q %s, by %q of its driver", e.Task, e.Why, e.Key)
}

// networkKeys are the arguments by which drivers put a task into another network than its group's.
var networkKeys = []string{
	"network_mode",                 // docker, podman
	"host_network",                 // containerd
	"network_veth", "network_zone", // systemd-nspawn
	"network_interface", // virt
}

// powers are the capabilities with which a process enters another network namespace, or takes over
// the node.
var powers = []string{
	"ALL", "SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "DAC_READ_SEARCH", "BPF", "PERFMON", "MAC_ADMIN",
}

// nodePaths are paths of the node with which a process can act on the node.
var nodePaths = []string{"/run", "/var/run", "/proc", "/sys", "/dev", "/etc", "/root", "/opt/cni", "/var/lib", "/usr", "/boot"}

// Escapes returns what in the tasks of a group leaves the group's network, or could leave it.
func Escapes(group *nomadapi.TaskGroup) []Escape {
	var list []Escape
	for _, t := range group.Tasks {
		leaves := func(key, why, remedy string) { list = append(list, Escape{t.Name, key, true, why, remedy}) }
		could := func(key, why, remedy string) { list = append(list, Escape{t.Name, key, false, why, remedy}) }
		for _, key := range networkKeys {
			if isSet(t.Config[key]) {
				leaves(key, "has a network of its own beside its group's", fmt.Sprintf("Remove %q: without it the task is in its group's network.", key))
			}
		}
		if mode := t.Config["pid_mode"]; isSet(mode) && mode != "private" {
			leaves("pid_mode", "sees processes outside, through which it can enter their network", `Remove "pid_mode".`)
		}
		if isSet(t.Config["privileged"]) {
			could("privileged", "can enter the network of the node", `Remove "privileged".`)
		}
		if slices.ContainsFunc(texts(t.Config["cap_add"]), isPower) {
			could("cap_add", "can enter the network of the node", "Remove the capabilities "+strings.Join(powers, ", ")+".")
		}
		if len(texts(t.Config["devices"])) > 0 {
			could("devices", "can use devices of the node", "Check that none of them, such as a disk, gives the node away.")
		}
		if t.Driver == "qemu" && slices.ContainsFunc(texts(t.Config["args"]), isPassed) {
			could("args", "can hand devices of the node to its guest", "Check that none of them, such as a network card, leads around the fabric.")
		}
		for _, key := range []string{"volumes", "mount", "mounts"} {
			if i := slices.IndexFunc(texts(t.Config[key]), isNodePath); i >= 0 {
				could(key, fmt.Sprintf("can use %s of the node", hostPath(texts(t.Config[key])[i])), "Mount a directory of the allocation, or a host volume of Nomad.")
			}
		}
		if t.Driver == "raw_exec" {
			could("", `runs by driver "raw_exec" without isolation, and can enter the network of the node`, `Use "exec" or "docker".`)
		}
	}
	return list
}

// isSet reports whether an argument has another value than nothing. An expression that only Nomad's
// client evaluates is one.
func isSet(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case string:
		return v != "" && v != "false"
	case bool:
		return v
	case []any:
		return len(v) > 0
	}
	return true
}

// texts returns the strings in an argument: of a list, or the sources of a list of mounts.
func texts(v any) []string {
	var list []string
	switch v := v.(type) {
	case string:
		list = append(list, v)
	case []string:
		list = append(list, v...)
	case []any:
		for _, e := range v {
			list = append(list, texts(e)...)
		}
	case []map[string]any:
		for _, e := range v {
			list = append(list, texts(e)...)
		}
	case map[string]any:
		for _, key := range []string{"source", "host_path"} {
			list = append(list, texts(v[key])...)
		}
	}
	return list
}

func isPower(capability string) bool {
	return slices.Contains(powers, strings.TrimPrefix(strings.ToUpper(capability), "CAP_"))
}

// isPassed reports whether an argument of QEMU gives its guest a device of the node.
func isPassed(argument string) bool {
	return slices.ContainsFunc([]string{"vfio", "vhost-vdpa", "vhost-vsock", "vhost-user", "usb-host"}, func(kind string) bool { return strings.Contains(argument, kind) })
}

// hostPath returns the source of a volume, which may be of the form source:target.
func hostPath(volume string) string {
	source, _, _ := strings.Cut(volume, ":")
	return path.Clean(source)
}

// isNodePath reports whether the source of a volume is one of nodePaths, in one, or contains one.
func isNodePath(volume string) bool {
	source := hostPath(volume)
	// The directory of the Workload API has nothing but a socket that everybody may use.
	return path.IsAbs(source) && source != wellknown.WorkloadAPIDir && slices.ContainsFunc(nodePaths, func(p string) bool {
		return source == "/" || source == p || strings.HasPrefix(source, p+"/") || strings.HasPrefix(p, source+"/")
	})
}
