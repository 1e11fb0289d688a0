#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Builds the packages into $1 (default: dist in the repository): each of $FORMATS (deb, rpm and tar.gz) for each of
# $ARCHITECTURES (amd64 and arm64). The same commit gives the same bytes, wherever and whenever it is built with the
# Go version of go.mod.
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
formats=" ${FORMATS:-deb rpm tar.gz} "
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
  # Side by side: they are compressed by one core each.
  packing=()
  for format in deb rpm; do
    [[ $formats == *" $format "* || $format == deb && $formats == *" tar.gz "* ]] || continue
    "$work/nfpm" package --config packaging/nfpm.yaml --packager "$format" --target "$work/sif_${VERSION}_$arch.$format" >"$work/log.$format" &
    packing+=("$!:$work/log.$format")
  done
  for one in "${packing[@]}"; do
    wait "${one%%:*}" || { cat "${one#*:}" >&2 && exit 1; }
  done
  # The archive has the files of the Debian package, to be unpacked in / of other distributions.
  [[ $formats != *" tar.gz "* ]] ||
    dpkg-deb --fsys-tarfile "$work/sif_${VERSION}_$arch.deb" | gzip -9n >"$work/sif_${VERSION}_$arch.tar.gz"
  for format in $formats; do
    mv "$work/sif_${VERSION}_$arch.$format" "$target/"
    printf '%s\n' "$target/sif_${VERSION}_$arch.$format"
  done
done
