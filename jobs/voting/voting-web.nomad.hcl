# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# The pages of voting.
job "voting-web" {
  datacenters = ["aws1"]
  type        = "service"

  # A deployment is healthy when the checks of its services pass.
  update {
    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = "2m"
    progress_deadline = "3m"
  }

  group "proxy" {
    connectivity {
      service   = "voting-app/http-proxy"
      originate = ["voting-frontend", "result-frontend"]
      respond   = ["users"]
    }

    # The port for browsers; sif job run adds the network's mode.
    network {
      port "http" {
        static = 18081
        to     = 8080
      }
    }

    service {
      name         = "voting-web"
      provider     = "consul"
      port         = "http"
      address_mode = "alloc"

      check {
        type         = "http"
        path         = "/health"
        address_mode = "alloc"
        interval     = "2s"
        timeout      = "1s"
      }
    }

    restart {
      attempts = 3
      interval = "5m"
      delay    = "2s"
      mode     = "fail"
    }

    ephemeral_disk {
      size = 150
    }

    task "http-proxy" {
      driver = "docker"
      user   = "65534"

      config {
        image      = "sif-demo:local"
        force_pull = false
        entrypoint = ["/usr/local/bin/sif-demo"]
        args       = ["voting-http-proxy"]
        cap_drop   = ["all"]
      }

      env {
        SIF_DEMO_NODE    = "${node.unique.name}"
        SIF_DEMO_RUNTIME = "container"
      }

      resources {
        cpu    = 50
        memory = 64
      }

      logs {
        max_files     = 1
        max_file_size = 5
      }
    }
  }
}
