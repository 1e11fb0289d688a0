#!/bin/sh
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Called by dpkg as "remove", "purge", "upgrade" and others, by rpm as "0" or, after an upgrade, "1".
set -e

case "$1" in
remove | purge | 0)
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload
		systemctl reset-failed 'sif-*.service' 2>/dev/null || true
	fi
	;;
esac
[ "$1" = purge ] || exit 0

# The state of a node that has not left is what its data path in the kernel is found again by.
for file in /etc/sif/agent.hcl /etc/sif/engine.hcl /etc/sif/controller.hcl /etc/sif/vault-secret-id; do
	if [ -e "$file" ]; then
		echo "sif: this machine is still a node of the fabric: /etc/sif and /var/lib/sif stay. Install the package again, run \"sif node leave\", and purge it." >&2
		exit 0
	fi
done
rm -rf /etc/sif /var/lib/sif
# Of tmpfiles.conf; a socket that a killed agent has left may be in it.
rm -rf /run/sif-workload
if getent passwd sif >/dev/null; then
	userdel sif || true
fi
