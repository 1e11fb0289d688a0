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
		return template.CSS(css), err // our own file, not a visitor's words
	},
}).ParseFS(pageFiles, "pages/*.html"))

// writePage answers with one of the pages. They are self-contained: the policy
// in the header lets a browser load nothing from elsewhere.
func writePage(w http.ResponseWriter, status int, name string, data any) {
	var body bytes.Buffer
	if err := pages.ExecuteTemplate(&body, name, data); err != nil {
		http.Error(w, "make the page: "+err.Error(), http.StatusInternalServerError)
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
	// An error here means that the visitor has gone.
	_, _ = w.Write(body.Bytes())
}

// writePageOrError answers with a page that shows err in the field that shown
// points to, or to a program with err as JSON.
func writePageOrError(w http.ResponseWriter, r *http.Request, self instance, status int, name string, page any, shown *string, err error) {
	if wantsJSON(r) {
		writeError(w, self, status, err)
		return
	}
	*shown = err.Error()
	writePage(w, status, name, page)
}
