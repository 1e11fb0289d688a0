// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package revision

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/sif-project/sif/fabric"
	"github.com/sif-project/sif/internal/statefile"
)

// stateFile contains the state of a Follower. It is a single file, so that it is replaced as a
// whole.
const stateFile = "revision.json"

// saved is the content of stateFile.
type saved struct {
	Highest   mark                   `json:"highest"`
	Current   *fabric.Signed         `json:"current,omitempty"` // the pointer to which Objects belong
	Since     []fabric.Signed        `json:"since,omitempty"`   // the later pointers, up to the enforced one; they touch none of Interests
	Interests []fabric.Ref           `json:"interests,omitempty"`
	Objects   map[fabric.Hash][]byte `json:"objects,omitempty"`
}

// mark is the highest sequence that was seen in a signed pointer, and its root. Older pointers are
// refused.
type mark struct {
	Sequence uint64      `json:"sequence"`
	Root     fabric.Hash `json:"root"`
}

func file(dir string) statefile.File[saved] {
	return statefile.File[saved]{Path: filepath.Join(dir, stateFile), What: "the last revision"}
}

// save writes the state of f.
func (f *Follower) save() error {
	f.saving.Lock()
	defer f.saving.Unlock()
	f.mu.Lock()
	s := saved{Highest: f.highest, Interests: slices.Collect(maps.Keys(f.interests))}
	if v := f.view; v != nil {
		s.Current, s.Since, s.Objects = &v.base, v.since, map[fabric.Hash][]byte{}
		for h, o := range v.objects {
			s.Objects[h] = o.data
		}
	}
	f.mu.Unlock()
	slices.SortFunc(s.Interests, fabric.CompareRefs)
	return file(f.dir).Write(s)
}

// restore uses the saved state if it verifies. It passes the same checks as what comes from Consul,
// except that the version of the fabric's key may have been retired since.
func (f *Follower) restore(s saved) error {
	f.highest = s.Highest
	for _, r := range s.Interests {
		f.interests[r] = true
	}
	if s.Current == nil {
		return nil
	}
	pointer, err := f.verify(*s.Current, f.keys().Kept())
	if err != nil {
		return err
	}
	disk := func(context.Context, []fabric.Hash) (map[fabric.Hash]entry, error) {
		entries := map[fabric.Hash]entry{}
		for h, data := range s.Objects {
			entries[h] = entry{data: data}
		}
		return entries, nil
	}
	v, err := build(context.Background(), *s.Current, pointer, s.Interests, nil, disk)
	if err != nil {
		return err
	}
	for _, signed := range s.Since {
		next, err := f.verify(signed, f.keys().Kept())
		if err != nil {
			return err
		}
		followed, ok := v.follow(signed, next, s.Interests)
		if !ok {
			return fmt.Errorf("revision %d does not follow revision %d without other objects", next.Sequence, v.pointer.Sequence)
		}
		v = followed
	}
	f.view = v
	return nil
}
