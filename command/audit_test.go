// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package command

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/cli"
	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/trust/identity/identitytest"
)

// A log is sound only if it has the record that the fabric has signed: whoever writes Consul can
// begin another one behind that, and note its end.
func TestAuditVerifyFindsTheSignedRecord(t *testing.T) {
	withoutVault(t)
	const id = "0123456789abcdef"
	ca := identitytest.NewCA(t)
	keysFile := filepath.Join(t.TempDir(), "keys.json")
	data, err := json.Marshal(ca.Keys())
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(keysFile, data, 0o600))
	var lines []string
	var heads []api.AuditHead
	for n := range uint64(4) {
		r := api.AuditRecord{Number: n + 1, Time: time.Unix(int64(n), 0).UTC(), Action: "graph.apply"}
		if n > 0 {
			r.Previous = heads[n-1].Hash
		}
		line, err := json.Marshal(r)
		must.NoError(t, err)
		lines = append(lines, string(line))
		heads = append(heads, api.AuditHead{Controller: id, Number: r.Number, Hash: fabric.HashOf(line), Time: r.Time})
	}
	for name, tc := range map[string]struct {
		lines []string
		code  exitCode
		says  string
	}{
		"whole":                  {lines, 0, "sound"},
		"without its beginning":  {lines[1:], exitDisagreement, "records 1 to 1 are missing at its beginning"},
		"without what is signed": {lines[2:], exitDisagreement, "record 2, which the fabric has signed, is not there"},
	} {
		t.Run(name, func(t *testing.T) {
			mux := http.NewServeMux()
			reply := func(w http.ResponseWriter, v any) { json.NewEncoder(w).Encode(v) }
			mux.HandleFunc("GET /v1/audit/logs", func(w http.ResponseWriter, _ *http.Request) {
				signed := heads[1]
				signed.First = 1
				reply(w, []api.AuditLog{{Controller: id, First: heads[len(heads)-len(tc.lines)].Number, Signed: ca.Sign(fabric.KindAudit, signed), Noted: heads[3]}})
			})
			mux.HandleFunc("GET /v1/audit/logs/"+id, func(w http.ResponseWriter, r *http.Request) {
				after, _ := strconv.Atoi(r.URL.Query().Get("after"))
				page := api.AuditPage{Records: []string{}}
				if after == 0 {
					page.Records = tc.lines
				}
				reply(w, page)
			})
			ui := cli.NewMockUi()
			must.Eq(t, int(tc.code), run(ui, "audit verify", append(serveTLS(t, mux), "-keys="+keysFile)...), must.Sprint(ui.ErrorWriter))
			must.StrContains(t, ui.OutputWriter.String(), tc.says)
		})
	}
}
