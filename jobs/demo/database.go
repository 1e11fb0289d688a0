// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
)

// stored is the answer to a change.
type stored struct {
	Version  uint64 `json:"version,omitempty"`  // of a key, after it was set
	Position int    `json:"position,omitempty"` // of an entry in its queue
}

// queueSlice is a part of a queue.
type queueSlice struct {
	Store   string            `json:"store"` // ID of the store to which the positions belong
	Entries []json.RawMessage `json:"entries"`
	Next    int               `json:"next"` // position after the last entry
}

// newDatabase builds voting-db and result-db, which differ only in their data:
//
//	GET  /kv/{key}                     value and version
//	PUT  /kv/{key}  If-Match: version  sets it if it has this version (0: no value yet)
//	POST /queues/{queue}               appends an entry
//	GET  /queues/{queue}?from=&limit=  entries from a position
//
// Values and entries are any JSON.
func newDatabase(s settings, log *slog.Logger) (*service, error) {
	data, err := openStore(s.dataFile)
	if err != nil {
		return nil, err
	}
	db := database{self: s.self, data: data, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", healthy(s.self))
	mux.HandleFunc("GET /kv/{key}", db.getKey)
	mux.HandleFunc("PUT /kv/{key}", db.putKey)
	mux.HandleFunc("GET /queues/{queue}", db.getQueue)
	mux.HandleFunc("POST /queues/{queue}", db.postQueue)
	return &service{handler: mux, closer: data.close}, nil
}

type database struct {
	self instance
	data *store
	log  *slog.Logger
}

func (db database) getKey(w http.ResponseWriter, r *http.Request) {
	v, err := db.data.get(r.PathValue("key"))
	if err != nil {
		db.fail(w, err)
		return
	}
	writeData(w, db.self, http.StatusOK, v)
}

func (db database) putKey(w http.ResponseWriter, r *http.Request) {
	version, err := strconv.ParseUint(r.Header.Get("If-Match"), 10, 64)
	if err != nil {
		db.fail(w, badRequest("the header If-Match must hold the version that is to be replaced, 0 for a new key"))
		return
	}
	key, value, err := readValue(w, r, "key")
	if err != nil {
		db.fail(w, err)
		return
	}
	version, err = db.data.put(key, value, version)
	if err != nil {
		db.fail(w, err)
		return
	}
	writeData(w, db.self, http.StatusOK, stored{Version: version})
}

func (db database) getQueue(w http.ResponseWriter, r *http.Request) {
	from, err := queryNumber(r, "from", 0)
	if err != nil {
		db.fail(w, err)
		return
	}
	limit, err := queryNumber(r, "limit", 100)
	if err != nil {
		db.fail(w, err)
		return
	}
	entries, next := db.data.slice(r.PathValue("queue"), from, limit)
	writeData(w, db.self, http.StatusOK, queueSlice{Store: db.data.id, Entries: entries, Next: next})
}

func (db database) postQueue(w http.ResponseWriter, r *http.Request) {
	queue, value, err := readValue(w, r, "queue")
	if err != nil {
		db.fail(w, err)
		return
	}
	position, err := db.data.add(queue, value)
	if err != nil {
		db.fail(w, err)
		return
	}
	writeData(w, db.self, http.StatusCreated, stored{Position: position})
}

func (db database) fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var bad badRequest
	switch {
	case errors.As(err, &bad):
		status = http.StatusBadRequest
	case errors.Is(err, errNoKey):
		status = http.StatusNotFound
	case errors.Is(err, errConflict):
		status = http.StatusPreconditionFailed
	case errors.Is(err, errTooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, errFull):
		status = http.StatusInsufficientStorage
	default:
		db.log.Error("request failed", "error", err)
	}
	writeError(w, db.self, status, err)
}

// badRequest is an error that the caller caused.
type badRequest string

func (e badRequest) Error() string { return string(e) }

// readValue returns the name in the path and the JSON value in the body.
func readValue(w http.ResponseWriter, r *http.Request, pathPart string) (string, json.RawMessage, error) {
	name := r.PathValue(pathPart)
	if len(name) > maxNameSize {
		return "", nil, badRequest(fmt.Sprintf("the name of a %s may have at most %d bytes", pathPart, maxNameSize))
	}
	value, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxValue))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return "", nil, errTooLarge
	}
	if err != nil {
		return "", nil, badRequest("read the body: " + err.Error())
	}
	if !json.Valid(value) {
		return "", nil, badRequest("the body is not valid JSON")
	}
	return name, value, nil
}

func queryNumber(r *http.Request, name string, fallback int) (int, error) {
	raw := r.URL.Query().Get(name)
	if raw == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(raw)
	if err != nil || n < 0 {
		return 0, badRequest(fmt.Sprintf("%s must be a whole number of at least 0, not %q", name, raw))
	}
	return n, nil
}
