// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package doctor

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestSpeaksTLS(t *testing.T) {
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	must.True(t, speaksTLS(t.Context(), strings.Replace(secure.URL, "https", "http", 1)))
	must.False(t, speaksTLS(t.Context(), plain.URL))
	plain.Close()
	must.False(t, speaksTLS(t.Context(), plain.URL))
}
