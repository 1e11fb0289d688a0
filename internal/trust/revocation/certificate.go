// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revocation

import (
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity"
)

// Certificate returns why a list does not accept a certificate any more, or nil: its node was
// removed after the certificate began, its service is revoked, or it is revoked itself.
func Certificate(list fabric.Revocations, of identity.Subject, leaf *x509.Certificate) error {
	if of.IsNode() {
		if t, ended := list.Ends(of.Node.NodeID, leaf.NotBefore); ended {
			return fmt.Errorf("it is from before the removal: %s", t)
		}
	}
	if v, ended := list.RevokedCertificate(identity.Serial(leaf)); ended {
		return fmt.Errorf("%s; %w", v, identity.ErrReplaced)
	}
	// What is left of a service's certificates from before it was reinstated has no value without
	// an admission, and those are judged by when they were issued.
	if v, ended := list.RevokedService(of.Service, leaf.NotAfter); ended {
		return errors.New(v.String())
	}
	return nil
}
