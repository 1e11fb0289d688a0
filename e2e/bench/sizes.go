// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/prometheus/procfs"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/e2e/lab"
	model "github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/wellknown"
)

const (
	// settle is how long daemons are left alone before they are measured: it is longer than all
	// their intervals but those for renewals.
	settle = 30 * time.Second
	// idle is how long their processor time is counted.
	idle = 60 * time.Second
)

// sized are the numbers of endpoints on clientNode with which daemons are measured.
var sized = []int{10, 200}

// Size is what one daemon takes while nothing happens. Sizes are in bytes.
type Size struct {
	Endpoints int     `json:"endpoints"` // on clientNode
	Daemon    string  `json:"daemon"`    // node/name
	CPU       float64 `json:"cpu"`       // percent of one core, over idle
	Resident  uint64  `json:"resident"`
	Peak      uint64  `json:"peak"` // the most that was resident since the daemon started
	Share     uint64  `json:"share"`
	Anonymous uint64  `json:"anonymous"` // resident, and not of a file
	Disk      uint64  `json:"disk"`      // what the files in its data directory occupy
}

// sizes measures the daemons with several numbers of endpoints on one node, which Nomad starts.
func sizes(ctx context.Context, f *fabric, r *Report) error {
	const own = 2 // endpoints that the node has in any case: client and near
	for _, count := range sized {
		if _, err := f.place(ctx, "many", clientNode, count-own); err != nil {
			return err
		}
		if err := f.awaitEndpoints(ctx, count); err != nil {
			return err
		}
		list, err := f.sizes(ctx, count)
		if err != nil {
			return err
		}
		r.Sizes = append(r.Sizes, list...)
		r.note("load at the end of the measurement with %d endpoints: %s", count, load())
	}
	last := r.Sizes[slices.IndexFunc(r.Sizes, func(s Size) bool {
		return s.Endpoints == sized[len(sized)-1] && s.Daemon == clientNode+"/agent"
	})]
	group := fmt.Sprintf("agent, %d endpoints, idle", last.Endpoints)
	r.add(Figure{Group: group, Name: "resident", Value: mb(last.Resident), Unit: "MB"}, below(100))
	r.add(Figure{Group: group, Name: "processor time", Value: last.CPU, Unit: "% of a core"}, below(1))
	return nil
}

// status returns what the agent of clientNode reports, or an error if anything in the fabric is
// degraded.
func (f *fabric) status(ctx context.Context) (api.NodeStatus, error) {
	out, err := f.SIF(ctx, "status", "-json")
	var s api.Status
	if decoded := json.Unmarshal([]byte(out), &s); decoded != nil {
		return api.NodeStatus{}, fmt.Errorf("sif status: %w: %s", errors.Join(err, decoded), out)
	}
	var of api.NodeStatus
	for _, n := range s.Nodes {
		if len(n.Degraded) > 0 {
			return of, fmt.Errorf("%s is degraded: %s", n.ID(), strings.Join(n.Degraded, "; "))
		}
		if n.Node == clientNode && n.Kind == model.KindWorkload {
			of = n
		}
	}
	if of.Node == "" {
		return of, fmt.Errorf("%s does not report", clientNode)
	}
	return of, nil
}

// awaitEndpoints waits until the node has that many endpoints, whose connectivity is in force
// everywhere.
func (f *fabric) awaitEndpoints(ctx context.Context, count int) (err error) {
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); {
		var s api.NodeStatus
		if s, err = f.status(ctx); err == nil {
			ready := 0
			for _, e := range s.Endpoints {
				if e.InForce && len(e.Pending) == 0 {
					ready++
				}
			}
			if ready == count && len(s.Endpoints) == count {
				return nil
			}
			err = fmt.Errorf("%d of %d endpoints are in force", ready, count)
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	return err
}

// sizes measures the lab's daemons once they have settled. Servers are no part of the fabric, so
// they are left out.
func (f *fabric) sizes(ctx context.Context, endpoints int) ([]Size, error) {
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	before := f.usage()
	if err := pause(ctx, idle); err != nil {
		return nil, err
	}
	spent := f.usage().since(before)
	processes, err := f.Processes()
	if err != nil {
		return nil, err
	}
	var list []Size
	for _, p := range processes {
		if !slices.Contains([]string{"controller", "engine", "agent", "link", "ovs-vswitchd", "ovsdb-server"}, p.Name) {
			continue
		}
		s := Size{Endpoints: endpoints, Daemon: p.String(), CPU: 100 * spent.spent[p.String()].Seconds()}
		proc, err := procfs.NewProc(p.PID)
		if err != nil {
			return nil, fmt.Errorf("measure %s: %w", p, err)
		}
		memory, err := proc.ProcSMapsRollup()
		if err != nil {
			return nil, fmt.Errorf("read the memory of %s: %w", p, err)
		}
		status, err := proc.NewStatus()
		if err != nil {
			return nil, fmt.Errorf("read the memory of %s: %w", p, err)
		}
		s.Resident, s.Share, s.Anonymous, s.Peak = memory.Rss, memory.Pss, memory.Anonymous, status.VmHWM
		if s.Disk, err = f.occupied(p); err != nil {
			return nil, fmt.Errorf("measure the data directory of %s: %w", p, err)
		}
		list = append(list, s)
	}
	return list, nil
}

// occupied returns what the files of a daemon's data directory occupy on the disk, without those of
// other daemons whose directories are inside it.
func (f *fabric) occupied(p *lab.Process) (bytes uint64, err error) {
	dir := f.SIFDataDir(p.Node)
	inside := []string{filepath.Join(dir, wellknown.LinkDir), filepath.Join(dir, "engine")}
	switch p.Name {
	case "link":
		dir = inside[0]
	case "ovs-vswitchd":
		return 0, nil // what it keeps is in the database
	case "ovsdb-server":
		i := slices.IndexFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "OVS_DBDIR=") })
		dir = strings.TrimPrefix(p.Env[i], "OVS_DBDIR=")
	default:
		dir = f.DaemonDataDir(f.Topology.Node(p.Node), p.Name)
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path != dir && slices.Contains(inside, path) {
			return fs.SkipDir
		}
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil // it was replaced meanwhile
		}
		if err != nil {
			return err
		}
		bytes += uint64(info.Sys().(*syscall.Stat_t).Blocks) * 512
		return nil
	})
	return bytes, err
}

// writeSizes prints the sizes, the busiest kind of daemon of each node under its number of
// endpoints.
func writeSizes(w io.Writer, list []Size) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	endpoints := 0
	for _, s := range list {
		if s.Endpoints != endpoints {
			endpoints = s.Endpoints
			fmt.Fprintf(t, "\n%d endpoints on %s\t%% of a core\tresident MB\tpeak\tproportional\tanonymous\tdisk KiB\t\n", endpoints, clientNode)
		}
		fmt.Fprintf(t, "%s\t%.2f\t%.1f\t%.1f\t%.1f\t%.1f\t%d\t\n",
			s.Daemon, s.CPU, mb(s.Resident), mb(s.Peak), mb(s.Share), mb(s.Anonymous), s.Disk>>10)
	}
	return t.Flush()
}

func mb(bytes uint64) float64 { return float64(bytes) / 1e6 }

// pause waits, or returns an error if ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
