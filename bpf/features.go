// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package bpf

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Feature is something of the kernel that the data path needs.
type Feature struct {
	Name  string
	Since string // the first version of Linux that has it
}

func (f Feature) String() string { return fmt.Sprintf("%s (Linux %s)", f.Name, f.Since) }

// required is what the programs and maps need. Linux 6.1 has all of it.
var required = []struct {
	Feature
	probe func() error
}{
	{Feature{"eBPF programs of the type sched_cls", "4.1"}, func() error { return features.HaveProgramType(ebpf.SchedCLS) }},
	{Feature{"the eBPF instruction set v3", "5.1"}, features.HaveV3ISA},
	{Feature{"eBPF maps of the type lpm_trie", "4.11"}, func() error { return features.HaveMapType(ebpf.LPMTrie) }},
	{Feature{"eBPF maps of the type lru_hash", "4.10"}, func() error { return features.HaveMapType(ebpf.LRUHash) }},
	{Feature{"eBPF maps of the type ringbuf", "5.8"}, func() error { return features.HaveMapType(ebpf.RingBuf) }},
	{Feature{"eBPF maps in memory that is shared with processes", "5.5"}, func() error { return features.HaveMapFlag(features.BPF_F_MMAPABLE) }},
	{Feature{"the eBPF helper bpf_redirect_peer", "5.10"}, helper(asm.FnRedirectPeer)},
	{Feature{"the eBPF helper bpf_ktime_get_coarse_ns", "5.11"}, helper(asm.FnKtimeGetCoarseNs)},
	{Feature{"the eBPF helper bpf_for_each_map_elem", "5.13"}, helper(asm.FnForEachMapElem)},
}

func helper(f asm.BuiltinFunc) func() error {
	return func() error { return features.HaveProgramHelper(ebpf.SchedCLS, f) }
}

// Probe tries, without leaving anything behind, what the running kernel has of what the data path
// needs: how programs would be attached ("" if there is no way), and what is missing. An error
// means that this is unknown, for instance because the caller is not root.
func Probe() (Mechanism, []Feature, error) {
	var missing []Feature
	for _, r := range required {
		err := r.probe()
		if errors.Is(err, ebpf.ErrNotSupported) {
			missing = append(missing, r.Feature)
		} else if err != nil {
			return "", nil, fmt.Errorf("probe the kernel for %s: %w", r.Name, err)
		}
	}
	if len(missing) > 0 {
		return "", missing, nil
	}
	pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MPL-2.0", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		return "", nil, fmt.Errorf("load a program that does nothing: %w", err)
	}
	defer pass.Close()
	if haveTCX(pass) == nil {
		return TCX, nil, nil
	}
	has, err := haveClsact(pass)
	if err != nil {
		return "", nil, err
	}
	if !has {
		return "", []Feature{{"TCX", "6.6"}, {"or clsact and cls_bpf (modules sch_ingress and cls_bpf)", "4.5"}}, nil
	}
	return Clsact, nil, nil
}

// smallest is a number of entries that every map may have. Programs index sif_verdicts by
// constants.
const smallest = 128

// TryPrograms loads the programs with small maps, and unloads them: nothing is pinned or attached.
func TryPrograms() error {
	for _, compiled := range []func() (*ebpf.CollectionSpec, error){loadEndpoint, loadGuest} {
		spec, err := compiled()
		if err != nil {
			return fmt.Errorf("read the compiled eBPF programs: %w", err)
		}
		if err := try(spec); err != nil {
			return err
		}
	}
	return nil
}

func try(spec *ebpf.CollectionSpec) error {
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
		m.MaxEntries = min(m.MaxEntries, smallest)
		if m.Type == ebpf.RingBuf {
			m.MaxEntries = uint32(unix.Getpagesize())
		}
	}
	programs, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("load the programs: %w", lacking(err))
	}
	programs.Close()
	return nil
}

// haveClsact attaches a program to the loopback interface of a new network namespace, which goes
// again.
func haveClsact(p *ebpf.Program) (has bool, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		own, opening := netns.Get()
		if opening != nil {
			err = fmt.Errorf("probe the kernel for clsact: %w", opening)
			return
		}
		defer own.Close()
		scratch, making := netns.New()
		if making != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("probe the kernel for clsact: make a network namespace: %w", making)
			return
		}
		defer func() {
			// The thread may be the main one, which does not end with the goroutine, and by whose
			// namespace others know this process.
			if back := netns.Set(own); back == nil {
				runtime.UnlockOSThread()
			} else {
				err = errors.Join(err, fmt.Errorf("return from the network namespace of a probe: %w", back))
			}
		}()
		defer scratch.Close()
		lo := target{name: "lo", index: 1}
		err = netlink.QdiscAdd(lo.clsact())
		if err == nil {
			err = netlink.FilterAdd(&netlink.BpfFilter{
				FilterAttrs: netlink.FilterAttrs{LinkIndex: lo.index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: firstPriority, Protocol: unix.ETH_P_ALL},
				Fd:          p.FD(), Name: "sif_probe", DirectAction: true,
			})
		}
		if has = err == nil; errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
			err = nil
		}
		if err != nil {
			err = fmt.Errorf("probe the kernel for clsact: %w", err)
		}
	}()
	<-done
	return has, err
}

// lacking adds to an error of loading what the kernel lacks, if it lacks anything.
func lacking(err error) error {
	_, missing, unknown := Probe()
	if unknown != nil || len(missing) == 0 {
		return err
	}
	var names []string
	for _, f := range missing {
		names = append(names, f.String())
	}
	return fmt.Errorf("the kernel has no %s: %w", strings.Join(names, ", "), err)
}
