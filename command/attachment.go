// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/dirlock"
	"github.com/sif-project/sif/internal/node/cnicall"
	"github.com/sif-project/sif/internal/node/netspace"
	"github.com/sif-project/sif/internal/retry"
	"github.com/sif-project/sif/internal/wellknown"
)

const (
	// callPatience is how long one call of the agent waits, at most: the agent ends a call after
	// 30 s.
	callPatience = 20 * time.Second
	// answerReserve is what the agent keeps of a caller's patience for its answer. lateAnswer is
	// how long the caller waits for it beyond.
	answerReserve = 3 * time.Second
	lateAnswer    = 10 * time.Second
	// attachRetry is how often a call is made again while the agent is not there.
	attachRetry = 500 * time.Millisecond
)

// nodeAgent says how the agent of this machine is reached.
type nodeAgent struct{ runDir, socket string }

func (n *nodeAgent) add(o *flag.FlagSet) {
	o.StringVar(&n.runDir, "run-dir", cmp.Or(os.Getenv("SIF_RUN_DIR"), wellknown.RunDir),
		"The `path` to the agent's run_dir. Overrides the SIF_RUN_DIR environment variable. Default: "+wellknown.RunDir)
	o.StringVar(&n.socket, "socket", os.Getenv("SIF_SOCKET"),
		"The `path` to the agent's socket, if cni.socket in its configuration is not in its run_dir. Overrides SIF_SOCKET.")
}

func (n nodeAgent) path() string { return cmp.Or(n.socket, filepath.Join(n.runDir, "cni.sock")) }

func (n nodeAgent) spaces() netspace.Layout { return netspace.Default(n.runDir) }

// list returns what is attached on this machine. It waits for the agent until a time.
func (n nodeAgent) list(ctx context.Context, until time.Time) ([]cnicall.Attached, error) {
	for {
		list, err := cnicall.List(ctx, n.path())
		if !errors.Is(err, cnicall.ErrNoAgent) || !time.Now().Before(until) || !retry.Sleep(ctx, attachRetry) {
			return list, err
		}
	}
}

// attachedAs returns what is attached under a name.
func attachedAs(list []cnicall.Attached, name string) *cnicall.Attached {
	i := slices.IndexFunc(list, func(a cnicall.Attached) bool { return a.Name == name })
	if i < 0 {
		return nil
	}
	return &list[i]
}

// lock keeps other calls from the same name.
func (n nodeAgent) lock(name string) (*os.File, error) {
	dir := n.spaces().Marks
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the directory of locks: %w", err)
	}
	f, err := dirlock.Lock(dir, "."+name+".lock")
	if errors.Is(err, dirlock.ErrLocked) {
		return nil, fmt.Errorf("another call of sif concerns %q now", name)
	}
	return f, err
}

// attachOptions says as what a workload outside Nomad is attached.
type attachOptions struct {
	nodeAgent
	consul, service    string
	originate, respond string // separated by commas
	wait               time.Duration
	process            *cnicall.Process // of the machine's own namespace, that gets the endpoint; nil: none
}

func (a *attachOptions) options() *flag.FlagSet {
	o := newOptions("Attach Options")
	o.StringVar(&a.consul, "consul-service", os.Getenv("SIF_CONSUL_SERVICE"),
		"The `name` of the service as which the workload is registered with this machine's Consul agent. Required. Overrides the SIF_CONSUL_SERVICE environment variable.")
	o.StringVar(&a.service, "service", os.Getenv("SIF_SERVICE"),
		"The `service` of the graph, as domain/service. Needed if selectors of several match. Overrides SIF_SERVICE.")
	o.StringVar(&a.originate, "originate", os.Getenv("SIF_ORIGINATE"),
		"The `contracts` to originate, separated by commas. Overrides SIF_ORIGINATE. Without this and -respond: every role that the graph gives the service.")
	o.StringVar(&a.respond, "respond", os.Getenv("SIF_RESPOND"),
		"The `contracts` to respond to, separated by commas. Overrides SIF_RESPOND.")
	wait := 30 * time.Second
	if said, err := time.ParseDuration(os.Getenv("SIF_WAIT")); err == nil {
		wait = said
	}
	o.DurationVar(&a.wait, "wait", wait, "The `duration` to wait for the agent, the registration in Consul, and the controller. Overrides SIF_WAIT. Default: 30s")
	a.add(o)
	return o
}

// check returns what the options ask for, under a name.
func (a *attachOptions) check(name string) (fabric.Attached, error) {
	w := fabric.Attached{Name: name, ConsulService: a.consul, Service: a.service, Originate: separated(a.originate), Respond: separated(a.respond)}
	if err := netspace.CheckName(name); err != nil {
		return w, usageError{err}
	}
	if a.consul == "" {
		return w, usagef("-consul-service is needed: the Consul service as which the workload is registered on this machine.")
	}
	if fault, remedy := fabric.ConsulServiceFault(a.consul); fault != "" {
		return w, usagef("-consul-service: %s: %s", fault, remedy)
	}
	if a.service != "" {
		if _, err := fabric.ParseRef(a.service); err != nil {
			return w, usagef("-service: %v", err)
		}
	}
	if a.wait < 0 {
		return w, usagef("-wait=%s is negative", a.wait)
	}
	return w, nil
}

func separated(list string) []string {
	var names []string
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// hand gives an open namespace to the agent, again and again until a time while something is
// missing that may come.
func (a *attachOptions) hand(ctx context.Context, w fabric.Attached, f *os.File, space cnicall.Space, until time.Time) error {
	at := cnicall.AttachmentOf(w.Name)
	for {
		left := min(max(time.Until(until), 0), callPatience)
		call, cancel := context.WithTimeout(ctx, left+lateAnswer)
		r := cnicall.Request{Command: "ADD", ContainerID: at.ContainerID, IfName: at.IfName, Attach: &w, Space: space, Process: a.process, Namespace: f}
		if left > 0 {
			r.Patience = left + answerReserve
		}
		_, err := cnicall.Call(call, a.path(), r)
		cancel()
		var e *types.Error
		again := errors.Is(err, cnicall.ErrNoAgent) || errors.As(err, &e) && e.Code == types.ErrTryAgainLater
		if !again || !time.Now().Before(until) || !retry.Sleep(ctx, attachRetry) {
			return cmp.Or(context.Cause(ctx), err)
		}
	}
}

// drop has the agent detach what is attached under a name.
func (n nodeAgent) drop(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callPatience)
	defer cancel()
	at := cnicall.AttachmentOf(name)
	_, err := cnicall.Call(ctx, n.path(), cnicall.Request{Command: "DEL", ContainerID: at.ContainerID, IfName: at.IfName})
	return err
}

// requireRoot returns an error unless the caller is root.
func requireRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("this needs root")
	}
	return nil
}
