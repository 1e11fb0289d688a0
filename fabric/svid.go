// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package fabric

import (
	"errors"
	"fmt"
	"time"
)

// MaxSVIDLife is the longest life of a certificate that an application holds. It lives to its end
// whatever happens meanwhile, since applications check no revocation.
const MaxSVIDLife = time.Hour

// JWTSVIDLife is the life of a token that an application shows to others.
const JWTSVIDLife = 5 * time.Minute

// UnitApplication is the organizational unit of the certificates of applications. They have the
// SPIFFE ID of their service, and speak to applications only: no request of connectivity is valid
// by them.
const UnitApplication = "application"

// maxAudiences and maxAudience bound the audience of a token; maxAudience is in bytes.
const (
	maxAudiences = 16
	maxAudience  = 512
)

// CheckAudience reports why a token cannot have an audience.
func CheckAudience(audience []string) error {
	switch {
	case len(audience) == 0:
		return errors.New("a JWT-SVID needs an audience: name whom it is for")
	case len(audience) > maxAudiences:
		return fmt.Errorf("a JWT-SVID has at most %d audiences, and %d were asked for", maxAudiences, len(audience))
	}
	for _, a := range audience {
		if a == "" || len(a) > maxAudience {
			return fmt.Errorf("an audience of a JWT-SVID has 1 to %d bytes, and %.40q has %d", maxAudience, a, len(a))
		}
	}
	return nil
}
