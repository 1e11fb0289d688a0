// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package statefile

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shoenig/test/must"
)

func TestFile(t *testing.T) {
	for _, lazy := range []bool{false, true} {
		f := File[map[string]int]{Path: filepath.Join(t.TempDir(), "numbers.json"), What: "the numbers", Lazy: lazy}
		v, found, err := f.Read()
		must.NoError(t, err)
		must.False(t, found)
		must.Nil(t, v)

		must.NoError(t, f.Write(map[string]int{"a": 1}))
		text, err := os.ReadFile(f.Path)
		must.NoError(t, err)
		must.Eq(t, `{"a":1}`, string(text))
		info, err := os.Stat(f.Path)
		must.NoError(t, err)
		must.Eq(t, 0o600, info.Mode())
		v, found, err = f.Read()
		must.NoError(t, err)
		must.True(t, found)
		must.Eq(t, map[string]int{"a": 1}, v)

		// A truncated file is not treated as a missing one.
		must.NoError(t, os.WriteFile(f.Path, []byte(`{"a":1,"b"`), 0o600))
		v, found, err = f.Read()
		must.ErrorIs(t, err, ErrCorrupt)
		must.ErrorContains(t, err, "read the numbers from "+f.Path)
		must.True(t, found)
		must.Nil(t, v)
	}
}

// The file is written if it has another content, or none.
func TestUpdate(t *testing.T) {
	f := File[map[string]int]{Path: filepath.Join(t.TempDir(), "numbers.json"), What: "the numbers"}
	inode := func(v map[string]int) os.FileInfo {
		t.Helper()
		must.NoError(t, f.Update(v))
		have, _, err := f.Read()
		must.NoError(t, err)
		must.Eq(t, v, have)
		info, err := os.Stat(f.Path)
		must.NoError(t, err)
		return info
	}
	first := inode(map[string]int{"a": 1, "b": 2})
	must.True(t, os.SameFile(first, inode(map[string]int{"b": 2, "a": 1})))
	must.False(t, os.SameFile(first, inode(map[string]int{"a": 1})))
	must.ErrorContains(t, File[func()]{Path: f.Path, What: "the function"}.Update(nil), "encode the function")
}

func TestFileErrors(t *testing.T) {
	dir := t.TempDir()
	_, _, err := File[int]{Path: dir, What: "the number"}.Read()
	must.ErrorContains(t, err, "read the number")
	must.False(t, os.IsNotExist(err))
	must.ErrorContains(t, File[int]{Path: filepath.Join(dir, "no", "file"), What: "the number"}.Write(1), "write the number")
	must.ErrorContains(t, File[func()]{Path: filepath.Join(dir, "f"), What: "the function"}.Write(nil), "encode the function")
}

func TestSaver(t *testing.T) {
	f := File[int64]{Path: filepath.Join(t.TempDir(), "n.json"), What: "the number"}
	var n atomic.Int64
	save := f.Saver(n.Load)
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			want := n.Add(1)
			must.NoError(t, save.Call())
			got, _, err := f.Read()
			must.NoError(t, err)
			must.GreaterEq(t, want, got) // the caller's change is on disk when Call returns
		})
	}
	all.Wait()
}

// Each write encodes what is new, and the document is that of all elements.
func TestElements(t *testing.T) {
	var encodes []int
	e := Elements[int]{Encode: func(n *int) ([]byte, error) {
		encodes = append(encodes, *n)
		return json.Marshal(n)
	}}
	numbers := []int{1, 2, 3}
	check := func(want []int, elements ...*int) {
		encodes = nil
		data, err := e.Document('[', ']', elements)
		must.NoError(t, err)
		var got []int
		must.NoError(t, json.Unmarshal(data, &got))
		var all []int
		for _, n := range elements {
			all = append(all, *n)
		}
		must.SliceEqOp(t, all, got)
		must.SliceEqOp(t, want, encodes)
	}
	check(nil)
	check([]int{1, 2}, &numbers[0], &numbers[1])
	check([]int{3}, &numbers[2], &numbers[1])
	check([]int{1}, &numbers[0], &numbers[2]) // was left out meanwhile

	broken := errors.New("broken")
	e.Encode = func(*int) ([]byte, error) { return nil, broken }
	_, err := e.Document('[', ']', []*int{&numbers[1]})
	must.ErrorIs(t, err, broken)
	path := filepath.Join(t.TempDir(), "n.json")
	save := File[[]int]{Path: path, What: "the numbers"}.EncodedSaver(func() ([]byte, error) { return e.Document('[', ']', []*int{&numbers[1]}) })
	must.ErrorContains(t, save.Call(), "encode the numbers: broken")
	must.ErrorContains(t, save.Again(), "encode the numbers: broken")
	_, err = os.Stat(path)
	must.ErrorIs(t, err, os.ErrNotExist)
}
