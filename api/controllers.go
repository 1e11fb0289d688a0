// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Headers of each answer of a controller.
const (
	ControllerHeader  = "X-Sif-Controller"  // host:port of the controller that answers
	ControllersHeader = "X-Sif-Controllers" // host:port of the controllers that it reaches, itself among them, separated by commas
	LeaderHeader      = "X-Sif-Leader"      // "true" if it leads
	// AgeHeader says how old the answer can be, in seconds, because the controller that answers
	// does not lead. It is missing if the controller does not know that.
	AgeHeader = "X-Sif-Age"
)

const (
	// DefaultPatience is how long a call waits for a controller to lead.
	DefaultPatience = 30 * time.Second
	// leaderPause is the time between two questions who leads, while nobody does.
	leaderPause = 200 * time.Millisecond
	// shunned is how long a controller that could not be reached is not asked again because another
	// one says that it leads.
	shunned = 3 * time.Second
	// maxControllers bounds how many addresses a client knows.
	maxControllers = 16
)

// controllers are the addresses at which a client asks. It prefers the one that answered last.
type controllers struct {
	configured []*url.URL
	learned    func(addresses []string) // may be nil

	mu      sync.Mutex
	told    []string // as a controller last listed them
	others  []*url.URL
	current *url.URL
	failed  map[string]time.Time // by host:port: when it could not be reached
}

// parseAddresses parses one or several addresses of controllers, separated by commas.
func parseAddresses(text string) ([]*url.URL, error) {
	if text == "" {
		text = DefaultAddress
	}
	var list []*url.URL
	for address := range strings.SplitSeq(text, ",") {
		address = strings.TrimSpace(address)
		if !strings.Contains(address, "://") {
			address = "https://" + address
		}
		u, err := url.Parse(address)
		if err != nil {
			return nil, fmt.Errorf("address of the controller: %w", err)
		}
		if u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("address of the controller %q: must be of the form https://host:port; several are separated by commas", text)
		}
		list = append(list, u)
	}
	return list, nil
}

func newControllers(cfg Config) (*controllers, error) {
	list, err := parseAddresses(cfg.Address)
	if err != nil {
		return nil, err
	}
	c := &controllers{configured: list, learned: cfg.Learned, current: list[0], failed: map[string]time.Time{}}
	c.take(cfg.Known)
	return c, nil
}

// take takes the addresses that a controller listed, besides the configured ones.
func (c *controllers) take(addresses []string) {
	c.others = nil
	for _, a := range addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" || port == "" || strings.ContainsAny(a, "/@?#% ") {
			continue
		}
		u := &url.URL{Scheme: "https", Host: a}
		if !slices.ContainsFunc(c.configured, func(o *url.URL) bool { return o.Host == u.Host }) && len(c.configured)+len(c.others) < maxControllers {
			c.others = append(c.others, u)
		}
	}
}

// hear takes what the header of an answer says of the controllers.
func (c *controllers) hear(h http.Header) {
	text := h.Get(ControllersHeader)
	if text == "" {
		return
	}
	list := strings.Split(text, ",")
	slices.Sort(list)
	c.mu.Lock()
	changed := !slices.Equal(list, c.told)
	if changed {
		c.told = list
		c.take(list)
	}
	c.mu.Unlock()
	if changed && c.learned != nil {
		c.learned(list)
	}
}

// now returns the address to ask.
func (c *controllers) now() *url.URL {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// leader has the next call go to the controller that another one says leads, unless it could not be
// reached a moment ago.
func (c *controllers) leader(address string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if address == "" || time.Since(c.failed[address]) < shunned {
		return false
	}
	for _, u := range slices.Concat(c.configured, c.others) {
		if u.Host == address {
			c.current = u
			return true
		}
	}
	if _, _, err := net.SplitHostPort(address); err != nil || strings.ContainsAny(address, "/@?#% ") {
		return false
	}
	c.current = &url.URL{Scheme: "https", Host: address}
	return true
}

// next has the next call go to another controller than the one at an address, which could not be
// reached or does not know who leads. tried are those that were asked in vain; it returns false if
// there is no other.
func (c *controllers) next(from *url.URL, tried map[string]bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := slices.Concat(c.configured, c.others)
	at := slices.IndexFunc(list, func(u *url.URL) bool { return u.Host == from.Host })
	for i := range list {
		if u := list[(at+1+i)%len(list)]; !tried[u.Host] {
			c.current = u
			return true
		}
	}
	return false
}

// unreachable notes that a controller could not be reached.
func (c *controllers) unreachable(at *url.URL) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed[at.Host] = time.Now()
}

// reached notes that a controller answered.
func (c *controllers) reached(at *url.URL) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.failed, at.Host)
}

// refusedEverywhere returns the error of a call that reached no controller.
func refusedEverywhere(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	return fmt.Errorf("no controller can be reached:\n%w", errors.Join(errs...))
}
