# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# Voting: votes are queued, counted by a worker, and reported. Only the worker
# connects the side that takes votes and the side that reports them.
#
#   users -> http-proxy -> voting-svc -> voting-db <- worker
#                       -> result-svc -> result-db <- worker

domain "voting-app" {

  # Browsers outside the fabric.
  external "users" {
    prefixes = ["10.99.0.0/24"]
  }

  service "http-proxy" {
    selector "nomad" {
      job   = "voting-web"
      group = "proxy"
    }
  }

  service "voting-svc" {
    selector "nomad" {
      job   = "voting"
      group = "voting-svc"
    }
  }

  service "result-svc" {
    selector "nomad" {
      job   = "voting"
      group = "result-svc"
    }
    selector "nomad" { # a virtual machine
      job   = "voting-vm"
      group = "result-svc"
    }
  }

  service "worker" {
    selector "nomad" {
      job   = "voting"
      group = "worker"
    }
  }

  service "voting-db" {
    selector "nomad" {
      job   = "voting-data"
      group = "voting-db"
    }
  }

  service "result-db" {
    selector "nomad" {
      job   = "voting-data"
      group = "result-db"
    }
  }

  contract "users" {
    originators = ["users"]
    responders  = ["http-proxy"]
    rule {
      protocol = "tcp"
      ports    = [8080]
    }
  }

  contract "voting-frontend" {
    originators = ["http-proxy"]
    responders  = ["voting-svc"]
    rule {
      protocol = "tcp"
      ports    = [8080]
    }
  }

  contract "voting-backend" {
    originators = ["voting-svc"]
    responders  = ["voting-db"]
    rule {
      protocol = "tcp"
      ports    = [7001]
    }
  }

  contract "voting-worker" {
    originators = ["worker"]
    responders  = ["voting-db"]
    rule {
      protocol = "tcp"
      ports    = [7001]
    }
  }

  contract "result-worker" {
    originators = ["worker"]
    responders  = ["result-db"]
    rule {
      protocol = "tcp"
      ports    = [7002]
    }
  }

  contract "result-frontend" {
    originators = ["http-proxy"]
    responders  = ["result-svc"]
    rule {
      protocol = "tcp"
      ports    = [8080]
    }
  }

  contract "result-backend" {
    originators = ["result-svc"]
    responders  = ["result-db"]
    rule {
      protocol = "tcp"
      ports    = [7002]
    }
  }
}
