// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

// maxBody is the largest size of a message between services, in bytes.
const maxBody = 1 << 20

// upstream is a service that this one calls.
type upstream struct {
	service string
	base    *url.URL
	budget  time.Duration
	client  *http.Client
}

// newUpstream returns a client that opens a connection and resolves the name for each request. So a
// change of instances or connectivity shows at the next request, and no request fails because an
// idle connection was closed.
func newUpstream(service string, base *url.URL, budget time.Duration) upstream {
	return upstream{
		service: service,
		base:    base,
		budget:  budget,
		client: &http.Client{
			Transport: &http.Transport{
				// The transport removes the request's deadline from the dial. With a timeout of its
				// own, the dialer divides the time among the addresses of a name.
				DialContext:            (&net.Dialer{Timeout: budget}).DialContext,
				DialTLSContext:         proven.dialTLS,
				DisableKeepAlives:      true,
				MaxResponseHeaderBytes: 16 << 10,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// statusError is an answer with an error status.
type statusError struct {
	service string
	status  int
	message string // the service's message; may be empty
}

func (e *statusError) Error() string {
	if e.message == "" {
		return fmt.Sprintf("%s answered %d %s", e.service, e.status, http.StatusText(e.status))
	}
	return fmt.Sprintf("%s answered %d: %s", e.service, e.status, e.message)
}

// call sends one request with an optional JSON body and decodes the data of the answer. The error
// is for users: it names the service and the likely cause.
func call[T any](ctx context.Context, u upstream, method, path string, query url.Values, body any, header http.Header) (reply[T], error) {
	var none reply[T]
	ctx, cancel := context.WithTimeout(ctx, u.budget)
	defer cancel()

	var payload io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return none, fmt.Errorf("encode the request to %s: %w", u.service, err)
		}
		payload = bytes.NewReader(encoded)
	}
	target := u.base.JoinPath(path)
	target.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, target.String(), payload)
	if err != nil {
		return none, fmt.Errorf("request to %s: %w", u.service, err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}

	resp, err := u.client.Do(req)
	if err != nil {
		return none, u.explain(err)
	}
	defer resp.Body.Close()
	proof := proofOf(resp.TLS)
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return none, u.explain(err)
	}
	if len(raw) > maxBody {
		return none, fmt.Errorf("the answer of %s exceeds %d bytes", u.service, maxBody)
	}
	var answer reply[T]
	decodeErr := json.Unmarshal(raw, &answer)
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return none, &statusError{service: u.service, status: resp.StatusCode, message: answer.Error}
	}
	if decodeErr != nil {
		return none, fmt.Errorf("decode the answer of %s: %w", u.service, decodeErr)
	}
	if answer.Data == nil {
		return none, fmt.Errorf("the answer of %s has no data", u.service)
	}
	answer.Server = proof
	return answer, nil
}

func get[T any](ctx context.Context, u upstream, path string, query url.Values) (reply[T], error) {
	return call[T](ctx, u, http.MethodGet, path, query, nil, nil)
}

// explain returns an error that says why the service cannot be reached. It wraps the cause.
func (u upstream) explain(err error) error {
	// Omit the URL that package http adds: the service's name is more useful.
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err
	}
	host := u.base.Host
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Errorf("%s: the name %s does not exist here: no contract leads there, or no instance is healthy (%w)",
			u.service, u.base.Hostname(), err)
	case errors.As(err, &dns):
		return fmt.Errorf("%s: cannot resolve the name %s (%w)", u.service, u.base.Hostname(), err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: no answer from %s within %s (%w)", u.service, host, u.budget, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: %s refused the connection (%w)", u.service, host, err)
	default:
		return fmt.Errorf("%s: call to %s failed: %w", u.service, host, err)
	}
}

// gatewayStatus is the HTTP status with which a service reports that a service which it called
// failed. Errors that the client caused are passed on.
func gatewayStatus(err error) int {
	var status *statusError
	switch {
	case errors.As(err, &status) && status.status >= 400 && status.status < 500:
		return status.status
	case errors.As(err, &status) && status.status == http.StatusInsufficientStorage:
		return http.StatusInsufficientStorage
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	default:
		return http.StatusBadGateway
	}
}
