// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/kvkey"
	"github.com/sif-project/sif/internal/trust/identity"
	"github.com/sif-project/sif/internal/trust/jwtkey"
)

// svidSkew is how long before it is issued a certificate may begin.
const svidSkew = 10 * time.Minute

// JWTSigner signs JWT-SVIDs. jwtkey.Key implements it.
type JWTSigner interface {
	// Sign returns the token, and the ID of the key that signed it.
	Sign(ctx context.Context, claims any, now time.Time) (token, key string, err error)
}

// newSVIDs returns who issues what applications hold, with a PKI role and a transit key of Vault.
func newSVIDs(vault func() *vaultapi.Client, pki PKI, transitMount, jwtKey string) SVIDs {
	return SVIDs{Authority: pki, JWT: jwtkey.Key{Vault: vault, Mount: transitMount, Name: jwtKey}}
}

// SVIDs issue what applications hold.
type SVIDs struct {
	Authority Authority
	JWT       JWTSigner
}

// svid has a certificate issued for the application of an endpoint of the calling node.
func (a *admitter) svid(ctx context.Context, who identity.Node, req api.SVIDRequest) (fabric.Ref, [][]byte, error) {
	adm, err := a.standing(who, req.Endpoint)
	if err != nil {
		return fabric.Ref{}, nil, err
	}
	chain, err := a.cfg.SVIDs.Authority.SignWorkload(ctx, req.CSR, adm.Service)
	if err == nil {
		err = checkSVID(chain[0])
	}
	if err != nil {
		return adm.Service, nil, unavailable("%v; \"sif setup\" of this version makes the role", err)
	}
	return adm.Service, chain, nil
}

// checkSVID refuses a certificate by which an application could act in place of its node, or that
// lives too long.
func checkSVID(der []byte) error {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("parse the certificate of an application: %w", err)
	}
	if !slices.Equal(leaf.Subject.OrganizationalUnit, []string{fabric.UnitApplication}) {
		return fmt.Errorf("the certificate of an application has the organizational units %q, expected %q", leaf.Subject.OrganizationalUnit, fabric.UnitApplication)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life > fabric.MaxSVIDLife+svidSkew {
		return fmt.Errorf("the certificate of an application would live %s, and the fabric permits %s", life, fabric.MaxSVIDLife)
	}
	return nil
}

// jwtClaims are the claims of a JWT-SVID.
type jwtClaims struct {
	Subject  string   `json:"sub"`
	Audience []string `json:"aud"`
	Issued   int64    `json:"iat"`
	Expires  int64    `json:"exp"`
}

// jwtSVID has a token signed for the application of an endpoint of the calling node.
func (a *admitter) jwtSVID(ctx context.Context, who identity.Node, req api.JWTSVIDRequest) (string, error) {
	if err := fabric.CheckAudience(req.Audience); err != nil {
		return "", invalid("%v", err)
	}
	adm, err := a.standing(who, req.Endpoint)
	if err != nil {
		return "", err
	}
	now := a.table.now()
	until := now.Add(fabric.JWTSVIDLife)
	token, key, err := a.cfg.SVIDs.JWT.Sign(ctx, jwtClaims{
		Subject:  "spiffe://" + a.cfg.TrustDomain + adm.Service.SPIFFE(),
		Audience: req.Audience,
		Issued:   now.Unix(),
		Expires:  until.Unix(),
	}, now)
	if err != nil {
		return "", unavailable("%v", err)
	}
	a.tokens.signed(key, until)
	return token, nil
}

// standing returns the admission of an endpoint of the calling node, if it is live.
func (a *admitter) standing(who identity.Node, endpoint string) (fabric.Admission, error) {
	if _, err := a.workloadNode(who); err != nil {
		return fabric.Admission{}, err
	}
	g := a.table.get(kvkey.Admission{Node: who.NodeID, Endpoint: endpoint})
	if g == nil || !g.live(a.table.now()) {
		return fabric.Admission{}, forbidden("node %s has no live admission of endpoint %.40q", who.NodeID, endpoint)
	}
	if err := refuseRevoked(a.nodes.removed(), endpoint, g.admission.Service); err != nil {
		return fabric.Admission{}, err
	}
	return g.admission, nil
}

func (c *Controller) postSVID(ctx context.Context, r request) (any, error) {
	req, err := decode[api.SVIDRequest](r)
	if err != nil {
		return nil, err
	}
	r.entry.Target = req.Endpoint
	if err := c.intend(r); err != nil {
		return nil, err
	}
	service, chain, err := c.admitter.svid(ctx, r.node, req)
	r.entry.Message = service.String()
	if err := c.handsOut(ctx, err); err != nil {
		return nil, err
	}
	return api.CertificateReply{Certificate: chain}, nil
}

func (c *Controller) postJWTSVID(ctx context.Context, r request) (any, error) {
	req, err := decode[api.JWTSVIDRequest](r)
	if err != nil {
		return nil, err
	}
	r.entry.Target, r.entry.Message = req.Endpoint, strings.Join(req.Audience, " ")
	if err := c.intend(r); err != nil {
		return nil, err
	}
	token, err := c.admitter.jwtSVID(ctx, r.node, req)
	if err := c.handsOut(ctx, err); err != nil {
		return nil, err
	}
	return api.JWTSVIDReply{Token: token}, nil
}
