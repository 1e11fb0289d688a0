// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
)

// result is the answer of result-svc.
type result struct {
	Options  []optionResult `json:"options"`
	Voters   int            `json:"voters"`
	Votes    int            `json:"votes"` // all votes cast, replaced ones included
	Database *instance      `json:"database,omitempty"`
}

type optionResult struct {
	option
	Voters  int `json:"voters"`
	Percent int `json:"percent"` // of all voters, rounded
}

// newResultService builds result-svc: GET /results.
func newResultService(s settings, log *slog.Logger) (*service, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", healthy(s.self))
	mux.HandleFunc("GET /results", func(w http.ResponseWriter, r *http.Request) {
		t, from, err := readTally(r, s.needs["result-db"])
		if err != nil {
			log.Warn("no result", "error", err)
			writeError(w, s.self, gatewayStatus(err), err)
			return
		}
		res := evaluate(t)
		res.Database = from
		writeData(w, s.self, http.StatusOK, res)
	})
	return &service{handler: mux}, nil
}

// readTally returns the tally in result-db. Until the worker has written one, it returns an empty
// tally and a nil instance, because a "not found" answer does not contain the instance.
func readTally(r *http.Request, db upstream) (tally, *instance, error) {
	answer, err := get[versioned](r.Context(), db, "/kv/"+tallyKey, nil)
	var status *statusError
	if errors.As(err, &status) && status.status == http.StatusNotFound {
		return tally{}, nil, nil
	}
	if err != nil {
		return tally{}, nil, err
	}
	var t tally
	if err := json.Unmarshal(answer.Data.Value, &t); err != nil {
		return tally{}, nil, fmt.Errorf("decode the tally in result-db: %w", err)
	}
	return t, &answer.Instance, nil
}

func evaluate(t tally) result {
	res := result{Voters: t.Voters, Votes: t.Votes}
	for _, o := range options {
		line := optionResult{option: o, Voters: t.Counts[o.ID]}
		if t.Voters > 0 {
			line.Percent = (200*line.Voters + t.Voters) / (2 * t.Voters)
		}
		res.Options = append(res.Options, line)
	}
	return res
}
