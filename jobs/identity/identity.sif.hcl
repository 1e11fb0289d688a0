# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# Two services of getaway that prove to each other who they are, by mutual TLS with certificates of
# the SPIFFE Workload API: a container in aws1 calls a process in gcp1.
#
#   getaway-svc -> weather-gw

domain "identity-app" {
  service "getaway-svc" {
    selector "nomad" {
      job   = "identity"
      group = "svc"
    }
  }

  service "weather-gw" {
    selector "nomad" {
      job   = "identity"
      group = "weather"
    }
  }

  contract "weather-api" {
    originators = ["getaway-svc"]
    responders  = ["weather-gw"]
    rule {
      protocol = "tcp"
      ports    = [9003]
    }
  }
}
