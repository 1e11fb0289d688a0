// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package lab

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// DemoImage is the container image in every Docker engine of the lab: busybox in /bin, and sif-demo
// in /usr/local/bin if it was built. The exec driver's chroot contains the same files. The lab's
// engines cannot pull other images.
const DemoImage = "sif-demo:local"

const busybox = "/bin/busybox"

var applets = []string{
	"cat", "cp", "date", "echo", "env", "false", "grep", "head", "hostname", "httpd", "id", "ip", "kill", "ls", "mkdir",
	"nc", "nslookup", "ping", "printf", "ps", "rm", "sh", "sleep", "tail", "test", "timeout", "touch", "true", "wget",
}

// buildRoot makes the small root filesystem of tasks.
func (l *Lab) buildRoot() error {
	root := l.varDir("rootfs")
	if err := mkdirs(filepath.Join(root, "bin"), filepath.Join(root, "etc"), filepath.Join(root, "usr/local/bin")); err != nil {
		return err
	}
	if err := copyFile(busybox, filepath.Join(root, "bin/busybox")); err != nil {
		return err
	}
	for _, a := range applets {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil {
			return fmt.Errorf("link applet: %w", err)
		}
	}
	demo := filepath.Join(l.Bin, "sif-demo")
	if exists(demo) {
		if err := copyFile(demo, filepath.Join(root, "usr/local/bin/sif-demo")); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"group":  "root:x:0:\nnogroup:x:65534:\n",
	} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write /etc/%s of tasks: %w", name, err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return out.Close()
}

// tarball writes a directory as a tar archive.
func tarball(dir string, w io.Writer) error {
	t := tar.NewWriter(w)
	if err := t.AddFS(linkFS{os.DirFS(dir), dir}); err != nil {
		return fmt.Errorf("pack %s: %w", dir, err)
	}
	return t.Close()
}

// linkFS makes AddFS keep symbolic links.
type linkFS struct {
	fs.FS
	dir string
}

func (f linkFS) ReadLink(name string) (string, error) { return os.Readlink(filepath.Join(f.dir, name)) }

func (f linkFS) Lstat(name string) (fs.FileInfo, error) { return os.Lstat(filepath.Join(f.dir, name)) }
