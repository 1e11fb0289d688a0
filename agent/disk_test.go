// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package agent

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/sif-project/sif/api"
	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/fabric/desired"
	"github.com/sif-project/sif/internal/node/number"
	"github.com/sif-project/sif/internal/testhost"
)

// With a full disk nothing new gets a number: the image lacks just that, and what is no longer
// allowed leaves the kernel.
func TestImageWithFullDisk(t *testing.T) {
	disk := testhost.NewDisk(t, 2)
	num, err := number.Open(filepath.Join(disk.Dir, "numbers.json"))
	must.NoError(t, err)
	local := []endpoint{hosted(7, admitted(2, "aws1", svc)), hosted(8, admitted(3, "aws1", web))}
	before := imageHere(t, num, local, nil, documents())
	must.MapLen(t, 2, before.endpoints)
	must.MapLen(t, 2, before.pairs) // frontend, visit

	disk.Fill()
	docs := documents() // "frontend" is removed, and news is new here
	doc := docs[svc]
	doc.Responds = nil
	docs[svc] = doc
	from := docs[web]
	from.Originates = nil
	docs[web] = from
	endpoints := []fabric.Admission{local[0].Admission, local[1].Admission, admitted(4, "gcp1", news)}
	l := layout{num: num, underlay: underlay, zone: here.Zone, own: map[string]uint32{"svc": 7, "web": 8}, links: map[desired.Way]uint32{desired.Through(p1): beyond}, marks: marks}
	w := desired.ForWorkload(here, twoZones(), endpoints, docs, fabric.Outside{})
	im, err := l.image(w)
	var lacking *unnumbered
	must.True(t, errors.As(err, &lacking))
	must.ErrorContains(t, err, "no space left on device")
	must.Eq(t, before.endpoints, im.endpoints)
	must.MapLen(t, 1, im.pairs, must.Sprint("the removed contract is still there, or the new one is"))
	must.MapNotContainsKey(t, im.peers, endpoints[2].IPv4)
	must.True(t, lacking.concerns(endpoints[2]))
	must.True(t, lacking.concerns(endpoints[0]), must.Sprint("its contract with news is not in force"))
	must.False(t, lacking.concerns(endpoints[1]))

	disk.Free()
	im, err = l.image(w)
	must.NoError(t, err)
	must.MapContainsKey(t, im.peers, endpoints[2].IPv4)
	must.MapLen(t, 2, im.pairs)
}

// Endpoints and addresses are released although that cannot be stored, and stored later. An
// endpoint that cannot be stored is not attached.
func TestReleaseWithFullDisk(t *testing.T) {
	disk := testhost.NewDisk(t, 2)
	es, err := openEndpoints(filepath.Join(disk.Dir, "endpoints.json"))
	must.NoError(t, err)
	ep := hosted(7, admitted(2, "aws1", svc))
	must.NoError(t, es.put(ep)())
	now := time.Now()
	a := pool(t, filepath.Join(disk.Dir, "addresses.json"))
	v4, _, err := a.take(now)
	must.NoError(t, err)
	disk.Fill()
	es.remove(ep.Attachment)
	must.SliceEmpty(t, es.all())
	must.ErrorContains(t, es.saved.Again(), "no space left on device")
	must.ErrorContains(t, es.put(ep)(), "no space left on device")
	es.remove(ep.Attachment)
	a.release(v4, now)
	must.ErrorContains(t, a.stored(now), "no space left on device")
	a.avoid([]api.RestingAddress{{Address: v4, Until: now.Add(time.Hour)}}, now)
	disk.Free()
	must.NoError(t, es.saved.Again())
	must.NoError(t, a.stored(now))
	es, err = openEndpoints(filepath.Join(disk.Dir, "endpoints.json"))
	must.NoError(t, err)
	must.SliceEmpty(t, es.all())
	a = pool(t, filepath.Join(disk.Dir, "addresses.json"))
	must.True(t, now.Before(a.resting[a.offset(v4)]))
}

func pool(t *testing.T, path string) *addresses {
	t.Helper()
	a, err := openAddresses(path, netip.MustParsePrefix("100.64.0.0/24"), netip.MustParsePrefix("fd5f::/64"))
	must.NoError(t, err)
	return a
}
