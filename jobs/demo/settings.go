// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// settings are the settings of a role, from options and the environment.
type settings struct {
	self     instance
	listen   string // host:port, as net.Listen takes it
	dataFile string // where a database keeps its data; empty: in memory only
	needs    map[string]upstream
	provider *upstream // outside the fabric; nil: the gateway has data of its own
	callers  []string  // who may call by mutual TLS, as <service>.<domain>; empty: everybody, by plain HTTP
}

// instance identifies the instance that gave an answer.
type instance struct {
	Service string `json:"service"`
	Node    string `json:"node"`
	Zone    string `json:"zone"`
	Alloc   string `json:"alloc"`
	Runtime string `json:"runtime"` // "container" or "process", set by the job
}

// ShortAlloc is the first part of the allocation ID, as Nomad abbreviates it.
func (i instance) ShortAlloc() string {
	short, _, _ := strings.Cut(i.Alloc, "-")
	return short
}

// parseSettings reads the options of a role. Environment variables are the defaults. Package flag
// writes errors in options, and the text of -h, to output.
func parseSettings(r role, args []string, getenv func(string) string, output io.Writer) (settings, error) {
	env := func(name, fallback string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return fallback
	}
	s := settings{
		self: instance{
			Service: r.service,
			Node:    env("SIF_DEMO_NODE", "unknown"),
			Zone:    env("NOMAD_DC", "unknown"),
			Alloc:   env("NOMAD_ALLOC_ID", "none"),
			Runtime: env("SIF_DEMO_RUNTIME", "process"),
		},
		needs: make(map[string]upstream, len(r.needs)),
	}

	flags := flag.NewFlagSet("sif-demo "+r.name, flag.ContinueOnError)
	flags.SetOutput(output)
	flags.StringVar(&s.listen, "listen", env("SIF_DEMO_LISTEN", ":"+strconv.Itoa(r.port)),
		"`address` to listen on; $SIF_DEMO_LISTEN")
	if r.data {
		flags.StringVar(&s.dataFile, "data", env("SIF_DEMO_DATA", ""),
			"`file` to keep the data in; in memory only if empty; $SIF_DEMO_DATA")
	}
	var provider, callers string
	if r.gateway {
		flags.StringVar(&callers, "callers", env("SIF_DEMO_CALLERS", ""),
			"who may call by mutual TLS, as `service.domain` with commas between; everybody, by plain HTTP, if empty; $SIF_DEMO_CALLERS")
		flags.StringVar(&provider, "provider", env("SIF_DEMO_PROVIDER", ""),
			"`URL` of the provider outside the fabric; data of its own if empty; $SIF_DEMO_PROVIDER")
	}
	urls := make(map[string]*string, len(r.needs))
	for _, n := range r.needs {
		name := urlVariable(n.service)
		fallback := fmt.Sprintf("http://%s.%s.sif:%d", n.service, r.domain, n.port)
		urls[n.service] = flags.String(n.service, env(name, fallback),
			fmt.Sprintf("`URL` of %s; $%s", n.service, name))
	}
	if err := flags.Parse(args); err != nil {
		return settings{}, err
	}
	if flags.NArg() > 0 {
		return settings{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if _, _, err := net.SplitHostPort(s.listen); err != nil {
		return settings{}, fmt.Errorf("option -listen: %w", err)
	}
	if callers != "" {
		s.callers = strings.Split(callers, ",")
	}
	if provider != "" {
		base, err := parseBaseURL(provider, "http")
		if err != nil {
			return settings{}, fmt.Errorf("option -provider: %w", err)
		}
		u := newUpstream(base.Hostname(), base, providerBudget)
		s.provider = &u
	}
	for _, n := range r.needs {
		base, err := parseBaseURL(*urls[n.service], "http", "https")
		if err != nil {
			return settings{}, fmt.Errorf("option -%s: %w", n.service, err)
		}
		s.needs[n.service] = newUpstream(n.service, base, n.budget)
	}
	return s, nil
}

// urlVariable returns the name of the environment variable with a service's URL:
// SIF_DEMO_URL_NEWS_GW for news-gw.
func urlVariable(service string) string {
	return "SIF_DEMO_URL_" + strings.ToUpper(strings.ReplaceAll(service, "-", "_"))
}

// parseBaseURL parses the URL of a service. Providers have no certificates; services of the fabric
// have those of the Workload API.
func parseBaseURL(raw string, schemes ...string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(schemes, u.Scheme) {
		return nil, fmt.Errorf("%q: the scheme must be %s", raw, strings.Join(schemes, " or "))
	}
	if u.Hostname() == "" {
		return nil, fmt.Errorf("%q has no host", raw)
	}
	if u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, errors.New("expected only scheme, host and port: http://<host>:<port>")
	}
	u.Path = ""
	return u, nil
}
