#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Builds the packages into $1 (default: dist in the repository): deb, rpm and tar.gz for each of $ARCHITECTURES. The
# same commit gives the same bytes, wherever and whenever it is built with the Go version of go.mod.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=$(realpath -m "${1:-$repo/dist}")
cd "$repo"
umask 022
eval "$(packaging/version.sh)"
export VERSION SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
flags="-s -w -buildid= $(packaging/ldflags.sh)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$target"
go build -modfile=tools/nfpm/go.mod -o "$work/nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm
mkdir "$work/man"
go run -ldflags "$flags" ./packaging/manual -date "${DATE%T*}" "$work/man"
gzip -9n "$work"/man/*
export MANUAL=$work/man
for arch in ${ARCHITECTURES:-amd64 arm64}; do
  export ARCH=$arch STAGE=$work/$arch
  mkdir "$STAGE"
  for program in sif:. sif-cni:./cni-plugin; do
    CGO_ENABLED=0 GOOS=linux GOARCH=$arch GOFLAGS='' go build -trimpath -buildvcs=false -ldflags "$flags" -o "$STAGE/${program%%:*}" "${program#*:}"
  done
  for format in deb rpm; do
    "$work/nfpm" package --config packaging/nfpm.yaml --packager "$format" --target "$work/sif_${VERSION}_$arch.$format" >"$work/log" ||
      { cat "$work/log" >&2 && exit 1; }
  done
  # The archive has the files of the Debian package, to be unpacked in / of other distributions.
  dpkg-deb --fsys-tarfile "$work/sif_${VERSION}_$arch.deb" | gzip -9n >"$work/sif_${VERSION}_$arch.tar.gz"
  for format in deb rpm tar.gz; do
    mv "$work/sif_${VERSION}_$arch.$format" "$target/"
    printf '%s\n' "$target/sif_${VERSION}_$arch.$format"
  done
done
