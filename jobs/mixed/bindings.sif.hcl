# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# What the operators of the fabric grant to the team of the application: its jobs, a port of its
# nodes, and the Consul service that one node may attach. Without the attach block, whoever may write
# to Consul's catalog could register anything.

binding "mixed-app" {
  nomad {
    jobs = ["mixed", "mixed-*"]
  }
  attach {
    services = ["mixed-places"]
    zone     = "gcp1"
    node     = "gcp1-w1"
  }
  outside {
    prefixes = ["10.99.0.0/24"]
    ports    = [18082]
  }
}
