# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# See identity.sif.hcl.
job "identity" {
  datacenters = ["aws1", "gcp1"]
  type        = "service"

  # A deployment is healthy when the checks of its services pass.
  update {
    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = "2m"
    progress_deadline = "3m"
  }

  group "svc" {
    constraint {
      attribute = "${node.datacenter}"
      value     = "aws1"
    }

    connectivity {
      service      = "identity-app/getaway-svc"
      originate    = ["weather-api"]
      workload_api = true
    }

    service {
      name         = "identity-getaway-svc"
      provider     = "consul"
      port         = "8080"
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

    task "getaway-svc" {
      driver = "docker"
      user   = "65534"

      config {
        image      = "sif-demo:local"
        force_pull = false
        entrypoint = ["/usr/local/bin/sif-demo"]
        args       = ["getaway-svc"]
        cap_drop   = ["all"]
      }

      env {
        SIF_DEMO_NODE           = "${node.unique.name}"
        SIF_DEMO_RUNTIME        = "container"
        SIF_DEMO_URL_WEATHER_GW = "https://weather-gw.identity-app.sif:9003"
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

  group "weather" {
    constraint {
      attribute = "${node.datacenter}"
      value     = "gcp1"
    }

    connectivity {
      service      = "identity-app/weather-gw"
      respond      = ["weather-api"]
      workload_api = true
    }

    service {
      name         = "identity-weather-gw"
      provider     = "consul"
      port         = "9003"
      address_mode = "alloc"

      check {
        type         = "http"
        path         = "/health"
        protocol     = "https"

        # It proves nothing to the service, and knows no authorities of the fabric.
        tls_skip_verify = true
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

    task "weather-gw" {
      driver = "exec"
      user   = "nobody"

      config {
        command = "/usr/local/bin/sif-demo"
        args    = ["weather-gw"]
      }

      env {
        SIF_DEMO_NODE    = "${node.unique.name}"
        SIF_DEMO_CALLERS = "getaway-svc.identity-app"
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
