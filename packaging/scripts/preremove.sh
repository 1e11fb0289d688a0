#!/bin/sh
# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0
#
# Stops the daemons before a removal, not before an upgrade. Called by dpkg as "remove" or "upgrade", by rpm as "0" or,
# before an upgrade, "1".
set -e

case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac

for file in /etc/sif/agent.hcl /etc/sif/engine.hcl /etc/sif/controller.hcl; do
	if [ -e "$file" ]; then
		echo "sif: this machine is still a node of the fabric. What is enforced stays in the kernel; its tunnels in user space end. \"sif node leave\" takes all of it away: install the package again for it." >&2
		break
	fi
done
[ -d /run/systemd/system ] || exit 0
systemctl disable --now sif-agent.service sif-engine.service sif-controller.service sif-link.service
