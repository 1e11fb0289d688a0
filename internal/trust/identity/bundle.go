// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import "crypto/x509"

// Bundle returns the certificates of the authorities in Roots, for applications that judge others
// by them. The slice must not be modified.
func (s *Source) Bundle() []*x509.Certificate { return s.trusted() }
