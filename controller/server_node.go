// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/logkey"
)

func (c *Controller) putNode(ctx context.Context, r request) (any, error) {
	req, err := decode[api.NodeRequest](r)
	if err != nil {
		return nil, err
	}
	r.entry.Target, r.entry.Message = r.node.NodeID.String(), string(r.node.Kind)
	if err := c.intend(r); err != nil {
		return nil, err
	}
	record, err := c.nodes.register(ctx, r.node, req, r.pool)
	if node, registered := c.nodes.get(r.node.NodeID); err == nil && registered {
		c.bound.claim(ctx, node, req.NomadNode)
	}
	return record, err
}

// operatedNode returns the node in the path of an operator's call, which the audit entry then names
// with the operator's message. It refuses whoever may not do what.
func operatedNode(r request, what string) (fabric.NodeID, error) {
	text := r.PathValue("zone") + "/" + r.PathValue("name")
	r.entry.Target, r.entry.Message = text, r.URL.Query().Get("message")
	if err := r.operator.mayOperate(what); err != nil {
		return fabric.NodeID{}, err
	}
	id, err := fabric.ParseNodeID(text)
	if err != nil {
		return id, invalid("%v", err)
	}
	if err := fabric.CheckReason(r.entry.Message); err != nil {
		return id, invalid("%v", err)
	}
	return id, nil
}

func (c *Controller) putNomadNode(ctx context.Context, r request) (any, error) {
	id, err := operatedNode(r, "bind nodes to Nomad nodes")
	if err != nil {
		return nil, err
	}
	req, err := decode[api.BindRequest](r)
	if err != nil {
		return nil, err
	}
	node, registered := c.nodes.get(id)
	if !registered {
		return nil, c.nodes.unknown(id)
	}
	if err := c.intend(r); err != nil {
		return nil, err
	}
	reply, err := c.bound.bind(ctx, node, req.NomadNode)
	if err == nil {
		r.entry.Message = strings.TrimSpace(fmt.Sprintf("Nomad node %s, before %s. %s", reply.NomadNode, cmp.Or(reply.Before, "none"), r.entry.Message))
	}
	return reply, err
}

func (c *Controller) putDrain(ctx context.Context, r request) (any, error) {
	id, err := operatedNode(r, "drain nodes")
	if err != nil {
		return nil, err
	}
	req, err := decode[api.DrainRequest](r)
	if err != nil {
		return nil, err
	}
	if _, registered := c.nodes.get(id); !registered {
		return nil, c.nodes.unknown(id)
	}
	if err := c.intend(r); err != nil {
		return nil, err
	}
	return c.nodes.drain(ctx, id, req.Draining)
}

func (c *Controller) getTasks(ctx context.Context, r request) (any, error) {
	wait, err := waitOf(r, time.Minute, maxWait)
	if err != nil {
		return nil, err
	}
	ctx, cancel := r.untilStop(ctx)
	defer cancel()
	return c.tasks.next(ctx, r.node.NodeID, wait), nil
}

func (c *Controller) putStatus(_ context.Context, r request) (any, error) {
	s, err := decode[api.NodeStatus](r)
	if err != nil {
		return nil, err
	}
	if err := c.reports.put(r.node, s); err != nil {
		return nil, err
	}
	reply := api.ReportReply{Revocations: c.removal.list.List().Sequence, Away: c.told()}
	if s.Revocations < reply.Revocations {
		signed := c.removal.list.Signed()
		reply.Newer = &signed
	}
	return reply, nil
}

func (c *Controller) putTask(_ context.Context, r request) (any, error) {
	result, err := decode[api.TaskResult](r)
	if err != nil {
		return nil, err
	}
	result.ID = r.PathValue("id")
	return nil, c.tasks.done(r.node.NodeID, result)
}

func (c *Controller) postAdmission(ctx context.Context, r request) (any, error) {
	req, err := decode[api.AdmissionRequest](r)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	r.entry.Target = req.Allocation
	attached := ""
	if w := req.Attached; w != nil {
		attached = fmt.Sprintf("%.80q attached as Consul service %.80q on Consul agent %.80q", w.Name, w.ConsulService, w.ConsulNode)
	}
	r.entry.Message = attached
	if err := c.intend(r); err != nil {
		return nil, err
	}
	admission, reply, err := c.admitter.admit(ctx, r.node, req)
	if err != nil {
		return nil, err
	}
	c.lives.admitted()
	took := time.Since(begin)
	r.entry.Message = strings.TrimSuffix(admission.Identity().Key()+", "+attached, ", ")
	c.metrics.admission.WithLabelValues().Observe(took.Seconds())
	c.log.Info("endpoint admitted", logkey.Endpoint, admission.Endpoint, logkey.Node, admission.Host().String(),
		logkey.Identity, admission.Identity().Key(), logkey.Address, admission.IPv4.String(), logkey.Duration, took)
	return reply, nil
}

func (c *Controller) deleteAdmission(ctx context.Context, r request) (any, error) {
	r.entry.Target = r.PathValue("endpoint")
	c.intendRemoval(r)
	return nil, c.admitter.release(ctx, r.node, r.entry.Target)
}

func (c *Controller) getAdmissions(_ context.Context, r request) (any, error) {
	return c.admitter.admissions(r.node)
}

func (c *Controller) postRelease(ctx context.Context, r request) (any, error) {
	req, err := decode[api.ReleaseRequest](r)
	if err != nil {
		return nil, err
	}
	r.entry.Target = r.node.NodeID.String()
	r.entry.Message = strings.Join(slices.Sorted(maps.Keys(req.Issued)), " ")
	c.intendRemoval(r)
	return nil, c.admitter.releaseLost(ctx, r.node, req)
}

func (c *Controller) postCertificate(ctx context.Context, r request) (any, error) {
	req, err := decode[api.CertificateRequest](r)
	if err != nil {
		return nil, err
	}
	r.entry.Target = req.Service.String()
	if err := c.intend(r); err != nil {
		return nil, err
	}
	chain, err := c.admitter.certificate(ctx, r.node, req)
	if err := c.handsOut(ctx, err); err != nil {
		return nil, err
	}
	return api.CertificateReply{Certificate: chain}, nil
}

// handsOut returns the error of a call that hands something out and writes nothing: without the
// lock, this controller may not know any more who has which service.
func (c *Controller) handsOut(ctx context.Context, err error) error {
	if err != nil {
		return err
	}
	return c.cfg.fence.check(ctx, c.cfg.Consul())
}
