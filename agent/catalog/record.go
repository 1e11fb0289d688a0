// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/sif-project/sif/fabric"
)

// Registration is an endpoint to be registered in the catalog.
type Registration struct {
	Admission fabric.Admission
	Signed    fabric.Signed // the signed form of Admission
	Source    Source
	Life      Life
}

// Life says whether an endpoint can be called, as far as its checks in Consul have no say. The zero
// value says that it can.
type Life struct {
	Unknown bool   // what the record said before holds
	Waits   string // why it cannot be called, in words that follow "it"
}

// Source names the registrations with the Consul agent that a workload outside Nomad stands for: it
// has their health. The zero value is an allocation, whose registrations have its ID.
type Source struct {
	Service string // in Consul
	ID      string // of one registration; empty: all of the service
}

// has reports whether a registration belongs to the source.
func (o Source) has(s *consulapi.AgentService) bool {
	return s.Service == o.Service && (o.ID == "" || s.ID == o.ID)
}

// sources returns the sorted IDs of the registrations whose health the endpoint has.
func (r Registration) sources(have map[string]*consulapi.AgentService) []string {
	if r.Source == (Source{}) {
		return nomadServices(have, r.Admission.Endpoint)
	}
	var ids []string
	for id, s := range have {
		if r.Source.has(s) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (r Registration) id() string { return fabric.CatalogID(r.Admission.Zone, r.Admission.Endpoint) }

// Keys of a record's metadata. The admission is the JSON form of a fabric.Signed, split into the
// values of metaAdmission+"0", metaAdmission+"1" and so on.
const (
	metaZone      = "sif-zone"
	metaNode      = "sif-node"
	metaService   = "sif-service"
	metaAdmission = "sif-admission-"
)

// Consul's limits of metadata.
const (
	maxValue  = 512    // bytes of a value
	maxChunks = 64 - 3 // pairs of a record, less the three with other keys
)

// Keys of a record's tagged addresses.
const (
	tagIPv4 = "lan_ipv4"
	tagIPv6 = "lan_ipv6"
)

// meta returns the metadata of a registration, with the text of a word about its health.
func (r Registration) meta(health string) (map[string]string, error) {
	text, err := json.Marshal(r.Signed)
	if err != nil {
		return nil, fmt.Errorf("encode the admission of endpoint %s: %w", r.Admission.Endpoint, err)
	}
	chunks := func(bytes int) int { return (bytes + maxValue - 1) / maxValue }
	if most := (maxChunks - chunks(len(health))) * maxValue; len(text) > most {
		return nil, fmt.Errorf("the admission of endpoint %s has %d bytes, but a catalog record can contain only %d", r.Admission.Endpoint, len(text), most)
	}
	m := map[string]string{metaZone: r.Admission.Zone, metaNode: r.Admission.Node, metaService: r.Admission.Service.String()}
	split(m, metaAdmission, string(text))
	split(m, metaWord, health)
	return m, nil
}

// decodeAdmission decodes an admission in a record's metadata. It does not verify the signature.
func decodeAdmission(text string) (fabric.Signed, error) {
	var s fabric.Signed
	if text == "" {
		return s, errors.New("it has no admission")
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return s, fmt.Errorf("its admission cannot be decoded: %w", err)
	}
	return s, nil
}

// service returns the registration for the local Consul agent, with checks of these names and the
// text of a word about its health.
func (r Registration) service(checks []string, health string) (*consulapi.AgentServiceRegistration, error) {
	meta, err := r.meta(health)
	if err != nil {
		return nil, err
	}
	s := &consulapi.AgentServiceRegistration{
		ID:      r.id(),
		Name:    fabric.CatalogName(r.Admission.Service),
		Address: r.Admission.IPv4.String(),
		TaggedAddresses: map[string]consulapi.ServiceAddress{
			tagIPv4: {Address: r.Admission.IPv4.String()},
			tagIPv6: {Address: r.Admission.IPv6.String()},
		},
		Meta: meta,
	}
	for _, name := range checks {
		s.Checks = append(s.Checks, check(s.ID, name))
	}
	return s, nil
}

// checkAbsent is the name of the check of an endpoint whose services are not registered yet, or no
// longer. Other checks have the ID of the service that they mirror as their name.
const checkAbsent = "absent"

// checkLife is the name of the check of an endpoint that cannot be called whatever its services
// say. It is for those who ask Consul.
const checkLife = "life"

// check returns a check of the endpoint with this service ID.
func check(service, name string) *consulapi.AgentServiceCheck {
	c := &consulapi.AgentServiceCheck{CheckID: service + ":" + name}
	if name == checkAbsent {
		// An alias check would also become critical when its service is removed, but Consul 1.20
		// may take a minute to notice.
		c.Name, c.TTL, c.Status = "The services are not registered", "24h", consulapi.HealthCritical
		return c
	}
	if name == checkLife {
		c.Name, c.TTL, c.Status = "The workload cannot be called", "24h", consulapi.HealthCritical
		return c
	}
	c.Name, c.AliasService = "Consul service "+name, name
	if strings.HasPrefix(name, nomadPrefix) {
		c.Name = "Nomad service " + name
	}
	return c
}

// checkName returns the name of an endpoint's check. It returns false if this package did not
// register the check.
func checkName(c *consulapi.AgentCheck) (string, bool) {
	return strings.CutPrefix(c.CheckID, c.ServiceID+":")
}

// checkRecord returns an error if a record does not match the admission in it.
func checkRecord(service fabric.Ref, a fabric.Admission, s *consulapi.AgentService) error {
	id := fabric.CatalogID(a.Zone, a.Endpoint)
	switch {
	case a.Service != service:
		return fmt.Errorf("its admission is for service %s", a.Service)
	case s.ID != id:
		return fmt.Errorf("its admission is for the record %s", id)
	}
	for _, addr := range []struct {
		what, text string
		want       netip.Addr
	}{
		{"address", s.Address, a.IPv4},
		{"IPv4 address", s.TaggedAddresses[tagIPv4].Address, a.IPv4},
		{"IPv6 address", s.TaggedAddresses[tagIPv6].Address, a.IPv6},
	} {
		if got, err := netip.ParseAddr(addr.text); err != nil || got != addr.want {
			return fmt.Errorf("its %s is %q, but %s was admitted", addr.what, addr.text, addr.want)
		}
	}
	return nil
}
