// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package controller

import (
	"net/http"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
)

// The refusals that many calls have in common, each with the HTTP status of its code.

func invalid(format string, args ...any) *api.Error {
	return api.Errorf(http.StatusBadRequest, api.CodeInvalid, format, args...)
}

func forbidden(format string, args ...any) *api.Error {
	return api.Errorf(http.StatusForbidden, api.CodeForbidden, format, args...)
}

func notFound(format string, args ...any) *api.Error {
	return api.Errorf(http.StatusNotFound, api.CodeNotFound, format, args...)
}

func conflict(format string, args ...any) *api.Error {
	return api.Errorf(http.StatusConflict, api.CodeConflict, format, args...)
}

// unavailable says that Consul or Vault could not be used: the same call may succeed later.
func unavailable(format string, args ...any) *api.Error {
	return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, format, args...)
}

// wasRemoved refuses a node that was removed. why says what is of the removed incarnation.
func wasRemoved(t fabric.Tombstone, why string) *api.Error {
	return api.Errorf(http.StatusForbidden, api.CodeRemoved,
		"%s; %s. To let the machine join again, drain it in Nomad, stop its daemons, delete their data_dir, and start them, later than two minutes after the removal", t, why)
}
