// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/logkey"
)

// getAudit returns the newest records of all controllers that the filter selects.
func (c *Controller) getAudit(ctx context.Context, r request) (any, error) {
	if err := r.operator.mayReadAll("read the audit log"); err != nil {
		return nil, err
	}
	f, err := filterOf(r.URL.Query())
	if err != nil {
		return nil, err
	}
	logs, err := c.auditLogs(ctx)
	if err != nil {
		return nil, err
	}
	records := []api.AuditRecord{}
	for _, l := range logs {
		var found []api.AuditRecord
		for _, first := range slices.Backward(l.segments) {
			lines, err := c.auditSegment(ctx, l.Controller, first)
			if err != nil {
				return nil, err
			}
			before := false
			for _, line := range slices.Backward(lines) {
				var a api.AuditRecord
				if json.Unmarshal([]byte(line), &a) != nil {
					continue // `sif audit verify` reports it
				}
				a.Controller, a.Address = l.Controller, l.Address
				before = before || a.Time.Before(f.Since)
				if selects(f, a) && len(found) < f.Limit {
					found = append(found, a)
				}
			}
			if before || len(found) >= f.Limit {
				break
			}
		}
		records = append(records, found...)
	}
	slices.SortStableFunc(records, func(a, b api.AuditRecord) int { return a.Time.Compare(b.Time) })
	return records[max(0, len(records)-f.Limit):], nil
}

// filterOf decodes a filter from the query parameters.
func filterOf(v url.Values) (f api.AuditFilter, err error) {
	f = api.AuditFilter{Actor: v.Get("actor"), Action: v.Get("action"), Target: v.Get("target"), Refused: v.Get("refused") == "true", Begun: v.Get("begun") == "true", Limit: api.DefaultAuditLimit}
	for name, t := range map[string]*time.Time{"since": &f.Since, "until": &f.Until} {
		if text := v.Get(name); text != "" {
			if *t, err = time.Parse(time.RFC3339Nano, text); err != nil {
				return f, invalid("%s: %q must be a time such as 2026-11-29T08:00:00Z", name, text)
			}
		}
	}
	if text := v.Get("limit"); text != "" {
		if f.Limit, err = strconv.Atoi(text); err != nil || f.Limit < 1 || f.Limit > api.MaxAuditRecords {
			return f, invalid("limit: %q must be a number from 1 to %d", text, api.MaxAuditRecords)
		}
	}
	return f, nil
}

func selects(f api.AuditFilter, a api.AuditRecord) bool {
	return strings.Contains(a.Actor, f.Actor) && strings.Contains(a.Action, f.Action) && strings.Contains(a.Target, f.Target) &&
		(!f.Refused || a.Refused != "") && (f.Begun || !a.Begun) &&
		!a.Time.Before(f.Since) && (f.Until.IsZero() || !a.Time.After(f.Until))
}

// auditOf is the log of a controller with the first numbers of its segments, ordered.
type auditOf struct {
	api.AuditLog
	segments []uint64
}

// auditLogs lists the logs in Consul. It ships what this controller has not shipped first.
func (c *Controller) auditLogs(ctx context.Context) ([]auditOf, error) {
	if err := c.shipper.ship(ctx); err != nil {
		c.log.Warn("cannot copy the newest records of the audit log to Consul", logkey.Error, err)
	}
	q := (&consulapi.QueryOptions{}).WithContext(ctx)
	keys, _, err := c.cfg.Consul().KV().Keys(kvkey.Audit, "", q)
	if err != nil {
		return nil, unavailable("list the audit logs in Consul: %v", err)
	}
	by := map[string]*auditOf{}
	var list []auditOf
	for _, key := range keys {
		id, first, err := kvkey.ParseAuditSegment(key)
		if err != nil {
			if id, err = kvkey.ParseAuditHead(key); err != nil {
				continue
			}
		}
		if by[id] == nil {
			by[id] = &auditOf{AuditLog: api.AuditLog{Controller: id, Address: c.peers.addressOf(id)}}
		}
		if first > 0 {
			by[id].segments = append(by[id].segments, first)
		}
	}
	for id, l := range by {
		slices.Sort(l.segments)
		if len(l.segments) > 0 {
			l.First = l.segments[0]
		}
		for key, v := range map[string]any{kvkey.AuditHead(id): &l.Signed, kvkey.AuditNote(id): &l.Noted} {
			kv, _, err := c.cfg.Consul().KV().Get(key, q)
			if err != nil {
				return nil, unavailable("read %s from Consul: %v", key, err)
			}
			if kv != nil {
				_ = json.Unmarshal(kv.Value, v) // what is not there is reported by who verifies
			}
		}
		list = append(list, *l)
	}
	slices.SortFunc(list, func(a, b auditOf) int { return strings.Compare(a.Controller, b.Controller) })
	return list, nil
}

// auditSegment returns the records of a segment. One that cannot be read is a single line, which is
// no record.
func (c *Controller) auditSegment(ctx context.Context, id string, first uint64) ([]string, error) {
	key := kvkey.AuditSegment(id, first)
	kv, _, err := c.cfg.Consul().KV().Get(key, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, unavailable("read %s from Consul: %v", key, err)
	}
	if kv == nil {
		return nil, nil // deleted meanwhile
	}
	text, err := unpackSegment(kv.Value)
	if err != nil {
		return []string{key + " cannot be read: " + err.Error()}, nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"), nil
}

func (c *Controller) getAuditLogs(ctx context.Context, r request) (any, error) {
	if err := r.operator.mayReadAll("read the audit log"); err != nil {
		return nil, err
	}
	list, err := c.auditLogs(ctx)
	if err != nil {
		return nil, err
	}
	reply := []api.AuditLog{}
	for _, l := range list {
		reply = append(reply, l.AuditLog)
	}
	return reply, nil
}

// getAuditPage returns whole segments of a log, from the one that contains the record after the one
// that the caller has.
func (c *Controller) getAuditPage(ctx context.Context, r request) (any, error) {
	if err := r.operator.mayReadAll("read the audit log"); err != nil {
		return nil, err
	}
	after, err := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
	if err != nil {
		return nil, invalid("after: %q must be the number of a record", r.URL.Query().Get("after"))
	}
	id := r.PathValue("controller")
	if err := kvkey.CheckController(id); err != nil {
		return nil, invalid("%v", err)
	}
	segments, err := auditSegments(c.cfg.Consul(), id, (&consulapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, unavailable("list the segments of the audit log in Consul: %v", err)
	}
	page := api.AuditPage{Records: []string{}}
	for i, first := range segments {
		if i+1 < len(segments) && segments[i+1] <= after+1 {
			continue
		}
		lines, err := c.auditSegment(ctx, id, first)
		if err != nil {
			return nil, err
		}
		for _, line := range lines {
			var a api.AuditRecord
			if json.Unmarshal([]byte(line), &a) == nil && a.Number <= after {
				continue
			}
			page.Records = append(page.Records, line)
		}
		if len(page.Records) >= api.MaxAuditRecords {
			break
		}
	}
	return page, nil
}
