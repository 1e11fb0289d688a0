// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package transit

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestSigns(t *testing.T) {
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	key := func(accepted, pinned int, ages ...time.Duration) map[string]any {
		versions := map[string]any{}
		for i, age := range ages {
			versions[fmt.Sprint(i+1)] = map[string]any{"public_key": "p", "creation_time": now.Add(-age).Format(time.RFC3339Nano)}
		}
		number := func(n int) json.Number { return json.Number(fmt.Sprint(n)) }
		return map[string]any{
			"type": "ed25519", "keys": versions, "latest_version": number(len(ages)),
			"min_decryption_version": number(accepted), "min_encryption_version": number(pinned),
		}
	}
	for _, tc := range []struct {
		name  string
		data  map[string]any
		signs int
	}{
		{"one that was just made", key(1, 0, 0), 1},
		{"another that not everybody knows", key(1, 0, time.Hour, Settle-time.Second), 1},
		{"another that everybody knows", key(1, 0, time.Hour, Settle), 2},
		{"another, made by a Vault whose clock is ahead", key(1, 0, time.Hour, -time.Hour), 1},
		{"the oldest that counts", key(2, 0, time.Hour, 0, 0), 2},
		{"the pinned one", key(1, 1, 3*time.Hour, 2*time.Hour, time.Hour), 1},
		{"the pinned one, at once", key(1, 2, time.Hour, 0), 2},
	} {
		k, err := Parse(tc.data)
		must.NoError(t, err)
		must.Eq(t, tc.signs, k.Signs(now), must.Sprint(tc.name))
	}
}

func TestParse(t *testing.T) {
	version := map[string]any{"public_key": "p", "creation_time": "2026-01-02T00:00:00Z"}
	for want, data := range map[string]map[string]any{
		"the key has no versions":         {"keys": map[string]any{}},
		"no versions":                     {"keys": map[string]any{"1": version}, "min_decryption_version": json.Number("2")},
		`version "one"`:                   {"keys": map[string]any{"one": version}},
		"parse the time of its creation":  {"keys": map[string]any{"1": map[string]any{"public_key": "p"}}},
		"min_encryption_version: strconv": {"keys": map[string]any{"1": version}, "min_encryption_version": json.Number("1.5")},
	} {
		_, err := Parse(data)
		must.ErrorContains(t, err, want)
	}
	k, err := Parse(map[string]any{"keys": map[string]any{"3": version, "10": version, "2": version}, "min_decryption_version": json.Number("3")})
	must.NoError(t, err)
	must.Eq(t, 10, k.Latest)
	must.Len(t, 2, k.Versions)
	must.Eq(t, 3, k.Versions[0].Number)
	_, counts := k.Version(2)
	must.False(t, counts)
}
