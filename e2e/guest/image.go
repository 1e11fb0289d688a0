// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

// Package guest makes the image of the tests' virtual machines: Debian's cloud kernel as its
// package has it, and an initial file system with its network driver, sif-guest and sif-demo. It
// knows packages and archives, neither the fabric nor what the machines are used for.
package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Image is what QEMU is given by -kernel and -initrd.
type Image struct{ Kernel, Initrd string }

// drivers are the modules that a machine needs, without those on which they depend.
var drivers = []string{"virtio_pci", "virtio_net"}

// Directory returns the directory in which images are cached.
func Directory() string {
	cache := os.Getenv("SIF_CACHE")
	if cache == "" {
		cache = "/var/cache/sif"
	}
	return filepath.Join(cache, "guests")
}

// Build returns the image that is made of sif-guest and sif-demo in the directory bin. It makes it
// if it is not cached under the hash of what it is made of. The kernel is fetched once, from the
// machine's Debian mirror. It may be called at the same time by several processes.
func Build(ctx context.Context, bin string) (Image, error) {
	cache := Directory()
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Image{}, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return Image{}, err
	}
	defer lock.Close() // which unlocks it
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return Image{}, fmt.Errorf("lock %s: %w", cache, err)
	}
	kernel, err := kernelPackage(ctx, cache)
	if err != nil {
		return Image{}, fmt.Errorf("the kernel of virtual machines: %w", err)
	}
	archive, err := initialFiles(kernel, bin)
	if err != nil {
		return Image{}, fmt.Errorf("the initial file system of virtual machines: %w", err)
	}
	name := fmt.Sprintf("initrd-%.8x.img", sha256.Sum256(archive))
	image := Image{Kernel: filepath.Join(kernel, "vmlinuz"), Initrd: filepath.Join(cache, name)}
	if _, err := os.Stat(image.Initrd); err == nil {
		return image, nil
	}
	removeOld(cache)
	temporary := image.Initrd + ".new"
	if err := os.WriteFile(temporary, archive, 0o644); err != nil {
		return Image{}, err
	}
	return image, os.Rename(temporary, image.Initrd)
}

// removeOld removes images that were made so long ago that no machine restarts with them.
func removeOld(cache string) {
	old, _ := filepath.Glob(filepath.Join(cache, "initrd-*.img"))
	for _, file := range old {
		if info, err := os.Stat(file); err == nil && time.Since(info.ModTime()) > 48*time.Hour {
			_ = os.Remove(file)
		}
	}
}

// kernelPackage returns the directory of an unpacked kernel: the newest in the cache, or the one of
// the Debian mirror.
func kernelPackage(ctx context.Context, cache string) (string, error) {
	have, err := filepath.Glob(filepath.Join(cache, "linux-image-*", "vmlinuz")) // in order
	if err != nil {
		return "", err
	}
	if len(have) > 0 {
		return filepath.Dir(have[len(have)-1]), nil
	}
	temporary, err := os.MkdirTemp(cache, ".kernel-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temporary)
	out, err := output(ctx, temporary, "apt-cache", "depends", "linux-image-cloud-amd64")
	if err != nil {
		return "", err
	}
	name := ""
	for line := range strings.Lines(out) {
		if rest, is := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); is && name == "" {
			name = "linux-image-" + rest
		}
	}
	if name == "" {
		return "", fmt.Errorf("apt knows no package linux-image-cloud-amd64: run apt-get update")
	}
	if _, err := output(ctx, temporary, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name); err != nil {
		return "", err
	}
	packages, err := filepath.Glob(filepath.Join(temporary, name+"_*.deb"))
	if err != nil || len(packages) != 1 {
		return "", fmt.Errorf("apt-get download %s left %d files", name, len(packages))
	}
	root := filepath.Join(temporary, "root")
	if _, err := output(ctx, temporary, "dpkg-deb", "-x", packages[0], root); err != nil {
		return "", err
	}
	kernels, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return "", fmt.Errorf("package %s has %d kernels", name, len(kernels))
	}
	if err := os.Rename(kernels[0], filepath.Join(root, "vmlinuz")); err != nil {
		return "", err
	}
	final := filepath.Join(cache, strings.TrimSuffix(filepath.Base(packages[0]), ".deb"))
	return final, os.Rename(root, final)
}

func output(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}

// initialFiles returns the archive of a machine's files. Its bytes depend on their contents alone.
func initialFiles(kernel, bin string) ([]byte, error) {
	var a archive
	for _, dir := range []string{"dev", "etc", "modules", "proc", "run", "sys", "tmp"} {
		a.directory(dir)
	}
	a.console()
	for _, f := range []struct{ name, from string }{{"init", "sif-guest"}, {"sif-demo", "sif-demo"}} {
		if err := a.file(f.name, filepath.Join(bin, f.from)); err != nil {
			return nil, err
		}
	}
	files, err := modules(kernel)
	if err != nil {
		return nil, err
	}
	for i, file := range files {
		if err := a.file(fmt.Sprintf("modules/%02d-%s", i, filepath.Base(file)), file); err != nil {
			return nil, err
		}
	}
	return a.bytes(), nil
}

// modules returns the files of the drivers and what they depend on, in the order in which they can
// be loaded. What a kernel has built in is left out.
func modules(kernel string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(filepath.Join(kernel, "lib", "modules"), func(path string, d fs.DirEntry, err error) error {
		if name, is := strings.CutSuffix(filepath.Base(path), ".ko"); err == nil && is {
			files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var order []string
	var add func(name string) error
	add = func(name string) error {
		file := files[strings.ReplaceAll(name, "-", "_")]
		if file == "" || slices.Contains(order, file) {
			return nil
		}
		needs, err := dependencies(file)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		order = append(order, file)
		return nil
	}
	for _, d := range drivers {
		if err := add(d); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// dependencies returns the names of the modules that a module needs.
func dependencies(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, nil
	}
	data, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(data), "\x00") {
		if list, is := strings.CutPrefix(entry, "depends="); is && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
