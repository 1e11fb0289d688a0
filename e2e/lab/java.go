// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"context"
	_ "embed"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
)

// JavaAnswer is a Java program in the chroot of tasks on nodes with the java driver. It answers
// connections to the port that is its first argument, over IPv4 and IPv6.
const JavaAnswer = "/usr/share/sif/Answer.java"

//go:embed java/Answer.java
var javaAnswer []byte

// javaHome returns the directory of the machine's Java, which is where the java driver looks for
// it in the chroot as well.
func javaHome() (string, error) {
	path, err := exec.LookPath("java")
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", fmt.Errorf("find java: %w", err)
	}
	return filepath.Dir(filepath.Dir(path)), nil
}

// buildJava makes the part of the tasks' root filesystem that the java driver needs: Java, its
// libraries and the program of the tests.
func (l *Lab) buildJava(ctx context.Context) error {
	root := l.varDir("java")
	home, err := javaHome()
	if err != nil {
		return err
	}
	for _, part := range []string{"bin/java", "lib", "conf"} {
		if err := copyTree(filepath.Join(home, part), filepath.Join(root, home, part)); err != nil {
			return fmt.Errorf("copy Java: %w", err)
		}
	}
	out, err := exec.CommandContext(ctx, "ldd", filepath.Join(home, "bin/java"), filepath.Join(home, "lib/server/libjvm.so"), filepath.Join(home, "lib/libnet.so")).Output()
	if err != nil {
		return fmt.Errorf("find the libraries of Java: %w", err)
	}
	for _, library := range libraries(string(out)) {
		if err := copyTree(library, filepath.Join(root, library)); err != nil {
			return fmt.Errorf("copy a library of Java: %w", err)
		}
	}
	program := filepath.Join(root, JavaAnswer)
	if err := mkdirs(filepath.Dir(program)); err != nil {
		return err
	}
	if err := os.WriteFile(program, javaAnswer, 0o644); err != nil {
		return fmt.Errorf("write a program of tasks: %w", err)
	}
	return nil
}

// systemLibrary matches the paths of libraries in the output of ldd.
var systemLibrary = regexp.MustCompile(`(?m)(/lib(?:64)?/\S+) \(0x`)

// libraries returns the libraries in the output of ldd that are not Java's own.
func libraries(ldd string) (paths []string) {
	for _, m := range systemLibrary.FindAllStringSubmatch(ldd, -1) {
		paths = append(paths, m[1])
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// copyTree copies a file or a directory, and what symbolic links in it point to. Links that point
// to nothing are left out.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rest, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rest)
		info, err := os.Stat(path)
		switch {
		case os.IsNotExist(err) && d.Type()&fs.ModeSymlink != 0:
			return nil
		case err != nil:
			return err
		case d.IsDir():
			return mkdirs(target)
		case info.IsDir():
			return copyTree(path+"/.", target)
		}
		if err := mkdirs(filepath.Dir(target)); err != nil {
			return err
		}
		return copyFile(path, target)
	})
}
