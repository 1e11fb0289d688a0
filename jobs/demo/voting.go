// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
)

// option is a choice in the vote.
type option struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

var options = []option{
	{"mountains", "The mountains"},
	{"sea", "The sea"},
	{"city", "A city"},
}

func optionName(id string) (string, bool) {
	for _, o := range options {
		if o.ID == id {
			return o.Name, true
		}
	}
	return "", false
}

// Names in the databases.
const (
	voteQueue = "votes" // in voting-db: entries are of type vote
	tallyKey  = "tally" // in result-db: a tally
)

// vote is one voter's choice. A later one replaces it.
type vote struct {
	Voter  string `json:"voter"`
	Choice string `json:"choice"`
}

const maxVoter = 64 // bytes of a voter's name

func (v vote) validate() error {
	if v.Voter == "" || len(v.Voter) > maxVoter {
		return fmt.Errorf("a vote must have a voter of at most %d bytes", maxVoter)
	}
	if _, ok := optionName(v.Choice); !ok {
		return fmt.Errorf("unknown option %q", v.Choice)
	}
	return nil
}

// ballot is the list of options of voting-svc.
type ballot struct {
	Options []option `json:"options"`
}

// receipt tells where a vote was stored.
type receipt struct {
	Vote     vote     `json:"vote"`
	Position int      `json:"position"` // in the queue, counted from 0
	Database instance `json:"database"`
}

// newVotingService builds voting-svc: GET /options, and POST /votes with a vote.
func newVotingService(s settings, log *slog.Logger) (*service, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", healthy(s.self))
	mux.HandleFunc("GET /options", func(w http.ResponseWriter, _ *http.Request) {
		writeData(w, s.self, http.StatusOK, ballot{Options: options})
	})
	mux.HandleFunc("POST /votes", func(w http.ResponseWriter, r *http.Request) {
		var v vote
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&v); err != nil {
			writeError(w, s.self, http.StatusBadRequest, fmt.Errorf("decode the vote: %w", err))
			return
		}
		if err := v.validate(); err != nil {
			writeError(w, s.self, http.StatusBadRequest, err)
			return
		}
		answer, err := call[stored](r.Context(), s.needs["voting-db"], http.MethodPost, "/queues/"+voteQueue, nil, v, nil)
		if err != nil {
			log.Warn("vote not taken", "error", err)
			writeError(w, s.self, gatewayStatus(err), fmt.Errorf("the vote was not taken: %w", err))
			return
		}
		writeData(w, s.self, http.StatusCreated,
			receipt{Vote: v, Position: answer.Data.Position, Database: answer.Instance})
	})
	return &service{handler: mux}, nil
}
