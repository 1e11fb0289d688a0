#!/usr/bin/env bash
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Checks the packages without a machine that runs them: two builds in different places are the same bytes (the second
# one is of this machine's architecture, or of those in $TWICE); the content is complete, runs, and is valid for
# systemd, man, the shells and logrotate; and what dpkg does with them in a copy of this machine's root (root). systemctl is replaced there by a program that records its calls: what these calls do with
# systemd is for the tests on virtual machines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
eval "$(packaging/version.sh)"
export VERSION COMMIT SOURCE_DATE_EPOCH

work=$(mktemp -d)
mounted=
# shellcheck disable=SC2317 # called by trap
clean_up() {
  [[ -z $mounted ]] || umount -R "$work/machine"
  rm -rf "$work"
}
trap clean_up EXIT
say() { printf 'check: %s\n' "$*"; }
fail() {
  printf 'check: FAILED: %s\n' "$*" >&2
  exit 1
}

### The same bytes.
this=$(dpkg --print-architecture)
say "building $VERSION twice"
packaging/build.sh "$work/one" >/dev/null
mkdir "$work/elsewhere"
git ls-files -z | tar -c --null -T - | tar -x -C "$work/elsewhere"
(umask 077 && TZ=Asia/Tokyo LANG=C.UTF-8 ARCHITECTURES=${TWICE:-$this} "$work/elsewhere/packaging/build.sh" "$work/two" >/dev/null)
(cd "$work/two" && sha256sum -- * >"$work/sums")
(cd "$work/one" && sha256sum --quiet -c "$work/sums") || fail "two builds differ"
for arch in ${TWICE:-$this}; do
  [[ $(grep -c "_$arch\." "$work/sums") == 3 ]] || fail "the second build has not all packages for $arch"
done
for arch in amd64 arm64; do
  for format in deb rpm tar.gz; do
    [[ -s $work/one/sif_${VERSION}_$arch.$format ]] || fail "there is no $format for $arch"
  done
done
say "$(wc -l <"$work/sums") packages, the same bytes in both"

### The content.
deb=$work/one/sif_${VERSION}_$this.deb
root=$work/root
dpkg-deb -x "$deb" "$root"
for file in usr/bin/sif usr/libexec/sif/sif-cni usr/lib/systemd/system/sif-{controller,engine,agent,link,attach@}.service \
  usr/lib/sysusers.d/sif.conf usr/lib/tmpfiles.d/sif.conf etc/logrotate.d/sif usr/share/bash-completion/completions/sif \
  usr/share/zsh/vendor-completions/_sif usr/share/fish/vendor_completions.d/sif.fish usr/share/man/man1/sif.1.gz \
  usr/share/man/man1/sif-agent.1.gz usr/share/doc/sif/copyright usr/share/doc/sif/README.md usr/share/doc/sif/docs/operations.md; do
  [[ -s $root/$file ]] || fail "the package has no /$file"
done
[[ $(stat -c %a "$root/etc/sif" "$root/var/lib/sif") == $'750\n711' ]] || fail "the modes of /etc/sif and /var/lib/sif"
tar -tzf "${deb%.deb}.tar.gz" | sed 's|^\./||; s|/$||' | sort >"$work/in-tar"
(cd "$root" && find . -mindepth 1 | sed 's|^\./||' | sort) | diff - "$work/in-tar" || fail "the archive differs from the package"
for arch in amd64 arm64; do
  other=$work/other-$arch
  dpkg-deb -x "$work/one/sif_${VERSION}_$arch.deb" "$other"
  readelf -hdn "$other/usr/bin/sif" "$other/usr/libexec/sif/sif-cni" >"$work/elf"
  [[ $(grep -c "Machine: .*$([[ $arch == amd64 ]] && echo X86-64 || echo AArch64)" "$work/elf") == 2 ]] || fail "the programs are not for $arch"
  ! grep -Eq 'NEEDED|GNU_BUILD_ID' "$work/elf" || fail "the programs need libraries, or have a build ID"
done

### The programs.
[[ $("$root/usr/bin/sif" version -json | jq -r '.version + " " + .commit') == "$VERSION $COMMIT" ]] || fail "sif version says $("$root/usr/bin/sif" version)"
[[ $("$root/usr/libexec/sif/sif-cni" 2>&1) == "CNI sif plugin v$VERSION"* ]] || fail "sif-cni does not say its version"

### The units. systemd before 254 ignores two settings with a warning.
for unit in controller engine agent link attach@; do
  sed "s|/usr/bin/sif|$root/usr/bin/sif|" "$root/usr/lib/systemd/system/sif-$unit.service" >"$work/sif-$unit.service"
done
known="Unknown key '(name )?'?Restart(Steps|MaxDelaySec)'|couldn't retrieve kernel system call list"
SYSTEMD_UNIT_PATH=$work:/lib/systemd/system systemd-analyze verify --man=no "$work"/sif-*.service >"$work/log" 2>&1 || true
! grep -Ev "$known" "$work/log" || fail "systemd-analyze verify"
for most in controller:15 link:30 engine:54 agent:55 attach@:60; do # tenths: 0 is safe, 100 unsafe
  systemd-analyze security --offline=true --no-pager "$work/sif-${most%:*}.service" >"$work/log" 2>&1 || true
  level=$(sed -nE 's/.*Overall exposure level for .*: ([0-9.]+) .*/\1/p' "$work/log")
  say "systemd-analyze security: sif-${most%:*} $level"
  [[ $level =~ ^[0-9]+\.[0-9]$ ]] || fail "systemd-analyze security gives no level"
  ((10#${level/./} <= ${most#*:})) || fail "sif-${most%:*} is less hardened than it was"
done
systemd-sysusers --root="$root" sif.conf >/dev/null 2>&1 || fail "systemd-sysusers"
grep -q '^sif:' "$root/etc/passwd" || fail "systemd-sysusers made no user"

### The pages, the completion, and logrotate.
for page in "$root"/usr/share/man/man1/*.gz; do
  warned=$(LC_ALL=C.UTF-8 man --warnings -l "$page" 2>&1 >"$work/log")
  [[ -z $warned && -s $work/log ]] || fail "${page##*/}: $warned"
done
bash -n "$root/usr/share/bash-completion/completions/sif"
for shell in zsh:zsh/vendor-completions/_sif fish:fish/vendor_completions.d/sif.fish; do
  "${shell%%:*}" -n "$root/usr/share/${shell#*:}" || fail "the completion for ${shell%%:*}"
done
[[ $(COMP_LINE="sif graph ro" "$root/usr/bin/sif") == rollback ]] || fail "sif does not complete itself"
sed 's|su sif sif||; s|create 0600 sif sif|create 0600|' "$root/etc/logrotate.d/sif" >"$work/logrotate"
logrotate -d -s "$work/logrotate.state" "$work/logrotate" >"$work/log" 2>&1 || fail "logrotate"
! grep -i error "$work/log" || fail "logrotate"

### rpm.
rpm=$work/one/sif_${VERSION}_amd64.rpm
rpm -qp --scripts "$rpm" >"$work/log" 2>/dev/null
[[ $(grep -cE '^(postinstall|preuninstall|postuninstall) scriptlet' "$work/log") == 3 ]] || fail "the rpm has no scripts"
rpm -qpl "$rpm" >"$work/log" 2>/dev/null
grep -qx /usr/share/zsh/site-functions/_sif "$work/log" || fail "the rpm has no completion for zsh"

### What dpkg does with them.
((EUID == 0)) || { say "LEFT OUT: installing, upgrading and removing needs root" && exit 0; }
machine=$work/machine
mkdir "$machine" "$work/layer"
mount -t tmpfs -o mode=755 sif-check "$work/layer"
mounted=1
# shellcheck disable=SC2317
clean_up() {
  umount -R "$machine" 2>/dev/null || true
  umount "$work/layer" || true
  rm -rf "$work"
}
mkdir "$work/layer/upper" "$work/layer/work"
mount -t overlay -o "lowerdir=/,upperdir=$work/layer/upper,workdir=$work/layer/work" sif-check "$machine"
mount -t proc proc "$machine/proc"
mount -t tmpfs -o mode=755 sif-check "$machine/run"
mkdir -p "$machine/run/systemd/system"
cat >"$machine/usr/local/bin/systemctl" <<'EOF'
#!/bin/sh
echo "$*" >>/run/calls
case "$*" in *is-active*) exit "$(cat /run/link-inactive 2>/dev/null || echo 0)" ;; esac
EOF
chmod 755 "$machine/usr/local/bin/systemctl"
inside() { PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin chroot "$machine" "$@"; }
# calls prints the calls of systemctl since the last time, on one line.
calls() {
  tr '\n' ';' <"$machine/run/calls" 2>/dev/null || true
  rm -f "$machine/run/calls"
}
# snapshot lists all files of the machine that dpkg, its logs and caches do not keep for themselves, and that no lab
# or virtual machine beside this changes.
snapshot() { (cd "$machine" && find etc usr var opt -xdev \( -path var/lib/sif-lab -o -path var/lib/sif-machines \) -prune -o \
  ! -path 'var/lib/dpkg*' ! -path 'var/cache/*' ! -path 'var/log/*' -printf '%y %m %u %p %l\n' | sort); }
cp "$deb" "$machine/run/sif.deb"
snapshot >"$work/before"

inside dpkg -i /run/sif.deb >"$work/log" 2>&1 || { cat "$work/log" && fail "dpkg -i"; }
[[ $(calls) == "daemon-reload;" ]] || fail "an installation does more than to reload the units"
[[ $(stat -c '%U %a' "$machine/var/lib/sif") == 'root 711' ]] || fail "the mode of /var/lib/sif"
[[ $(inside stat -c '%U %G %a' /etc/sif) == 'root sif 750' ]] || fail "the mode of /etc/sif: $(inside stat -c '%U %G %a' /etc/sif)"
[[ $(inside sif version) == "sif v$VERSION"* ]] || fail "the installed sif does not run"
[[ $(inside fish -c "complete -C 'sif graph ro'") == rollback ]] || fail "fish does not complete"

VERSION=9.9.9 ARCHITECTURES=$this FORMATS=deb packaging/build.sh "$work/newer" >/dev/null
cp "$work"/newer/*.deb "$machine/run/newer.deb"
inside dpkg -i /run/newer.deb >"$work/log" 2>&1 || { cat "$work/log" && fail "the upgrade"; }
[[ $(calls) == "daemon-reload;try-restart sif-controller.service;try-restart sif-engine.service;try-restart sif-agent.service;--quiet is-active sif-link.service;" ]] ||
  fail "an upgrade does not restart what runs, and nothing else"
grep -q 'sif-link still runs the earlier version' "$work/log" || fail "an upgrade does not say that sif-link runs the earlier version"
inside dpkg -i /run/sif.deb >"$work/log" 2>&1 || { cat "$work/log" && fail "the downgrade"; }
calls >/dev/null

touch "$machine/etc/sif/agent.hcl"
mkdir -p "$machine/var/lib/sif/identity"
inside dpkg -P sif >"$work/log" 2>&1 || { cat "$work/log" && fail "dpkg -P on a node"; }
[[ $(calls) == "disable --now sif-agent.service sif-engine.service sif-controller.service sif-link.service;daemon-reload;"* ]] || fail "a removal does not stop the daemons"
[[ -e $machine/etc/sif/agent.hcl && -d $machine/var/lib/sif/identity ]] || fail "purging removed the state of a node that has not left"
grep -q 'sif node leave' "$work/log" || fail "purging does not say that the node must leave first"

inside dpkg -i /run/sif.deb >"$work/log" 2>&1 || { cat "$work/log" && fail "dpkg -i after a purge"; }
rm "$machine/etc/sif/agent.hcl" # as sif node leave does
inside dpkg -P sif >"$work/log" 2>&1 || { cat "$work/log" && fail "dpkg -P"; }
! inside getent passwd sif || fail "purging leaves the user"
snapshot >"$work/after"
diff "$work/before" "$work/after" || fail "purging leaves something"
say "passed: installed, upgraded, downgraded, purged; nothing is left"
