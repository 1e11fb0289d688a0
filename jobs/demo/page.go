// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"embed"
	"html/template"
	"net/http"
)

//go:embed pages
var pageFiles embed.FS

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"style": func() (template.CSS, error) {
		css, err := pageFiles.ReadFile("pages/style.css")
		return template.CSS(css), err // a file of ours, not user input
	},
}).ParseFS(pageFiles, "pages/*.html"))

// writePage answers with a page. Pages are self-contained: their content security policy forbids
// the browser to load anything else.
func writePage(w http.ResponseWriter, status int, name string, data any) {
	var body bytes.Buffer
	if err := pages.ExecuteTemplate(&body, name, data); err != nil {
		http.Error(w, "render the page: "+err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy",
		"default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	w.WriteHeader(status)
	// Writing fails only if the client has gone.
	_, _ = w.Write(body.Bytes())
}

// writePageOrError answers a browser with a page whose field *shown is set to err, and a program
// with err as JSON.
func writePageOrError(w http.ResponseWriter, r *http.Request, self instance, status int, name string, page any, shown *string, err error) {
	if wantsJSON(r) {
		writeError(w, self, status, err)
		return
	}
	*shown = err.Error()
	writePage(w, status, name, page)
}
