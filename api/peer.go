// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/sif-project/sif/fabric"
)

const spiffeScheme = "spiffe://"

// strangerError is the error of a call that somebody else than the controller would have received.
type strangerError struct {
	who string
}

func (e *strangerError) Error() string { return "the server is " + e.who + ", not the controller" }

// checkPeer refuses servers that are not the controller: the certificate's only URI must be the
// controller's SPIFFE ID, of the trust domain, or of any if that is empty. The certificate's names
// and addresses do not prove it, because others may have certificates of the same authority.
func checkPeer(state tls.ConnectionState, trustDomain string) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	leaf := state.PeerCertificates[0]
	if isController(leaf, trustDomain) {
		return nil
	}
	return &strangerError{who: owner(leaf)}
}

func isController(leaf *x509.Certificate, trustDomain string) bool {
	if len(leaf.URIs) != 1 || leaf.IsCA {
		return false
	}
	id := leaf.URIs[0]
	if trustDomain == "" {
		trustDomain = id.Hostname()
	}
	// The text is compared, so that a port, a user, a query or an escape does not pass.
	return trustDomain != "" && id.String() == spiffeScheme+trustDomain+fabric.ControllerSPIFFE
}

// owner says whose certificate it is, for people.
func owner(leaf *x509.Certificate) string {
	switch len(leaf.URIs) {
	case 0:
		return fmt.Sprintf("the owner of a certificate without a SPIFFE ID (subject %q)", leaf.Subject)
	case 1:
	default:
		return fmt.Sprintf("the owner of a certificate with %d URIs, such as %q", len(leaf.URIs), leaf.URIs[0].Redacted())
	}
	id := leaf.URIs[0]
	path := strings.TrimPrefix(id.Path, "/")
	what := strconv.Quote(id.Redacted())
	if node, ok := strings.CutPrefix(path, fabric.ReservedDomain+"/"); ok {
		if n, err := fabric.ParseNodeID(node); err == nil {
			what = "node " + n.String()
		}
	} else if service, err := fabric.ParseRef(path); err == nil {
		what = "service " + service.String()
	} else if id.Path == fabric.ControllerSPIFFE {
		what = "a controller"
	}
	return fmt.Sprintf("%s of the trust domain %q", what, id.Host)
}
