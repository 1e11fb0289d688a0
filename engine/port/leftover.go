// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package port

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netns"

	"github.com/sif-project/sif/internal/leftover"
)

// Namespaces returns the network namespaces of ports, whose names are a prefix and a number.
func Namespaces(prefix string) ([]leftover.Leftover, error) {
	dir := filepath.Dir(namespacePath(prefix))
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the network namespaces: %w", err)
	}
	var list []leftover.Leftover
	for _, e := range entries {
		number, ours := strings.CutPrefix(e.Name(), prefix)
		if !ours || number == "" || strings.Trim(number, "0123456789") != "" {
			continue
		}
		list = append(list, leftover.Leftover{Kind: "network namespace", Name: e.Name(), Remove: func(context.Context) error {
			if err := netns.DeleteNamed(e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("delete network namespace %s: %w", e.Name(), err)
			}
			return nil
		}})
	}
	return list, nil
}
