// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"time"
)

// jitterShare is the part of a certificate's life over which renewals are spread, before two thirds
// of it.
const jitterShare = 12

// RenewalTime returns when a certificate must be replaced: at two thirds of its life, or up to a
// twelfth of it earlier. How much earlier follows from the certificate, so that all who ask agree,
// and so that certificates which were issued together, as after an outage of Vault, are not renewed
// together. The old one stays valid for the last third: both are accepted meanwhile.
func RenewalTime(leaf *x509.Certificate) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	sum := sha256.Sum256(leaf.Raw)
	share := float64(binary.BigEndian.Uint32(sum[:])) / (1 << 32)
	early := time.Duration(share * float64(life/jitterShare))
	return leaf.NotBefore.Add(life*2/3 - early)
}
