// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package setup prepares Vault, Consul and Nomad for a fabric, as an operator does once, with
// administrators' tokens, and makes the credentials with which machines join.
//
// All that a fabric needs is a list of objects, which follows from its settings. The package
// compares the list with what the servers have, writes what differs, and takes all of it away
// again. Each object says whose it is; one of another owner is never changed. It knows the APIs of
// the servers, and the names that the daemons use. It does not know how daemons or servers are
// started.
package setup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/join"
	"github.com/sif-project/sif/internal/wellknown"
)

// DefaultCertTTL is the lifetime of certificates, unless the settings name another.
const DefaultCertTTL = 8 * time.Hour

// ShortestCertTTL is the shortest lifetime of certificates. Each renewal of a service's is a
// signature of Vault, and an announcement of each of its endpoints.
const ShortestCertTTL = time.Minute

// Default pools of the nodes.
const (
	DefaultPool4 = "100.64.0.0/10"
	DefaultPool6 = "fd5f:7369:6600::/48"
)

// The oldest versions of the servers that have what the fabric uses, as their documentation says.
const (
	OldestVault  = "1.11.0" // pki/issuers, and the metadata of AppRole's aliases
	OldestConsul = "1.10.0" // streaming health; JWT auth methods came with 1.8.0
	OldestNomad  = "1.5.4"  // JWT auth methods
)

// Defaults completes settings. Names that are not given follow from the prefix.
func Defaults(s join.Settings) join.Settings {
	fill := func(to *string, value string) {
		if *to == "" {
			*to = value
		}
	}
	fill(&s.Fabric, "sif")
	fill(&s.Prefix, wellknown.Prefix)
	fill(&s.TrustDomain, s.Fabric+".internal")
	fill(&s.Pools.IPv4, DefaultPool4)
	fill(&s.Pools.IPv6, DefaultPool6)
	fill(&s.Vault.PKIMount, s.Prefix+"-pki")
	fill(&s.Vault.TransitMount, s.Prefix+"-transit")
	fill(&s.Vault.TransitKey, s.Prefix)
	fill(&s.Vault.AppRoleMount, s.Prefix+"-approle")
	fill(&s.Vault.SettingsMount, s.Prefix+"-settings")
	if s.CertTTL == 0 {
		s.CertTTL = DefaultCertTTL
	}
	return s
}

// Check returns an error that names each setting that cannot be used.
func Check(s join.Settings) error {
	var errs []error
	report := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	report("the fabric's name", fabric.CheckName(s.Fabric))
	report("the prefix of names", fabric.CheckName(s.Prefix))
	if s.TrustDomain == "" {
		report("the trust domain", errors.New("it must not be empty"))
	}
	if s.CertTTL > fabric.MaxCertificateLife || s.CertTTL < ShortestCertTTL {
		report("the lifetime of certificates", fmt.Errorf("%s is outside %s to %s; removals of nodes are kept for the time after that", s.CertTTL, ShortestCertTTL, fabric.MaxCertificateLife))
	}
	for _, p := range []struct {
		text  string
		is4   bool
		most  int
		field string
	}{{s.Pools.IPv4, true, cmp.Or(s.Pools.NodePrefix, fabric.SmallestNodePrefix), "IPv4 pool"}, {s.Pools.IPv6, false, 64, "IPv6 pool"}} {
		prefix, err := netip.ParsePrefix(p.text)
		switch {
		case err != nil || prefix.Addr().Is4() != p.is4:
			report(p.field, fmt.Errorf("%q is not such a prefix", p.text))
		case prefix != prefix.Masked():
			report(p.field, fmt.Errorf("%q has host bits set, did you mean %s?", p.text, prefix.Masked()))
		case prefix.Bits() > p.most:
			report(p.field, fmt.Errorf("%q is too small: each node uses a /%d", p.text, p.most))
		}
	}
	if s.Pools.NodePrefix != 0 {
		report("the pools of nodes", fabric.CheckNodePrefix(s.Pools.NodePrefix))
	}
	report("the controller's job", checkJob(s.ControllerJob))
	if s.ControllerJob != "" && s.Nomad.Address == "" {
		report("the controller's job", errors.New("it needs the address of Nomad (-nomad-address)"))
	}
	mounts := []string{s.Vault.PKIMount, s.Vault.TransitMount, s.Vault.SettingsMount}
	if slices.Sort(mounts); len(slices.Compact(mounts)) != 3 {
		report("mounts in Vault", errors.New("each needs a path of its own"))
	}
	return errors.Join(errs...)
}

// Clients are the servers, with administrators' tokens. Those of one that is nil are left out;
// without Vault, so are the log-ins with its tokens.
type Clients struct {
	Vault  *vaultapi.Client
	Consul *consulapi.Client
	Nomad  *nomadapi.Client
}

// Setup is the setting up of one fabric.
type Setup struct {
	clients  Clients
	settings join.Settings
	objects  []object
}

// New returns the set-up of a fabric with complete settings; see Discover for what they need of the
// servers.
func New(clients Clients, settings join.Settings) *Setup {
	s := &Setup{clients: clients, settings: settings}
	v := &vault{client: clients.Vault, settings: settings}
	if clients.Vault != nil {
		s.objects = v.objects()
	}
	if clients.Consul != nil && settings.Consul.AuthMethod != "" {
		s.objects = append(s.objects, consulObjects(clients.Consul, settings, clients.Vault != nil)...)
	}
	if clients.Nomad != nil && settings.Nomad.AuthMethod != "" {
		s.objects = append(s.objects, nomadObjects(clients.Nomad, settings, clients.Vault != nil)...)
	}
	if clients.Vault != nil { // the last one: whoever reads it finds everything else
		s.objects = append(s.objects, v.settingsObject())
	}
	return s
}

// Check compares what the servers have with what they must have. It writes nothing.
func (s *Setup) Check(ctx context.Context) (Report, error) {
	items, err := inspectAll(ctx, s.settings.Fabric, s.objects)
	return Report{Items: items}, err
}

// Apply writes what is missing or differs, and then checks that Consul's and Nomad's servers reach
// the keys with which Vault signs. It can be run again after an interruption. Nothing is written if
// an object of that name belongs to another owner.
func (s *Setup) Apply(ctx context.Context, told func(Item)) error {
	r, err := s.Check(ctx)
	if err != nil {
		return err
	}
	if err := r.refuseForeign(); err != nil {
		return err
	}
	if err := applyAll(ctx, s.settings.Fabric, s.objects, told); err != nil {
		return err
	}
	if s.clients.Vault == nil {
		return nil
	}
	return s.checkKeys(ctx)
}

// CheckDestroy returns what Destroy would take away.
func (s *Setup) CheckDestroy(ctx context.Context) (Report, error) {
	var r Report
	for _, o := range s.objects {
		item := Item{Server: o.server, Kind: o.kind, Name: o.name, object: o, State: Absent}
		var err error
		if item.have, err = o.read(ctx); err != nil {
			return r, fmt.Errorf("read %s: %w", item, err)
		}
		switch {
		case item.have == nil:
		case item.have.owner != s.settings.Fabric:
			item.State, item.Hint = Foreign, "it is not this fabric's, so it stays"
		default:
			item.State = Delete
		}
		r.Items = append(r.Items, item)
	}
	return r, nil
}

// Destroy takes away what CheckDestroy found to be the fabric's, and nothing else.
func (s *Setup) Destroy(ctx context.Context, r Report, told func(Item)) error {
	return removeAll(ctx, r.Items, told)
}
