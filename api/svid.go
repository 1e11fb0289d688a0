// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"context"
	"net/http"
)

// SVIDRequest asks for a certificate of an endpoint of the calling node, for a key of its
// application.
type SVIDRequest struct {
	Endpoint string `json:"endpoint"`
	CSR      []byte `json:"csr"` // DER; it names the SPIFFE ID of the endpoint's service and no other name
}

// JWTSVIDRequest asks for a token that says to an audience which service an endpoint of the calling
// node is.
type JWTSVIDRequest struct {
	Endpoint string   `json:"endpoint"`
	Audience []string `json:"audience"`
}

// JWTSVIDReply is the token.
type JWTSVIDReply struct {
	Token string `json:"token"` // a JWT in the compact form
}

// SVID issues a certificate for the application of an endpoint.
func (c *Client) SVID(ctx context.Context, req SVIDRequest) ([][]byte, error) {
	var reply CertificateReply
	err := c.call(ctx, http.MethodPost, "/v1/node/svid", req, &reply)
	return reply.Certificate, err
}

// JWTSVID issues a token for the application of an endpoint.
func (c *Client) JWTSVID(ctx context.Context, req JWTSVIDRequest) (string, error) {
	var reply JWTSVIDReply
	err := c.call(ctx, http.MethodPost, "/v1/node/jwt-svid", req, &reply)
	return reply.Token, err
}
