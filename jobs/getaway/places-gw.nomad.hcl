# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# The places gateway of getaway: a container in aws1, a process in gcp1.
job "places-gw" {
  datacenters = ["aws1", "gcp1"]
  type        = "service"

  # A deployment is healthy when the checks of its services pass.
  update {
    health_check      = "checks"
    min_healthy_time  = "2s"
    healthy_deadline  = "2m"
    progress_deadline = "3m"
  }

  group "aws1" {
    constraint {
      attribute = "${node.datacenter}"
      value     = "aws1"
    }

    connectivity {
      service   = "getaway-app/places-gw"
      originate = ["places-source"]
      respond   = ["places-api"]
    }

    service {
      name         = "places-gw"
      provider     = "consul"
      port         = "9002"
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

    task "places-gw" {
      driver = "docker"
      user   = "65534"

      config {
        image      = "sif-demo:local"
        force_pull = false
        entrypoint = ["/usr/local/bin/sif-demo"]
        args       = ["places-gw"]
        cap_drop   = ["all"]
      }

      env {
        SIF_DEMO_NODE     = "${node.unique.name}"
        SIF_DEMO_PROVIDER = "http://places.example.com"
        SIF_DEMO_RUNTIME  = "container"
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

  group "gcp1" {
    constraint {
      attribute = "${node.datacenter}"
      value     = "gcp1"
    }

    connectivity {
      service   = "getaway-app/places-gw"
      originate = ["places-source"]
      respond   = ["places-api"]
    }

    service {
      name         = "places-gw"
      provider     = "consul"
      port         = "9002"
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

    task "places-gw" {
      driver = "exec"
      user   = "nobody"

      config {
        command = "/usr/local/bin/sif-demo"
        args    = ["places-gw"]
      }

      env {
        SIF_DEMO_NODE     = "${node.unique.name}"
        SIF_DEMO_PROVIDER = "http://places.example.com"
        SIF_DEMO_RUNTIME  = "process"
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
